"""What a pull is asked for, and what it did: plain values."""

from __future__ import annotations

import enum
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.errors import UsageError
from msb_pull.ground.limits import Limits
from msb_pull.image.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from msb_pull.config.signatures import SignatureRule
    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor

_LIMITS = Limits()


class Policy(enum.StrEnum):
    """When to ask the registry (podman's words)."""

    MISSING = "missing"
    ALWAYS = "always"
    NEWER = "newer"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Pin:
    """What a name is to mean, whatever its tag says by now.

    ``manifest`` is the one to take, and nothing is asked where the store has it. Where it is not known yet, the image
    is looked up in ``index``, or by its tag. ``platform`` is what the manifest is for, where an index said so. ``also``
    names platforms whose manifests are looked up and not pulled. ``by_index``: the index, if known, is wanted too.
    """

    manifest: Digest | None = None
    index: Digest | None = None
    platform: Platform | None = None
    also: tuple[Platform, ...] = ()
    by_index: bool = False

    @property
    def target(self) -> Digest | None:
        """What to ask a registry for; None is the tag."""
        known = (self.index, self.manifest) if self.also or self.by_index else (self.manifest, self.index)
        return known[0] or known[1]

    @property
    def stated(self) -> Platform | None:
        """What the target is for, if that is known."""
        return self.platform if self.target == self.manifest else None

    def doubts(self, said: Platform) -> bool:
        """Whether the index must be asked, since the manifest's config says that it is for another platform.

        Some images have a wrong config, so that this alone proves nothing.
        """
        stated = self.stated
        return stated is not None and self.index is not None and not stated.accepts(said)


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull. ``platform`` None means this machine's; ``name`` is what ``--as`` gives.

    ``max_layer_size`` (bytes), ``max_entries`` and ``max_window`` (bytes), where given, make the ``limits`` of a layer;
    ``refetch`` names the layers to fetch again although they are there, ``force`` means all of them. ``pins``, by the
    canonical names of images, say what these mean instead of their tags. ``to`` is where the image is to go as
    well (``microsandbox``), by the program ``msb`` (a name or a path; None: what settings say).

    ``signatures`` are the rules about signatures, the first that matches counts; None means those of the settings,
    where there are any. ``require_signature`` are files with public keys, one of which must have signed every image,
    ``no_signature_check`` goes without a check where no rule asks for one.
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
    signatures: tuple[SignatureRule, ...] | None = None
    require_signature: tuple[str | PathLike[str], ...] = ()
    no_signature_check: bool = False
    pins: Mapping[str, Pin] = field(default_factory=dict, hash=False)
    to: str | None = None
    msb: str | None = None

    def __post_init__(self, max_layer_size: int | None, max_entries: int | None, max_window: int | None) -> None:
        # A name serves as well; compared with the members it would be none of them.
        object.__setattr__(self, "policy", Policy(self.policy))
        if not isinstance(self.platform, Platform | None):
            raise TypeError(f"platform must be a msb_pull.Platform, not {type(self.platform).__name__}")
        if not isinstance(self.require_signature, tuple):
            raise TypeError("require_signature must be a tuple of paths")
        if self.require_signature and self.no_signature_check:
            raise UsageError("--require-signature and --no-signature-check exclude each other")
        named = {"max_bytes": max_layer_size, "max_entries": max_entries, "max_window": max_window}
        if given := {name: value for name, value in named.items() if value is not None}:
            object.__setattr__(self, "limits", Limits(**given))

    @property
    def checks_signatures(self) -> bool:
        """Whether any image may have to be signed."""
        return bool(self.signatures or self.require_signature)

    @property
    def wanted(self) -> Platform:
        """The platform to choose: the one named, else this machine's."""
        return self.platform or Platform.host()


class WantedLayer(NamedTuple):
    """One distinct layer to fetch: its blob and the digest of its tar stream."""

    descriptor: Descriptor
    diff_id: Digest


class LayerOutcome(NamedTuple):
    """One layer of the result: compressed ``size`` and ``fetched`` bytes, and where it lies.

    ``reused``: it was made from a layer that the store had under another digest, as in another compression.
    """

    digest: str
    size: int
    fetched: int
    present: bool
    path: str
    reused: bool = False


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
    ``top`` is the digest of what the name led to (an index, or the manifest), where that was asked; ``also`` has the
    digests of manifests that were only looked up, by platform.
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
    top: str | None = None
    also: Mapping[str, str] = field(default_factory=dict, hash=False)
