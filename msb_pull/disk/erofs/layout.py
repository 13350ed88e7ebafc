"""Decides where everything lies, before anything is written: all sizes are known, contents are not needed.

The order is: superblock, inodes (with the ends of files and directories that fit behind them), shared attributes,
directories, contents. So the content passes once, and listing a tree reads one stretch of the image.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from msb_pull.disk.erofs.attributes import Attributes
from msb_pull.disk.erofs.chunks import Chunks, chunks_of
from msb_pull.disk.erofs.format import (
    BLOCK,
    CHUNKED,
    INLINE,
    INODE,
    NOWHERE,
    PLAIN,
    SLOT,
    blocks_of,
    device_number,
    directory_blocks,
)
from msb_pull.disk.links import Linked, linked
from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import visible_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.disk.inode import Inode

# How much of the inodes, with what stands behind them, is made at a time.
AREA = 1 << 18


class Placed(Linked):
    """One inode and its place. ``offset`` is that of the inode in the image, ``where`` its first block (or device),
    ``tail`` how many bytes of its content stand behind it, ``number`` counts from one."""

    __slots__ = ("attributes", "chunks", "layout", "number", "offset", "size", "tail", "where")

    def __init__(self, inode: Inode, attributes: bytes) -> None:
        super().__init__(inode)
        self.number = 0
        self.attributes = attributes
        self.size = 0
        self.layout = PLAIN
        self.tail = 0
        self.where = NOWHERE
        self.offset = 0
        self.chunks: Chunks | None = None

    @property
    def nid(self) -> int:
        """The number by which entries name it."""
        return self.offset // SLOT

    @property
    def behind(self) -> int:
        """The offset in the image of what follows the inode and its attributes."""
        return self.offset + INODE + len(self.attributes)


class Layout:
    """The image of a tree: ``placed`` in the order of the tree, where the top is the first.

    ``areas`` are where the stretches of inodes end, each with all that follow those of the one before in that order.
    """

    def __init__(self, inodes: Iterable[Inode]) -> None:
        held = list(inodes)
        attributes = Attributes(held)
        self.shared = attributes.shared
        self.placed = linked(held, lambda inode: Placed(inode, attributes.of(inode)))
        space = _Space(BLOCK)
        for number, placed in enumerate(self.placed, 1):
            placed.number = number
            placed.offset = space.take(_shape(placed))
        self.areas = [*space.cuts, space.end]
        self.shared_block = space.end // BLOCK
        block = self.shared_block + blocks_of(len(self.shared))
        for placed in sorted(self.placed, key=lambda one: one.inode.kind == stat.S_IFREG):
            block = _give_blocks(placed, block)
        if block > NOWHERE:
            raise ContentError(f"{block} blocks are more than EROFS can count")
        self.blocks = block


def _shape(placed: Placed) -> int:
    """Sets size and layout, and returns how many bytes the inode takes with what stands behind it."""
    inode = placed.inode
    head = INODE + len(placed.attributes)
    if inode.kind == stat.S_IFREG:
        placed.size = inode.size
        placed.chunks = chunks_of(inode.size, inode.segments)
    elif inode.kind == stat.S_IFLNK:
        placed.size = len(inode.target)
    elif inode.kind == stat.S_IFDIR:
        *full, (_, _, used) = directory_blocks(list(placed.names))
        placed.size = len(full) * BLOCK + used
    else:
        try:
            placed.where = device_number(*inode.device) if inode.kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        except ValueError as error:
            raise ContentError(f"{visible_bytes(inode.path)}: {error}") from None
    if placed.chunks:
        placed.layout, placed.where = CHUNKED, placed.chunks.bits
        return head + placed.chunks.map_size
    tail = placed.size % BLOCK
    # The kernel reads a tail from one block.
    if tail and head + tail <= BLOCK:
        placed.layout, placed.tail = INLINE, tail
    return head + placed.tail


def _give_blocks(placed: Placed, block: int) -> int:
    """Puts what does not stand behind the inode at ``block``, and returns the next one that is free."""
    if placed.chunks:
        return placed.chunks.place(block)
    if count := blocks_of(placed.size - placed.tail):
        placed.where = block
    return block + count


class _Space:
    """Gives out slots from ``end`` on, so that what fits into one block lies in one: in the fullest that has room.

    ``cuts`` are where areas end that nothing is put into any more, so that each can be made in memory.
    """

    def __init__(self, end: int) -> None:
        self.end = end
        self.cuts: list[int] = []
        self._cut = end + AREA
        self._gaps: list[list[int]] = [[] for _ in range(BLOCK // SLOT + 1)]
        # A bit for each size of which there are gaps.
        self._sizes = 0

    def take(self, size: int) -> int:
        slots = -(-size // SLOT)
        if fitting := self._sizes >> slots:
            free = slots + (fitting & -fitting).bit_length() - 1
            gaps = self._gaps[free]
            offset = gaps.pop()
            if not gaps:
                self._sizes ^= 1 << free
        else:
            if self.end >= self._cut:
                self._begin_area()
            offset, free = self.end, blocks_of(size) * BLOCK // SLOT
            self.end += free * SLOT
        if left := free - slots:
            self._gaps[left].append(offset + slots * SLOT)
            self._sizes |= 1 << left
        return offset

    def _begin_area(self) -> None:
        self.cuts.append(self.end)
        self._cut = self.end + AREA
        self._sizes = 0
        for gaps in self._gaps:
            gaps.clear()
