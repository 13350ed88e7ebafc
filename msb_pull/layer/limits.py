"""How much one layer may ask for, and the error that names the entry which broke a rule."""

from __future__ import annotations

from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import visible_bytes

# How much may be told of one layer, which the parent holds as well: bytes of paths, and NOTE for each.
MAX_NOTED = 32 << 20
NOTE = 64


class Limits:
    """Bounds against decompression bombs; sizes in bytes."""

    __slots__ = ("max_bytes", "max_entries", "max_extension")

    def __init__(
        self, *, max_entries: int = 5_000_000, max_bytes: int = 64 << 30, max_extension: int = 1 << 20
    ) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_extension = max_extension


def printable(name: bytes) -> str:
    """A name from an image as one line of text: control, format and undecodable characters escaped."""
    return visible_bytes(name)


class LayerError(ContentError):
    """An entry of a layer is hostile, broken or over a limit. ``index`` counts entries from 0."""

    kind = "layer"

    def __init__(self, index: int, name: bytes, what: str, *, hint: str | None = None) -> None:
        where = f'entry {index} "{printable(name)}"' if name else f"entry {index}"
        super().__init__(f"{where}: {what}", hint=hint)
        self.index = index
        self.name = name
        self.what = what
