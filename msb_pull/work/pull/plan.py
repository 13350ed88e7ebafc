"""What a pull is asked for, and what it did: plain values."""

from __future__ import annotations

import enum
from dataclasses import InitVar, dataclass

from msb_pull.ground.limits import Limits
from msb_pull.image.platform import Platform

_LIMITS = Limits()


class Policy(enum.StrEnum):
    """When to ask the registry (podman's words)."""

    MISSING = "missing"
    ALWAYS = "always"
    NEWER = "newer"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull. ``platform`` None means this machine's; ``name`` is what ``--as`` gives.

    ``max_layer_size`` (bytes), ``max_entries`` and ``max_window`` (bytes), where given, make the ``limits`` of a layer;
    ``refetch`` names the layers to fetch again although they are there, ``force`` means all of them. ``to`` is where
    the image is to go as well (``microsandbox``), by the program ``msb`` (a name or a path; None: what settings say).
    """

    policy: Policy = Policy.MISSING
    force: bool = False
    platform: Platform | None = None
    max_layer_size: InitVar[int | None] = None
    max_entries: InitVar[int | None] = None
    max_window: InitVar[int | None] = None
    allow_no_xattr: bool = False
    name: str | None = None
    dry_run: bool = False
    refetch: frozenset[str] = frozenset()
    limits: Limits = _LIMITS
    to: str | None = None
    msb: str | None = None

    def __post_init__(self, max_layer_size: int | None, max_entries: int | None, max_window: int | None) -> None:
        # A name serves as well; compared with the members it would be none of them.
        object.__setattr__(self, "policy", Policy(self.policy))
        if not isinstance(self.platform, Platform | None):
            raise TypeError(f"platform must be a msb_pull.Platform, not {type(self.platform).__name__}")
        named = {"max_bytes": max_layer_size, "max_entries": max_entries, "max_window": max_window}
        if given := {name: value for name, value in named.items() if value is not None}:
            object.__setattr__(self, "limits", Limits(**given))

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
class Delivered:
    """What became of an image at ``place``, another program (``microsandbox``).

    ``digest`` is that of the manifest that it has now, ``changed`` False where it had that before. ``recreated`` says
    that the layers were made again from the store, not compressed, so that the digest is not the registry's.
    """

    place: str
    digest: str
    changed: bool
    recreated: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did. ``pinned`` is the machine line; ``layers`` are in manifest order, repeats kept.

    ``delivered`` says what became of the image elsewhere, if it was to go there too.
    """

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
    delivered: Delivered | None = None
