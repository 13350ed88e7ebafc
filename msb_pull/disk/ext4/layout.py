"""Decides where everything lies, before anything is written: all sizes are known, contents are not needed.

The order is: superblock, group descriptors, bitmaps, inodes, journal, directories with all else that is no file's
content, contents. So the content passes once.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from msb_pull.disk.ext4.attributes import packed
from msb_pull.disk.ext4.format import (
    EXTENTS,
    FIRST,
    MOST,
    ROOT,
    SHORT,
    device_map,
    entry_size,
    extent_blocks,
    extent_map,
)
from msb_pull.disk.ext4.geometry import BLOCK, chosen, too_small
from msb_pull.disk.ext4.space import Full, Space
from msb_pull.disk.links import Linked, linked
from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import visible_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from msb_pull.disk.inode import Inode

_DOTS = (b".", b"..")
_MOST_LINKS = 65_000


class Placed(Linked):
    """One inode and its place. ``extents`` are (first block of the file, of the file system, count), ``map`` what the
    inode says of them, ``tree`` more blocks of that map (where, what). Attributes stand ``behind`` its fields or in
    ``block``, which is number ``block_at``."""

    __slots__ = ("behind", "block", "block_at", "extents", "flags", "map", "number", "runs", "size", "tree")

    def __init__(self, inode: Inode) -> None:
        super().__init__(inode)
        self.number = 0
        self.extents: list[tuple[int, int, int]] = []
        self.tree: list[tuple[int, bytes]] = []
        self.map = b""
        self.flags = 0
        self.size = 0
        self.runs: list[tuple[int, int]] = []
        self.block_at = 0
        try:
            self.behind, self.block = packed(inode.xattrs)
        except ValueError as error:
            raise ContentError(f"{visible_bytes(inode.path)}: {error}") from None

    @property
    def content(self) -> int:
        """How many blocks it takes; of its map, at most."""
        extents = sum(count // MOST + 2 for _, count in self.runs)
        return sum(count for _, count in self.runs) + extent_blocks(extents) + (self.block != b"")

    @property
    def taken(self) -> int:
        """How many blocks it has taken."""
        return sum(count for _, count in self.runs) + len(self.tree) + (self.block != b"")

    def entries(self) -> Iterator[tuple[bytes, int, int]]:
        """The names of a directory, its dots first, as (name, inode, kind)."""
        for name in (*_DOTS, *(name for name in self.names if name not in _DOTS)):
            one = self.names[name]
            yield name, one.number, one.inode.kind

    def place(self, space: Space) -> None:
        """Takes the blocks for content, map and attributes; raises Full."""
        for first, count in self.runs:
            for where, length in space.take(count, MOST):
                self.extents.append((first, where, length))
                first += length
        if self.flags:
            self.map, self.tree = extent_map(self.extents, _each(space))
        if self.block:
            self.block_at = next(_each(space))


class Layout:
    """The file system of a tree: ``placed`` in the order of the tree, where the top is the first; the others count
    their numbers from the first that is free. ``bitmaps``, ``maps`` and ``tables`` are where the bitmaps of blocks and
    of inodes, and the inodes of each group begin, ``journal`` is the inode of the journal, which has no name.

    Raises UsageError for a ``size`` (bytes) that is too small, ContentError for what ext4 cannot hold.
    """

    def __init__(self, inodes: Iterable[Inode], journal: Inode, size: int | None) -> None:
        self.placed = linked(inodes, Placed)
        for number, placed in enumerate(self.placed, FIRST - 1):
            placed.number = number
            _shape(placed)
        self.placed[0].number = ROOT
        self.inodes = len(self.placed) - 1
        content = sum(placed.content for placed in self.placed)
        self.geometry = chosen(size, content, self.inodes)
        self.journal = Placed(journal)
        self.journal.links = 1
        self.journal.flags = EXTENTS
        self.journal.size = self.geometry.journal * BLOCK
        self.journal.runs = [(0, self.geometry.journal)]
        self.space = Space(self.geometry)
        try:
            self._place()
        except Full:
            # By the few blocks that lie between structures which must not be cut.
            raise too_small(self.geometry.size, content, self.inodes) from None

    def _place(self) -> None:
        groups, space = self.geometry.groups, self.space
        self.bitmaps = [space.take_together(1) for _ in range(groups)]
        self.maps = [space.take_together(1) for _ in range(groups)]
        self.tables = [space.take_together(self.geometry.tables) for _ in range(groups)]
        self.journal.place(space)
        for placed in sorted(self.placed, key=lambda one: one.inode.kind == stat.S_IFREG):
            placed.place(space)


def _each(space: Space) -> Iterator[int]:
    while True:
        yield space.take(1)[0][0]


def _shape(placed: Placed) -> None:
    """Sets size, and which blocks of it hold anything, or the map where it takes none."""
    inode = placed.inode
    if inode.kind == stat.S_IFREG:
        placed.size, placed.flags = inode.size, EXTENTS
        placed.runs = _runs(inode)
    elif inode.kind == stat.S_IFDIR:
        count = _directory(placed.names)
        placed.size, placed.flags, placed.runs = count * BLOCK, EXTENTS, [(0, count)]
    elif inode.kind == stat.S_IFLNK:
        placed.size = len(inode.target)
        if placed.size >= BLOCK:
            raise ContentError(f"{visible_bytes(inode.path)}: a symlink's target of {placed.size} bytes is too long")
        if placed.size < SHORT:
            placed.map = inode.target.ljust(SHORT, b"\0")
        else:
            placed.flags, placed.runs = EXTENTS, [(0, 1)]
    elif inode.kind in (stat.S_IFCHR, stat.S_IFBLK):
        try:
            placed.map = device_map(*inode.device)
        except ValueError as error:
            raise ContentError(f"{visible_bytes(inode.path)}: {error}") from None
    else:
        placed.map = bytes(SHORT)
    if placed.links > _MOST_LINKS and inode.kind != stat.S_IFDIR:
        raise ContentError(f"{visible_bytes(inode.path)}: ext4 takes no more than {_MOST_LINKS} names of a file")


def _runs(inode: Inode) -> list[tuple[int, int]]:
    """The blocks of a file that hold anything, as (first, count)."""
    runs: list[tuple[int, int]] = []
    for offset, length in ((0, inode.size),) if inode.segments is None else inode.segments:
        if not length:
            continue
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        if runs and first <= sum(runs[-1]):
            first = runs.pop()[0]
        runs.append((first, end - first))
    return runs


def _directory(names: Iterable[bytes]) -> int:
    """How many blocks the names of a directory take, in the order of :meth:`Placed.entries`."""
    blocks, used = 1, sum(map(entry_size, _DOTS))
    for name in names:
        if name in _DOTS:
            continue
        size = entry_size(name)
        if used + size > BLOCK:
            blocks, used = blocks + 1, 0
        used += size
    return blocks
