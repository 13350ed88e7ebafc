"""Writes the image of a tree. The same tree and UUID give the same bytes everywhere."""

from __future__ import annotations

import stat
import threading
from typing import TYPE_CHECKING, Protocol

from msb_pull.disk.behind import Behind
from msb_pull.disk.erofs import format as erofs
from msb_pull.disk.erofs.format import BLOCK, directory_block, directory_blocks, super_block
from msb_pull.disk.erofs.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from msb_pull.disk.erofs.layout import Placed
    from msb_pull.disk.inode import Inode


class Output(Protocol):
    """What takes the image: a file that can go back."""

    def write(self, data: bytes | memoryview, /) -> int: ...
    def seek(self, offset: int, /) -> int: ...


def write_image(
    out: Output, inodes: Iterable[Inode], *, uuid: bytes, progress: Callable[[int], None], aside: bool = False
) -> int:
    """Writes the image of ``inodes`` from the start of ``out``, and returns its size.

    They come sorted component for component, the top first. ``uuid`` is 16 bytes; ``progress`` gets the size of each
    piece of content and may raise. ``aside``: threads write into ``out``, which never waits for anybody. Attributes
    that EROFS cannot hold are left out (see :func:`attributes.foreign`). Memory grows with the number of inodes alone.
    Raises ContentError, and what contents and ``out`` raise.
    """
    layout = Layout(inodes)
    image = _Image(out)
    with image.part(0, aside=aside) as head, image.part(layout.shared_block * BLOCK, aside=aside) as body:
        head.put(_super_block(layout, uuid))
        body.put(layout.shared)
        for placed in layout.placed:
            if placed.inode.kind != stat.S_IFREG and placed.size > placed.tail:
                body.put_at(placed.where * BLOCK, _own_content(placed)[: placed.size - placed.tail])
        area = _Area(layout.areas)
        for placed in layout.placed:
            if placed.offset >= area.end:
                head.put(area.data)
                area.follow()
            area.put(placed.offset, _metadata(placed))
            if placed.inode.kind == stat.S_IFREG:
                _write_content(placed, area, body, progress)
        head.put(area.data)
        body.put_at(layout.blocks * BLOCK, b"")
    return layout.blocks * BLOCK


def _super_block(layout: Layout, uuid: bytes) -> bytes:
    return super_block(
        root=layout.placed[0].nid,
        inodes=len(layout.placed),
        blocks=layout.blocks,
        shared=layout.shared_block if layout.shared else 0,
        uuid=uuid,
        chunked=any(placed.chunks for placed in layout.placed),
    )


def _metadata(placed: Placed) -> bytes:
    """The inode with its attributes, and what stands behind it but for the tail of a file."""
    one = placed.inode
    head = erofs.inode(
        layout=placed.layout,
        attributes=len(placed.attributes),
        mode=one.kind | one.mode,
        size=placed.size,
        where=placed.where,
        number=placed.number,
        owner=(one.uid, one.gid),
        mtime_ns=one.mtime_ns,
        links=placed.links,
    )
    behind = b""
    if placed.chunks:
        behind = placed.chunks.map()
    elif placed.tail and one.kind != stat.S_IFREG:
        behind = _own_content(placed)[placed.size - placed.tail :]
    return head + placed.attributes + behind


def _own_content(placed: Placed) -> bytes:
    """The content of a symlink or a directory."""
    if placed.inode.kind == stat.S_IFLNK:
        return placed.inode.target
    return b"".join(_directory(placed))


def _directory(placed: Placed) -> Iterator[bytes]:
    entries = [(name, one.nid, one.inode.kind) for name, one in placed.names.items()]
    *full, last = directory_blocks(list(placed.names))
    for first, end, _ in full:
        yield directory_block(entries[first:end]).ljust(BLOCK, b"\0")
    yield directory_block(entries[last[0] :])


def _write_content(placed: Placed, area: _Area, body: _Part, progress: Callable[[int], None]) -> None:
    """Writes a file where its layout has it."""
    inode, start = placed.inode, placed.where * BLOCK
    if inode.segments is None and placed.size > placed.tail:
        body.put_at(start, b"")
    tail_at = placed.size - placed.tail
    for offset, piece in inode.pieces(body.room) if inode.segments is None else inode.pieces():
        if placed.chunks:
            for at, part in placed.chunks.cut(offset, piece):
                body.put_at(at, part)
        elif inode.segments is None:
            body.took(min(max(tail_at - offset, 0), len(piece)))
        elif offset < tail_at:
            body.put_at(start + offset, piece[: tail_at - offset])
        if placed.tail and offset + len(piece) > tail_at:
            rest = piece[max(tail_at - offset, 0) :]
            area.put(placed.behind + max(offset - tail_at, 0), rest)
        progress(len(piece))


class _Area:
    """A stretch of inodes, which ends at ``end``: ``data`` is made in any order."""

    def __init__(self, ends: Iterable[int]) -> None:
        self._ends = iter(ends)
        self.end = BLOCK
        self.follow()

    def follow(self) -> None:
        """Goes on to the next one."""
        self._start, self.end = self.end, next(self._ends)
        self.data = bytearray(self.end - self._start)

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Puts what is to stand at ``offset`` in the image."""
        at = offset - self._start
        self.data[at : at + len(data)] = data


class _Part(Behind):
    """A part of the image, written forwards from ``start`` on."""

    def __init__(self, image: _Image, start: int, *, aside: bool) -> None:
        super().__init__(self._forward, aside=aside)
        self._image = image
        self._start = self._end = start

    def put_at(self, offset: int, data: bytes | memoryview) -> None:
        """Puts what is to stand at ``offset`` in the image, the end so far or beyond it; zeros come between."""
        self.zeros(offset - self._start - self.size)
        self.put(data)

    def _forward(self, data: memoryview) -> None:
        self._image.write_at(self._end, data)
        self._end += len(data)


class _Image:
    """The output, of which several parts are written at a time."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._lock = threading.Lock()

    def part(self, start: int, *, aside: bool) -> _Part:
        """What is to stand from ``start`` on."""
        return _Part(self, start, aside=aside)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Writes all of it."""
        with self._lock:
            self._out.seek(offset)
            # A raw file may take less than it is given.
            while data:
                data = data[self._out.write(data) :]
