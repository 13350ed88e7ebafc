"""Which blocks are taken. They are given out from the start of the file system to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.disk.ext4.geometry import BLOCK, GROUP

if TYPE_CHECKING:
    from msb_pull.disk.ext4.geometry import Geometry


class Full(Exception):
    """No block is left."""


class Space:
    """The blocks of a file system, of which the superblocks and descriptors are taken from the start."""

    def __init__(self, geometry: Geometry) -> None:
        self._blocks = geometry.blocks
        head = 1 + geometry.descriptors
        self._copies = [(group * GROUP, head) for group in geometry.copies()]
        self._next = head
        # What was passed over, and the copies that were.
        self._gaps: list[tuple[int, int]] = []
        self._passed = 0

    def take(self, count: int, most: int = GROUP) -> list[tuple[int, int]]:
        """The next blocks as runs (start, count) of at most ``most``; raises Full."""
        runs = []
        while count:
            start, end = self._stretch()
            length = min(count, most, end - start)
            runs.append((start, length))
            self._next = start + length
            count -= length
        return runs

    def take_together(self, count: int) -> int:
        """Where as many blocks begin that lie in one run, which is shorter than a group; raises Full."""
        start, end = self._stretch()
        if end - start < count:
            self._gaps.append((start, end - start))
            self._next = end
            start, end = self._stretch()
        if end - start < count:
            raise Full
        self._next = start + count
        return start

    def _stretch(self) -> tuple[int, int]:
        """The next free blocks, up to a copy of the superblock or the end; raises Full."""
        while self._passed < len(self._copies) and self._copies[self._passed][0] == self._next:
            self._next += self._copies[self._passed][1]
            self._passed += 1
        end = self._copies[self._passed][0] if self._passed < len(self._copies) else self._blocks
        if self._next >= end:
            raise Full
        return self._next, end

    def taken(self, group: int) -> tuple[bytes, int, bool]:
        """The bitmap of a group, how many of its blocks are free, and whether nothing but a copy lies in it."""
        start = group * GROUP
        size = min(GROUP, self._blocks - start)
        used = max(min(self._next - start, size), 0)
        bits = (1 << used) - 1
        for at, count in self._gaps:
            low, high = max(at - start, 0), min(at + count - start, size)
            if low < high:
                bits &= ~(((1 << high - low) - 1) << low)
        for at, count in self._copies:
            if at == start:
                bits |= (1 << count) - 1
        free = size - bits.bit_count()
        # The bits beyond the end of the last group are set.
        bits |= (1 << GROUP) - (1 << size)
        return bits.to_bytes(BLOCK, "little"), free, not used
