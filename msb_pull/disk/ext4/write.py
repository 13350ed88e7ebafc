"""Writes the image of a tree. The same tree, size and UUID give the same bytes everywhere."""

from __future__ import annotations

import stat
from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from msb_pull.disk.behind import one_place
from msb_pull.disk.ext4.format import (
    JOURNAL,
    NO_BLOCKS,
    NO_INODES,
    ROOT,
    ZEROED,
    directory_blocks,
    group_descriptor,
    inode,
    journal_super_block,
    super_block,
)
from msb_pull.disk.ext4.geometry import BLOCK, GROUP, INODE, RESERVED
from msb_pull.disk.ext4.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from msb_pull.disk.ext4.layout import Placed
    from msb_pull.disk.inode import Inode

_SUPER = 1024


class Output(Protocol):
    """What takes the image: an empty file, of which what is never written reads as zeros."""

    def write(self, data: bytes | memoryview, /) -> int: ...
    def seek(self, offset: int, /) -> int: ...
    def truncate(self, size: int, /) -> int: ...


def write_image(
    out: Output, inodes: Iterable[Inode], *, uuid: bytes, size: int | None, progress: Callable[[int], None]
) -> int:
    """Writes the image of ``inodes`` into the empty file ``out``, and returns its size.

    They come sorted component for component, the top first. ``uuid`` is 16 bytes, ``size`` that of the image in bytes,
    by default what the tree takes plus a tenth plus 64 MiB. ``progress`` gets the size of each piece of content and may
    raise. Attributes that ext4 cannot hold are left out (see :func:`attributes.foreign`). Memory grows with the number
    of inodes alone. Raises UsageError for a size that is too small, ContentError, and what contents and ``out`` raise.
    """
    layout = Layout(inodes, _Journal(), size)
    image = _Image(out)
    _write_books(image, layout, uuid)
    _write_inodes(image, layout)
    image.put(layout.journal.extents[0][1], journal_super_block(layout.geometry.journal))
    for placed in layout.placed:
        for where, data in placed.tree:
            image.put(where, data)
        if placed.block:
            image.put(placed.block_at, placed.block)
        if placed.inode.kind == stat.S_IFDIR:
            blocks = directory_blocks(placed.entries())
            for first, where, count in placed.extents:
                image.put(where, b"".join(blocks[first : first + count]))
        elif placed.inode.kind == stat.S_IFLNK and placed.extents:
            image.put(placed.extents[0][1], placed.inode.target)
    for placed in layout.placed:
        if placed.inode.kind == stat.S_IFREG:
            _write_content(image, placed, progress)
    out.truncate(layout.geometry.size)
    return layout.geometry.size


class _Journal:
    """The inode of the journal, as what is asked of a tree."""

    path = target = b""
    kind, mode = stat.S_IFREG, 0o600
    uid = gid = mtime_ns = size = 0
    device = (0, 0)
    link_of: bytes | None = None
    segments: Sequence[tuple[int, int]] | None = ()
    xattrs: Mapping[bytes, bytes] = {}

    def pieces(self, _: object = None, /) -> Iterator[tuple[int, bytes]]:
        return iter(())


def _write_books(image: _Image, layout: Layout, uuid: bytes) -> None:
    """The superblock, the descriptors of groups and their bitmaps."""
    shape = layout.geometry
    used_inodes = RESERVED + layout.inodes
    folders = _folders(layout)
    descriptors = []
    free_blocks = 0
    for group in range(shape.groups):
        bitmap, free, untouched = layout.space.taken(group)
        used = min(max(used_inodes - group * shape.per_group, 0), shape.per_group)
        # As mke2fs, not the last one, which may end early.
        flags = ZEROED | (NO_BLOCKS if untouched and group < shape.groups - 1 else 0) | (0 if used else NO_INODES)
        if not flags & NO_BLOCKS:
            image.put(layout.bitmaps[group], bitmap)
        if used:
            image.put(layout.maps[group], _inode_bitmap(used, shape.per_group))
        free_blocks += free
        places = layout.bitmaps[group], layout.maps[group], layout.tables[group]
        unused = shape.per_group - used
        descriptors.append(group_descriptor(group, uuid, places, (free, unused, folders[group], flags, unused)))
    counts = free_blocks, shape.groups * shape.per_group - used_inodes
    journal = layout.journal.map, layout.journal.size
    for group in (0, *shape.copies()):
        copy = super_block(shape, group, counts, uuid, journal)
        image.put(group * GROUP, copy, 0 if group else _SUPER)
        image.put(group * GROUP + 1, b"".join(descriptors))


def _folders(layout: Layout) -> list[int]:
    """How many directories have their inode in each group."""
    counts = [0] * layout.geometry.groups
    for placed in layout.placed:
        counts[(placed.number - 1) // layout.geometry.per_group] += placed.inode.kind == stat.S_IFDIR
    return counts


def _inode_bitmap(used: int, count: int) -> bytes:
    """The first ``used`` are taken, and those beyond the last one are set."""
    bits = (1 << used) - 1 | (1 << 8 * BLOCK) - (1 << count)
    return bits.to_bytes(BLOCK, "little")


def _write_inodes(image: _Image, layout: Layout) -> None:
    per_group = layout.geometry.per_group
    # The reserved ones all lie in the first group.
    first = bytearray(RESERVED * INODE)
    for placed, number in ((layout.placed[0], ROOT), (layout.journal, JOURNAL)):
        first[(number - 1) * INODE : number * INODE] = _inode(placed)
    packed = [bytes(first)]
    at = 0
    for group, table in enumerate(layout.tables):
        count = per_group - (RESERVED if group == 0 else 0)
        packed += map(_inode, layout.placed[1 + at : 1 + at + count])
        at += count
        if packed:
            image.put(table, b"".join(packed))
        packed = []


def _inode(placed: Placed) -> bytes:
    one = placed.inode
    return inode(
        mode=one.kind | one.mode,
        owner=(one.uid, one.gid),
        size=placed.size,
        mtime_ns=one.mtime_ns,
        links=placed.links,
        taken=placed.taken,
        flags=placed.flags,
        map=placed.map,
        attributes=(placed.behind, placed.block_at),
    )


def _write_content(image: _Image, placed: Placed, progress: Callable[[int], None]) -> None:
    extents = placed.extents
    firsts = [first for first, _, _ in extents]
    for offset, piece in placed.inode.pieces(image.room):
        view, at = memoryview(piece), offset
        while view:
            first, where, count = extents[bisect_right(firsts, at // BLOCK) - 1]
            inside = at - first * BLOCK
            part = view[: count * BLOCK - inside]
            image.put(where, part, inside)
            view, at = view[len(part) :], at + len(part)
        progress(len(piece))


class _Image:
    def __init__(self, out: Output) -> None:
        self._out = out
        self._at = -1
        self.room = one_place()

    def put(self, block: int, data: bytes | memoryview, inside: int = 0) -> None:
        """Writes from a byte behind the start of a block on."""
        offset = block * BLOCK + inside
        if offset != self._at:
            self._out.seek(offset)
        view = memoryview(data)
        # A raw file may take less than it is given.
        while view:
            view = view[self._out.write(view) :]
        self._at = offset + len(data)
