"""What a layer is, by the beginning of its notes: small, for pulls that find everything at home."""

from __future__ import annotations

from msb_pull.ground.below import opener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
# Enough for the longest diff_id, which stands at the beginning.
_START = 256


def noted_diff_id(path: Path | str) -> str | None:
    """The ``diff_id`` in notes as ``layer/notes`` writes them, without reading them whole; None where it is not.

    What else is wrong with them is not found.
    """
    try:
        with open(path, "rb", opener=opener, buffering=0) as file:
            start = file.read(_START).decode("ascii", "replace")
    except OSError:
        return None
    before, _, value = start.partition(f'{{"version": {VERSION}, "diff_id": "')
    value, quote, _ = value.partition('"')
    return value if quote and not before else None
