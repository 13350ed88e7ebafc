"""Platforms: what an image runs on, what this machine is, and which manifest of an index to take."""

from __future__ import annotations

import platform as host_platform
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.image.manifest import Descriptor

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_ALIASES = {
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "x86": ("386", None),
    "loongarch64": ("loong64", None),
    "mips64el": ("mips64le", None),
}
_IMPLIED_VARIANTS = {"arm": "v7"}
_NEUTRAL_VARIANTS = {("arm64", "v8"), ("amd64", "v1")}


@dataclass(frozen=True, slots=True)
class Platform:
    """``os/architecture[/variant]`` in the words of image-spec (GOOS and GOARCH)."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parses ``linux/arm64/v8``, ``linux/x86_64`` or a lone architecture; raises UsageError."""
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts):
            raise UsageError(f"invalid platform {text!r}", hint="write OS/ARCH or OS/ARCH/VARIANT, like linux/arm64")
        architecture, implied = _ALIASES.get(parts[1].lower(), (parts[1].lower(), None))
        variant = parts[2].lower() if len(parts) == 3 else implied
        return cls(parts[0].lower(), architecture, variant).normalized()

    @classmethod
    def host(cls, machine: str | None = None) -> Platform:
        """Linux on this machine's architecture: what a microVM here runs, on macOS as well."""
        name = (machine or host_platform.machine()).lower()
        architecture, variant = _ALIASES.get(name, (name, None))
        return cls("linux", architecture, variant).normalized()

    def normalized(self) -> Platform:
        """Without the variants that say nothing (arm64/v8), with those that are understood (arm is arm/v7)."""
        variant = self.variant or _IMPLIED_VARIANTS.get(self.architecture)
        if (self.architecture, variant) in _NEUTRAL_VARIANTS:
            variant = None
        return Platform(self.os, self.architecture, variant)

    def accepts(self, other: Platform) -> bool:
        """Whether an image for ``other`` satisfies the wish for this platform."""
        return _rank(self, other) is not None

    def __str__(self) -> str:
        text = f"{self.os}/{self.architecture}"
        return f"{text}/{self.variant}" if self.variant else text


def choose(candidates: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """The entry of an index to pull: the best match, the first of equals (containerd's order of variants).

    Attestations, artifacts and unknown media types must have been left out by the caller. A lone entry without a
    platform is taken, to be checked against its config. Raises NotFoundError that lists what there is.
    """
    ranked = [(rank, entry) for entry in candidates if (rank := _rank_entry(wanted, entry)) is not None]
    if ranked:
        return min(ranked, key=lambda pair: pair[0])[1]
    if len(candidates) == 1 and candidates[0].platform is None:
        return candidates[0]
    there = sorted({str(entry.platform.normalized()) for entry in candidates if entry.platform})
    raise NotFoundError(
        f"no image for {wanted}",
        cause=f"the index offers {', '.join(there)}" if there else "the index offers no image with a platform",
        hint="choose one of them with --platform" if there else None,
    )


def _rank_entry(wanted: Platform, entry: Descriptor) -> int | None:
    return _rank(wanted, entry.platform) if entry.platform else None


def _rank(wanted: Platform, offered: Platform) -> int | None:
    """0 for an exact match, larger for older variants that still run, None where it does not run."""
    wish, offer = wanted.normalized(), offered.normalized()
    if (wish.os, wish.architecture) != (offer.os, offer.architecture):
        return None
    if wish.variant == offer.variant:
        return 0
    if wish.architecture == "arm" and wish.variant and offer.variant:
        return _older(wish.variant, offer.variant)
    if wish.architecture in ("amd64", "arm64") and wish.variant:
        base = {"amd64": "v1", "arm64": "v8"}[wish.architecture]
        return _older(wish.variant, offer.variant or base)
    return None


def _older(wish: str, offer: str) -> int | None:
    try:
        distance = int(wish.removeprefix("v")) - int(offer.removeprefix("v"))
    except ValueError:
        return None
    return distance if distance > 0 else None
