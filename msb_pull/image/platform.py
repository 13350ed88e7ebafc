"""Platforms: what an image runs on, and what this machine is."""

from __future__ import annotations

import platform as host_platform
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_ALIASES = {
    **dict.fromkeys(("x86_64", "x86-64"), ("amd64", None)),
    "aarch64": ("arm64", None),
    **dict.fromkeys(("armv8l", "armv7l", "armhf"), ("arm", "v7")),
    **dict.fromkeys(("armv6l", "armel"), ("arm", "v6")),
    "armv5tel": ("arm", "v5"),
    **dict.fromkeys(("i386", "i486", "i586", "i686", "x86"), ("386", None)),
    "loongarch64": ("loong64", None),
    "mips64el": ("mips64le", None),
}
# fmt: off
_ARCHITECTURES = frozenset({
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "wasm",
})
_SYSTEMS = frozenset({
    "aix", "darwin", "dragonfly", "freebsd", "illumos", "linux", "netbsd", "openbsd", "solaris", "wasip1", "windows",
})
# fmt: on
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
        """Parses ``linux/arm64/v8``, ``linux/x86_64``, a lone architecture (``arm64``, ``arm/v7``: of Linux) or a lone
        system (on this machine's architecture), as containerd does. Raises UsageError."""
        parts = text.split("/")
        if all(_PART.fullmatch(part) for part in parts):
            first = parts[0].lower()
            if first not in _SYSTEMS and (first in _ALIASES or first in _ARCHITECTURES):
                parts = ["linux", *parts]
            elif len(parts) == 1 and first in _SYSTEMS:
                parts = [first, host_platform.machine()]
            if 2 <= len(parts) <= 3:
                return cls(*parts).normalized()
        raise UsageError(f"invalid platform {text[:80]!r}", hint="write OS/ARCH or OS/ARCH/VARIANT, like linux/arm64")

    @classmethod
    def host(cls, machine: str | None = None) -> Platform:
        """Linux on this machine's architecture: what a microVM here runs, on macOS as well.

        It is the kernel's architecture: on a 32-bit system below a 64-bit kernel, name the platform.
        """
        return cls("linux", machine or host_platform.machine()).normalized()

    def normalized(self) -> Platform:
        """In Go's words, without variants that say nothing (arm64/v8), with those that are meant (arm is arm/v7)."""
        name = self.architecture.lower()
        architecture, implied = _ALIASES.get(name, (name, None))
        variant = (self.variant or implied or _IMPLIED_VARIANTS.get(architecture) or "").lower()
        if variant.isdecimal() and architecture in ("arm", "arm64"):
            variant = f"v{variant}"
        if (architecture, variant) in _NEUTRAL_VARIANTS:
            variant = ""
        return Platform(self.os.lower(), architecture, variant or None)

    def accepts(self, other: Platform) -> bool:
        """Whether an image for ``other`` satisfies the wish for this platform."""
        return self.rank(other) is not None

    def rank(self, other: Platform) -> int | None:
        """How well an image for ``other`` does: 0 exactly, more for older variants that still run, None not at all."""
        wish, offer = self.normalized(), other.normalized()
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

    def __str__(self) -> str:
        text = f"{self.os}/{self.architecture}"
        return f"{text}/{self.variant}" if self.variant else text


def no_image(wanted: Platform, offered: Iterable[Platform]) -> NotFoundError:
    """Says that an index has nothing for this platform, and what it has."""
    there = sorted({str(platform.normalized()) for platform in offered})
    cause = f"the index offers {', '.join(there)}" if there else "the index offers no image with a platform"
    hint = "choose one of them with --platform" if there else None
    return NotFoundError(f"no image for {wanted}", cause=cause, hint=hint)


def _older(wish: str, offer: str) -> int | None:
    try:
        distance = int(wish.removeprefix("v")) - int(offer.removeprefix("v"))
    except ValueError:
        return None
    return distance if distance > 0 else None
