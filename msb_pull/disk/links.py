"""Which names share an inode, what lies in each directory, and how many links that makes."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from msb_pull.disk.inode import Inode


_NONE: dict[bytes, Any] = {}


class Linked:
    """One inode of an image. ``names`` are those of a directory in the order of their bytes, with what they name, its
    dots included; ``links`` counts the names that lead to it."""

    __slots__ = ("inode", "links", "names")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        # None of its own for each of tens of thousands of files.
        self.names: dict[bytes, Self] = {} if inode.kind == stat.S_IFDIR else _NONE
        self.links = 0


_Linked = TypeVar("_Linked", bound=Linked)


def linked(inodes: Iterable[Inode], make: Callable[[Inode], _Linked]) -> list[_Linked]:
    """What ``make`` makes of each inode, the top first; further names of a file make none of their own."""
    by_path: dict[bytes, _Linked] = {}
    found: list[_Linked] = []
    for inode in inodes:
        if inode.link_of is None:
            new = by_path[inode.path] = make(inode)
            found.append(new)
        else:
            new = by_path[inode.path] = by_path[inode.link_of]
        parent, _, name = inode.path.rpartition(b"/")
        above = by_path[parent]
        if inode.kind == stat.S_IFDIR:
            new.names = {b".": new, b"..": above}
            # Its name in the directory above, and its own dot; its ".." counts there.
            new.links += 1
        new.links += 1
        if inode.path:
            above.names[name] = new
            above.links += inode.kind == stat.S_IFDIR
    for one in found:
        if one.names:
            one.names = dict(sorted(one.names.items()))
    return found
