"""What stands at each path of a layer, as its record and its notes say."""

from __future__ import annotations

import os
import stat
from binascii import a2b_base64

from msb_pull.layer.attributes import IMPLIED, IMPLIED_MODE, disk_mode, disk_name, override_stat
from msb_pull.layer.tar.entry import BLK, CHR, DIR, FIFO, REG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from msb_pull.layer.tar.entry import Entry

_KINDS = {REG: stat.S_IFREG, DIR: stat.S_IFDIR, CHR: stat.S_IFCHR, BLK: stat.S_IFBLK, FIFO: stat.S_IFIFO}
# Nearly all have none, and a dictionary of its own for each would take a tenth of the memory of a tree.
_NO_ATTRIBUTES: Mapping[bytes, bytes] = {}
_SYMLINK = override_stat(stat.S_IFLNK, 0o777, 0, 0)


class Node:
    """One inode: hard links share it. ``index`` is the entry whose payload it holds, -1 for none.

    ``kind`` is the type on disk (devices are empty files, ``device`` is their number). ``mtime_ns`` is the image's,
    also where a disk has no room for it, and None where nothing is said of it. ``origin`` is where the original of a
    copy from a lower layer lies, whose content is in no payload, and ``sha256`` (hex) what the notes say of it;
    ``copy`` is the entry whose payload stands here as well as elsewhere. Of the attributes of a ``partial`` one the
    file system did not take all. A directory is ``implied`` while no entry describes it.
    """

    __slots__ = (
        *("attributes", "copy", "device", "implied", "index", "kind", "link"),
        *("mode", "mtime_ns", "override", "origin", "partial", "sha256", "size"),
    )

    def __init__(self, kind: int, mode: int, override: bytes, mtime_ns: int | None) -> None:
        self.kind = kind
        self.mode = mode
        self.override = override
        self.mtime_ns = mtime_ns
        self.size = 0
        self.index = self.copy = -1
        self.partial = False
        self.sha256 = ""
        self.origin: bytes | None = None
        self.device: tuple[int, int] | None = None
        self.link = b""
        self.attributes: Mapping[bytes, bytes] = _NO_ATTRIBUTES
        self.implied = False

    @classmethod
    def of_nothing(cls) -> Node:
        """A directory that no entry describes."""
        node = cls(stat.S_IFDIR, IMPLIED_MODE, IMPLIED, None)
        node.implied = True
        return node

    @classmethod
    def of_entry(cls, entry: Entry, said: dict[tuple[int, int, int, int], tuple[int, bytes]]) -> Node:
        """What an entry makes that is neither a link nor a whiteout.

        ``said`` keeps what entries of the same type, mode and owner have: few differ.
        """
        kind = _KINDS[entry.type]
        on_disk = kind if kind == stat.S_IFDIR else stat.S_IFREG
        key = kind, entry.mode, entry.uid, entry.gid
        if (known := said.get(key)) is None:
            known = said[key] = disk_mode(on_disk, entry.mode), override_stat(*key)
        node = cls(on_disk, *known, entry.mtime_ns)
        if entry.xattrs:
            named = ((disk_name(name), value) for name, value in entry.xattrs.items())
            node.attributes = {kept: value for kept, value in named if kept is not None}
        if entry.type == REG:
            node.size = entry.size
            node.index = entry.index if entry.stored else -1
        elif entry.type in (CHR, BLK):
            node.device = entry.devmajor, entry.devminor
        return node

    @classmethod
    def of_symlink(cls, entry: Entry) -> Node:
        """A symlink, whose owner most systems have no room for."""
        override = override_stat(stat.S_IFLNK, entry.mode, entry.uid, entry.gid)
        node = cls(stat.S_IFLNK, 0, override, entry.mtime_ns)
        node.link = entry.linkname
        return node

    @classmethod
    def of_whiteout(cls, entry: Entry) -> Node:
        """The empty file that stands for a whiteout."""
        override = override_stat(stat.S_IFREG, entry.mode, entry.uid, entry.gid)
        return cls(stat.S_IFREG, disk_mode(stat.S_IFREG, entry.mode), override, entry.mtime_ns)

    @classmethod
    def of_fact(cls, fact: dict[str, Any]) -> Node:
        """A copy from a lower layer, as derived (:mod:`msb_pull.layer.settle.derive`); raises ValueError, KeyError."""
        if "symlink" in fact:
            node = cls(stat.S_IFLNK, 0, _SYMLINK, fact["mtime_ns"])
            node.link = os.fsencode(fact["symlink"])
        else:
            override = fact["override"].encode("ascii")
            mode = int(override.split(b":")[2], 8)
            node = cls(stat.S_IFREG, disk_mode(stat.S_IFREG, mode), override, fact["mtime_ns"])
            node.size = int(fact["size"])
            node.sha256 = str(fact.get("sha256", ""))
            node.attributes = decoded(fact["xattrs"].items())
        node.origin = os.fsencode(fact["real"])
        return node

    def dress(self, fact: dict[str, Any]) -> None:
        """Gives a directory what was derived for it; what the layer itself hides tells nothing more of it."""
        self.implied = self.implied and not fact.get("hidden", False)
        self.override = fact["override"].encode("ascii")
        self.mtime_ns = fact["mtime_ns"]
        self.attributes = decoded(fact["xattrs"].items())

    def duplicate(self) -> Node:
        """Another inode with the same facts, where a hard link was refused."""
        made = Node(self.kind, self.mode, self.override, self.mtime_ns)
        made.size, made.link, made.attributes, made.partial = self.size, self.link, self.attributes, self.partial
        made.device = self.device
        made.copy = self.index if self.index >= 0 else self.copy
        return made


def decoded(attributes: Iterable[tuple[str, str]]) -> dict[bytes, bytes]:
    """Attributes from facts; raises ValueError."""
    return {os.fsencode(name): a2b_base64(value) for name, value in attributes}


class NodeIndex:
    """Nodes by their paths, ``b""`` the top. Only :meth:`put` sees to it that parents are directories.

    Callers may replace a node in ``nodes`` itself, but not add or remove one.
    """

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {b"": Node.of_nothing()}
        # What lies in each directory. Most layers never ask, and keeping it would cost each of their entries.
        self._inside: dict[bytes, dict[bytes, None]] | None = None

    @property
    def implied(self) -> list[bytes]:
        """The directories without an entry."""
        return [path for path, node in self.nodes.items() if node.implied]

    def inside(self, path: bytes) -> Iterable[bytes]:
        """The paths of what lies in a directory."""
        if self._inside is None:
            self._inside = {}
            for known in self.nodes:
                if known:
                    self._inside.setdefault(known.rpartition(b"/")[0], {})[known] = None
        return self._inside.get(path, ())

    def below(self, path: bytes) -> list[bytes]:
        """All paths below a directory, parents first."""
        found = list(self.inside(path))
        for below in found:
            found += self.inside(below)
        return found

    def has_parent(self, path: bytes) -> bool:
        """Whether there is a directory that ``path`` would lie in."""
        parent = self.nodes.get(path.rpartition(b"/")[0])
        return parent is not None and parent.kind == stat.S_IFDIR

    def put(self, path: bytes, node: Node) -> None:
        """Sets a node; removes what stood there or in the way of its parents."""
        nodes = self.nodes
        parent = nodes.get(path.rpartition(b"/")[0])
        if parent is None or parent.kind != stat.S_IFDIR:
            self.make_parents(path)
        if path in nodes:
            self.drop(path)
        self.set(path, node)

    def set(self, path: bytes, node: Node) -> None:
        """Puts a node where its parent is known to be a directory, and where nothing lies below."""
        self.nodes[path] = node
        if self._inside is not None:
            self._inside.setdefault(path.rpartition(b"/")[0], {})[path] = None

    def drop(self, path: bytes) -> None:
        """Removes what stands at a path, if anything, and all below."""
        node = self.nodes.get(path)
        if node is None:
            return
        if node.kind == stat.S_IFDIR:
            for below in self.below(path):
                del self.nodes[below]
                self._forget(below)
        del self.nodes[path]
        self._forget(path)

    def make_parents(self, path: bytes) -> None:
        """Makes directories of all that ``path`` lies in."""
        parent = path.rpartition(b"/")[0]
        missing = []
        while (node := self.nodes.get(parent)) is None or node.kind != stat.S_IFDIR:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for parent in reversed(missing):
            made = Node.of_nothing()
            # A file there replaced the lower directory, whose attributes no longer apply.
            made.implied = parent not in self.nodes
            self.drop(parent)
            self.set(parent, made)

    def _forget(self, path: bytes) -> None:
        if self._inside is not None:
            self._inside.pop(path, None)
            self._inside.get(path.rpartition(b"/")[0], {}).pop(path, None)
