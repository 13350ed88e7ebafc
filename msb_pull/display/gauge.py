"""How far something is, as a bar of characters."""

from __future__ import annotations


def gauge(length: int, done: int, total: int, *, unicode: bool, color: bool) -> tuple[str, str]:
    """The part of a bar of ``length`` columns that is there, and the part that is missing."""
    halves = 2 * length if not total else min(2 * length, 2 * length * done // total)
    full, half = divmod(halves, 2)
    if not unicode:
        return "#" * full, "." * (length - full)
    # Without colour the part that is missing cannot be told from the part that is there: leave it empty.
    return "━" * full + "╸" * half, ("━" if color else " ") * (length - full - half)
