"""What a pull is asked for, and what it did: plain values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from msb_pull.ground.limits import Limits
from msb_pull.image.platform import Platform


class Policy(enum.StrEnum):
    """When to ask the registry (podman's words)."""

    MISSING = "missing"
    ALWAYS = "always"
    NEWER = "newer"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull. ``platform`` None means this machine's; ``name`` is what ``--as`` gives.

    ``refetch`` names the layers to fetch again although they are there, ``force`` means all of them.
    """

    policy: Policy = Policy.MISSING
    force: bool = False
    platform: Platform | None = None
    jobs: int = 4
    limits: Limits = field(default_factory=Limits)
    allow_no_xattr: bool = False
    name: str | None = None
    dry_run: bool = False
    refetch: frozenset[str] = frozenset()

    @property
    def wanted(self) -> Platform:
        """The platform to choose: the one named, else this machine's."""
        return self.platform or Platform.host()


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """One layer of the result: compressed ``size`` and ``fetched`` bytes, and where it lies."""

    digest: str
    size: int
    fetched: int
    present: bool
    path: str


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did. ``pinned`` is the machine line; ``layers`` are in manifest order, repeats kept."""

    reference: str
    pinned: str
    digest: str | None
    platform: str
    layers: tuple[LayerOutcome, ...]
    size: int
    fetched: int
    seconds: float
    changed: bool
    dry_run: bool = False
