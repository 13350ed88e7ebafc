"""Sparse members of archives: which bytes of a file are stored and where; all others are zeros.

GNU tar has written this in four ways (its manual, "Storing Sparse Files"): a type of its own with the map in the header
and blocks behind it, and three versions in PAX headers, the last of which (bsdtar's as well) has the map before the
content. Docker, podman and bsdtar read all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.pax import BadRecord, Sparse, checked_map, gnu_map, leading_map
from msb_pull.ground.tarfields import BLOCK, number
from msb_pull.source.local.files import Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAX_MAP = 4 << 20
# No layer is larger, and zeros cost nothing to announce.
_MAX_SIZE = 1 << 40


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a file lies: its whole size, its pieces in order, and where in the archive its stored bytes end."""

    size: int
    pieces: tuple[Piece, ...]
    end: int


def read_sparse(
    header: bytes, said: Sequence[tuple[bytes, bytes]], start: int, stored: int, read: Callable[[int, int], bytes]
) -> Layout | None:
    """The layout of the member whose content begins at ``start`` with ``stored`` bytes; None for an ordinary one.

    ``said`` are the records of its PAX header that tell of sparse files; ``read(at, size)`` reads the archive. Raises
    BadRecord, BadField.
    """
    at = start

    def block() -> bytes | None:
        nonlocal at
        found = read(at, BLOCK)
        at += BLOCK
        return found if len(found) == BLOCK else None

    if header[156:157] == b"S":
        pairs, size = gnu_map(header, block), number(header[483:495])
        # Its blocks are no part of the size in the header.
        stored += at - start
    elif not said:
        return None
    else:
        sparse = _checked(said)
        pairs = leading_map(block, min(stored, _MAX_MAP))[0] if sparse.pairs is None else sparse.pairs
        size = -1 if sparse.realsize is None else sparse.realsize
    if not 0 <= size <= _MAX_SIZE:
        raise BadRecord("its sparse size is missing or cannot be right")
    end = start + stored
    pieces = []
    for offset, length in checked_map(pairs, size, end - at):
        pieces.append(Piece(offset, at, length))
        at += length
    return Layout(size, tuple(pieces), end)


def _checked(said: Sequence[tuple[bytes, bytes]]) -> Sparse:
    sparse = Sparse()
    for key, value in said:
        sparse.add(key, value)
    if sparse.pairs is None and sparse.version != [1, 0]:
        # A file that is one hole needs no map.
        sparse.pairs = []
    sparse.check()
    return sparse
