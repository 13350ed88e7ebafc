"""How much one layer may ask for, and the error that names the entry which broke a rule."""

from __future__ import annotations

from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import visible_bytes

# Bounds what a child reports about one layer, which the parent keeps in memory: bytes of paths, and NOTE for each.
MAX_NOTED = 32 << 20
NOTE = 64


class LayerError(ContentError):
    """An entry of a layer is hostile, broken or over a limit. ``index`` counts entries from 0."""

    kind = "layer"

    def __init__(self, index: int, name: bytes, what: str, *, hint: str | None = None) -> None:
        where = f'entry {index} "{visible_bytes(name)}"' if name else f"entry {index}"
        super().__init__(f"{where}: {what}", hint=hint)
        self.index = index
        self.name = name
        self.what = what
