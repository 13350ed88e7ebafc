"""The names that layers have in the store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from msb_pull.image.digest import Digest, InvalidDigest

_VARIANT = re.compile(r"[a-f0-9]{12}", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class LayerKey:
    """A layer's digest, and where the same blob looks different on another base, the start of that base's ChainID.

    Directories made without an entry, and files linked from lower layers, take their facts from the layers below. The
    first base a layer was settled on gets the plain name, which is the only one that Microsandbox knows.
    """

    digest: Digest
    variant: str = ""

    @classmethod
    def on(cls, digest: Digest, chain: str) -> LayerKey:
        """The name of a layer that needs one of its own on the base with this ChainID ("" for no base)."""
        return cls(digest, chain.partition(":")[2][:12] or "0" * 12)

    @classmethod
    def parse(cls, text: str) -> LayerKey:
        """Parses what ``str`` gives; raises InvalidDigest."""
        digest, plus, variant = text.partition("+")
        if plus and not _VARIANT.fullmatch(variant):
            raise InvalidDigest(f"{text!r} is not the name of a layer")
        return cls(Digest.parse(digest), variant)

    @property
    def hex(self) -> str:
        """Hex digits that differ for every key."""
        return self.digest.hex + self.variant

    @property
    def short(self) -> str:
        """The digest's first twelve hex digits, for people."""
        return self.digest.short

    def __str__(self) -> str:
        return f"{self.digest}+{self.variant}" if self.variant else str(self.digest)
