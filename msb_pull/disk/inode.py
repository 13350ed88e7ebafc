"""What the writer asks of a tree. Whoever has such objects can have an image of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Inode(Protocol):
    """One name of a tree.

    ``path`` is relative without a leading slash, ``b""`` is the top. ``kind`` is one of the ``stat.S_IF…`` bits and
    ``mode`` the other twelve. ``size`` is that of a regular file, ``target`` what a symlink names, ``device`` (major,
    minor). ``link_of`` is the first name of the file where this is another one. ``segments`` are where (offset,
    length) a sparse file holds data, in order and apart; None means everywhere.
    """

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    target: bytes
    device: tuple[int, int]
    link_of: bytes | None

    @property
    def xattrs(self) -> Mapping[bytes, bytes]:
        """Names as the kernel has them, ``security.capability`` for instance."""

    @property
    def segments(self) -> Sequence[tuple[int, int]] | None: ...

    def pieces(self, room: Callable[[int], memoryview] = ..., /) -> Iterator[tuple[int, bytes | memoryview]]:
        """What a regular file holds, as (offset, bytes) in order and without holes.

        Each piece stands at the start of what ``room`` gives for so many bytes, or fewer, until that is asked again;
        without it, in a place of its own.
        """
