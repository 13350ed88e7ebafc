"""Sparse members of archives: which bytes of a file are stored and where; all others are zeros.

GNU tar has written this in four ways (its manual, "Storing Sparse Files"): a type of its own with the map in the header
and blocks behind it, and three versions in PAX headers, the last of which (bsdtar's as well) has the map before the
content. Docker, podman and bsdtar read all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.source.local.files import Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_BLOCK = 512
# A file with more pieces than this was made to cost memory; a map of as many fits into the second.
_MAX_PIECES = 100_000
_MAX_MAP = 4 << 20
# No layer is larger, and zeros cost nothing to announce.
_MAX_SIZE = 1 << 40
PREFIX = b"GNU.sparse."


class BadMap(ValueError):
    """The map of a sparse file makes no sense; the text completes "the archive is damaged: the sparse member …"."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse file: its whole size, its pieces in order, and where in the archive its stored bytes end."""

    size: int
    pieces: tuple[Piece, ...]
    end: int


def read_sparse(
    header: bytes, pax: Mapping[str, bytes], start: int, stored: int, read: Callable[[int, int], bytes]
) -> Sparse | None:
    """The layout of the member whose content begins at ``start`` with ``stored`` bytes; None for an ordinary one.

    ``read(at, size)`` reads the archive. Raises BadMap.
    """
    if header[156:157] == b"S":
        return _read_header(header, start, stored, read)
    if not any(key in pax for key in ("sparse.major", "sparse.map", "sparse.size")):
        return None
    version = pax.get("sparse.major", b"0"), pax.get("sparse.minor", b"0")
    end = start + stored
    if version == (b"1", b"0"):
        numbers, start = _read_map(start, stored, read)
        return _placed(_decimal(pax.get("sparse.realsize", b"")), numbers, start, end)
    if version[0] != b"0":
        raise BadMap("uses an unknown version of the format")
    text = pax.get("sparse.map", b"")
    numbers = [_decimal(number) for number in text.split(b",", 2 * _MAX_PIECES + 1)] if text else []
    return _placed(_decimal(pax.get("sparse.size", b"")), numbers, start, end)


def number_field(field: bytes) -> int | None:
    """A number in a header, octal or (GNU) base-256; None where it is none."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    return octal(field.strip(b" \0") or b"0")


def octal(digits: bytes) -> int | None:
    """A number as headers have it; None where it is none."""
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:
        return None


def _read_header(header: bytes, start: int, stored: int, read: Callable[[int, int], bytes]) -> Sparse:
    """GNU's old type: four pieces in the header, 21 in each block that follows while the one before says so."""
    fields = [header[386 + 12 * number :][:12] for number in range(8)]
    more = header[482]
    while more:
        block = read(start, _BLOCK)
        if len(block) < _BLOCK or len(fields) > 2 * _MAX_PIECES:
            raise BadMap("has a map that does not end")
        fields += [block[12 * number :][:12] for number in range(42)]
        start, more = start + _BLOCK, block[504]
    # What is left of the last block is empty.
    pairs = [pair for pair in zip(fields[::2], fields[1::2], strict=True) if pair[1].strip(b"\0")]
    numbers = [_known(number_field(field)) for pair in pairs for field in pair]
    return _placed(_known(number_field(header[483:495])), numbers, start, start + stored)


def _read_map(start: int, stored: int, read: Callable[[int, int], bytes]) -> tuple[list[int], int]:
    """The map before the content: how many pieces, then their numbers, one a line; and where the content begins."""
    data = read(start, min(stored, _MAX_MAP))
    count = _decimal(data[:20].partition(b"\n")[0])
    lines = data.split(b"\n", 2 * count + 1) if count <= _MAX_PIECES else []
    if len(lines) != 2 * count + 2:
        raise BadMap("has a map that does not end")
    length = sum(len(line) + 1 for line in lines[:-1])
    return [_decimal(line) for line in lines[1:-1]], start + (length + _BLOCK - 1) // _BLOCK * _BLOCK


def _placed(size: int, numbers: Iterable[int], start: int, end: int) -> Sparse:
    """Compares the map with the size of the file and of what is stored."""
    numbers = list(numbers)
    if size > _MAX_SIZE or len(numbers) % 2 or len(numbers) > 2 * _MAX_PIECES:
        raise BadMap("has a map that cannot be right")
    pieces = []
    at = 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if offset < at or offset + length > size or start + length > end:
            raise BadMap("has a map that does not fit its content")
        if length:
            pieces.append(Piece(offset, start, length))
        at, start = offset + length, start + length
    if start != end:
        raise BadMap("has a map that does not fit its content")
    return Sparse(size, tuple(pieces), end)


def _decimal(digits: bytes) -> int:
    return _known(int(digits) if digits.isdigit() and len(digits) < 20 else None)


def _known(number: int | None) -> int:
    if number is None:
        raise BadMap("has a map with something other than numbers")
    return number
