"""Writes the image of a tree. The same tree and UUID give the same bytes everywhere."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Protocol

from msb_pull.disk.erofs.format import BLOCK, directory_block, directory_blocks, inode, super_block
from msb_pull.disk.erofs.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from msb_pull.disk.erofs.layout import Placed
    from msb_pull.disk.inode import Inode

_ZEROS = bytes(1 << 18)


class Output(Protocol):
    """What takes the image: a file that can go back."""

    def write(self, data: bytes | memoryview, /) -> int: ...
    def seek(self, offset: int, /) -> int: ...


def write_image(out: Output, inodes: Iterable[Inode], *, uuid: bytes, progress: Callable[[int], None]) -> int:
    """Writes the image of ``inodes`` from the start of ``out``, and returns its size.

    They come sorted component for component, the top first. ``uuid`` is 16 bytes; ``progress`` gets the size of each
    piece of content and may raise. Attributes that EROFS cannot hold are left out (see :func:`attributes.foreign`).
    Memory grows with the number of inodes alone. Raises ContentError, and what contents and ``out`` raise.
    """
    layout = Layout(inodes)
    root, *_ = layout.placed
    image = _Image(out)
    image.append(
        0,
        super_block(
            root=root.nid,
            inodes=len(layout.placed),
            blocks=layout.blocks,
            shared=layout.shared_block if layout.shared else 0,
            uuid=uuid,
            chunked=any(placed.chunks for placed in layout.placed),
        ),
    )
    for placed in sorted(layout.placed, key=lambda one: one.offset):
        image.append(placed.offset, _metadata(placed))
    image.append(layout.shared_block * BLOCK, layout.shared)
    for placed in layout.placed:
        if placed.inode.kind != stat.S_IFREG and placed.size > placed.tail:
            image.append(placed.where * BLOCK, _own_content(placed)[: placed.size - placed.tail])
    for placed in layout.placed:
        if placed.inode.kind == stat.S_IFREG:
            for offset, piece in placed.inode.pieces():
                _put(image, placed, offset, piece)
                progress(len(piece))
    image.append(layout.blocks * BLOCK, b"")
    return layout.blocks * BLOCK


def _metadata(placed: Placed) -> bytes:
    """The inode with its attributes, and what stands behind it but for the tail of a file."""
    one = placed.inode
    head = inode(
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


def _put(image: _Image, placed: Placed, offset: int, piece: bytes) -> None:
    """Writes a piece of a file where its layout has it."""
    if placed.chunks:
        for at, part in placed.chunks.cut(offset, piece):
            image.append(at, part)
        return
    tail_at = placed.size - placed.tail
    if body := piece[: max(tail_at - offset, 0)]:
        image.append(placed.where * BLOCK + offset, body)
    if rest := piece[len(body) :]:
        image.put_back(placed.behind + offset + len(body) - tail_at, rest)


class _Image:
    """Writes forwards, with zeros where nothing is, and now and then to a place that lies behind."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._end = 0
        out.seek(0)

    def append(self, offset: int, data: bytes) -> None:
        """Writes at ``offset``, which is the end so far or beyond it."""
        while self._end < offset:
            self._end += self._write(_ZEROS[: offset - self._end])
        self._end += self._write(data)

    def put_back(self, offset: int, data: bytes) -> None:
        """Writes over zeros that stand already."""
        self._out.seek(offset)
        self._write(data)
        self._out.seek(self._end)

    def _write(self, data: bytes) -> int:
        view = memoryview(data)
        # A raw file may take less than it is given.
        while view:
            view = view[self._out.write(view) :]
        return len(data)
