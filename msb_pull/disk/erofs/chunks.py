"""Sparse files: a map of chunks of one size, of which those without data take no block."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from msb_pull.disk.erofs.format import BLOCK, NOWHERE, blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_ENTRY = 4
_MAX_BITS = 31


class Chunks:
    """The chunks of a file, 2 to the power of ``bits`` blocks each. The last one ends with the file's last block."""

    __slots__ = ("_blocks", "_size", "bits")

    def __init__(self, size: int, bits: int, held: Iterable[range]) -> None:
        self.bits = bits
        self._size = size
        self._blocks = {chunk: NOWHERE for run in held for chunk in run}

    @property
    def map_size(self) -> int:
        """The bytes of the map."""
        return _count(self._size, self.bits) * _ENTRY

    def place(self, block: int) -> int:
        """Gives blocks to the chunks with data, and returns the next one that is free."""
        for chunk in self._blocks:
            self._blocks[chunk] = block
            block += min(1 << self.bits, blocks_of(self._size) - (chunk << self.bits))
        return block

    def map(self) -> bytes:
        """The first block of each chunk."""
        packed = bytearray(b"\xff" * self.map_size)
        for chunk, block in self._blocks.items():
            struct.pack_into("<I", packed, chunk * _ENTRY, block)
        return bytes(packed)

    def cut(self, offset: int, piece: bytes | memoryview) -> Iterator[tuple[int, bytes | memoryview]]:
        """Parts of a piece of content, with their offsets in the image."""
        size = BLOCK << self.bits
        while piece:
            chunk, inside = divmod(offset, size)
            part = piece[: size - inside]
            yield self._blocks[chunk] * BLOCK + inside, part
            offset += len(part)
            piece = piece[len(part) :]


def chunks_of(size: int, segments: Sequence[tuple[int, int]] | None) -> Chunks | None:
    """The chunks that take the least space for a file with these holes, None where holes save nothing."""
    if segments is None or not size:
        return None
    blocks = blocks_of(size)

    def cost(bits: int) -> int:
        data = sum(min(run.stop << bits, blocks) - (run.start << bits) for run in _held(segments, bits))
        return data * BLOCK + _count(size, bits) * _ENTRY

    bits = min(range(min(blocks.bit_length(), _MAX_BITS), -1, -1), key=cost)
    return Chunks(size, bits, _held(segments, bits)) if cost(bits) < blocks * BLOCK else None


def _count(size: int, bits: int) -> int:
    return -(-size // (BLOCK << bits))


def _held(segments: Sequence[tuple[int, int]], bits: int) -> Iterator[range]:
    """The numbers of the chunks that hold data."""
    size, following = BLOCK << bits, 0
    for offset, length in segments:
        end = -(-(offset + length) // size)
        # What lies in the chunk of the one before adds none.
        if length and end > following:
            yield range(max(following, offset // size), end)
            following = end
