"""The names that layers, and the copies of images, have in the store."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.image.digest import Digest, InvalidDigest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def layers_noted(folder: Path, digest: Digest | None = None) -> list[LayerKey]:
    """The names, sorted, of all layers, or those with a digest, that have notes in a folder that may be missing.

    Raises OSError.
    """
    found, start = [], str(digest or "")
    for path in copies_in(folder):
        with suppress(InvalidDigest):
            if path.name.startswith(start):
                found.append(LayerKey.parse(path.stem))
    return sorted(found)


def copy_name(reference: str) -> str:
    """The name of the file with the copy of an image."""
    return f"{hashlib.sha256(reference.encode()).hexdigest()}.json"


def signature_name(reference: str) -> str:
    """The name of the file beside it with what was checked of the image's signatures."""
    return copy_name(reference).removesuffix(".json") + ".signature"


def copies_in(folder: Path) -> Iterator[Path]:
    """The files with copies of images in a folder that may be missing."""
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from (path for path in folder.iterdir() if path.suffix == ".json")
