"""What a layer's directory must look like, worked out from its record and notes without looking at the directory."""

from __future__ import annotations

import os
import stat
from binascii import a2b_base64

from msb_pull.layer.attributes import clamp_time, disk_mode, disk_name, override_stat
from msb_pull.layer.names import clean
from msb_pull.layer.record import entries
from msb_pull.layer.tar import BLK, CHR, DIR, FIFO, LNK, REG, SYM

# Importing typing takes longer than verifying a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from msb_pull.layer.entry import Entry
    from msb_pull.layer.record import Notes

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_PLINKS = b".wh..wh.plnk"
_KINDS = {REG: stat.S_IFREG, DIR: stat.S_IFDIR, CHR: stat.S_IFCHR, BLK: stat.S_IFBLK, FIFO: stat.S_IFIFO}
_IMPLIED = override_stat(stat.S_IFDIR, 0o755, 0, 0)


class Node:
    """One inode: hard links share it. ``index`` is the entry whose payload it holds, -1 for none.

    ``kind`` is the type on disk (devices are empty files); ``mtime_ns`` is None where nothing is said of it. ``origin``
    is where the original of a copy from a lower layer lies, whose content is in no payload, and ``sha256`` (hex) what
    the notes say of it; ``copy`` is the entry whose payload stands here as well as elsewhere. Of the attributes of a
    ``partial`` one the file system did not take all.
    """

    __slots__ = (
        *("attributes", "copy", "implied", "index", "kind", "link", "mode", "mtime_ns", "override", "partial"),
        *("origin", "sha256", "size"),
    )

    def __init__(self, kind: int, mode: int, override: bytes | None, mtime_ns: int | None) -> None:
        self.kind = kind
        self.mode = mode
        self.override = override
        self.mtime_ns = mtime_ns
        self.size = 0
        self.index = self.copy = -1
        self.partial = False
        self.sha256 = ""
        self.origin: bytes | None = None
        self.link = b""
        self.attributes: dict[bytes, bytes] = {}
        self.implied = False


def expected_tree(record: Path, notes: Notes) -> tuple[dict[bytes, Node], int]:
    """Every path below the layer's directory (``b""`` is its top) with what must stand there, and the number of entries
    whose content is gone because a later entry took its place. Raises ContentError.

    The rules are those of the tree writer: the last entry of a name wins, directories keep what they hold, a whiteout
    yields to what came in the same layer.
    """
    tree = Tree(notes)
    contents = 0
    for entry in entries(record):
        contents += entry.stored > 0
        tree.add(entry)
    tree.finish()
    tree.settle(notes.derived)
    kept = {node.index for node in tree.nodes.values() if node.index >= 0}
    return tree.nodes, contents - len(kept)


def content_paths(nodes: Mapping[bytes, Node]) -> dict[int, bytes]:
    """Where the payload of each entry lies, by the entry's index."""
    return {node.index: path for path, node in nodes.items() if node.index >= 0}


class Tree:
    """The tree of one layer: :meth:`add` its entries, :meth:`finish`, and :meth:`settle` it on those below.

    After :meth:`finish`, ``placed`` says where entries lie that lie elsewhere than they say, ``missing`` which hard
    links (entry index, path, target) lead to lower layers, and ``converted`` in which directories a whiteout of theirs
    is now the opaque marker. Of the notes only what the file system did not take is believed.
    """

    def __init__(self, notes: Notes) -> None:
        self.nodes: dict[bytes, Node] = {b"": _implied()}
        self.placed: dict[int, bytes] = {}
        self.missing: list[tuple[int, bytes, bytes]] = []
        self.converted: set[bytes] = set()
        self._copied = frozenset(notes.copied)
        self._unkept = frozenset(notes.unkept)
        self._links: dict[bytes, tuple[bytes, int]] = {}
        self._plinks: dict[bytes, int] = {}
        self._whiteouts: list[bytes] = []

    def add(self, entry: Entry) -> None:
        said = clean(entry.name)
        top = said.partition(b"/")[0]
        if top.startswith(_AUFS) and top != _OPAQUE:
            # A file there lies where it says until the layer is complete, for hard links to lead to it.
            if said.startswith(_PLINKS + b"/") and said.count(b"/") == 1 and entry.type == REG:
                self._put(said, self._taken(_file(entry), entry))
                self._plinks[said] = entry.index
            return
        path = self._place(entry, said)
        if path.startswith(_AUFS) and path != _OPAQUE:
            return
        name = path.rpartition(b"/")[2]
        if name.startswith(_WHITEOUT):
            self._put(path, _marker(entry))
            if name != _OPAQUE:
                self._whiteouts.append(path)
        elif entry.type == DIR:
            self._directory(path, entry)
        elif entry.type == LNK:
            said = clean(entry.linkname)
            target = self._real(said)
            if said in self._plinks:
                self.placed.setdefault(self._plinks[said], path)
            if (target != path or target not in self.nodes) and not self._link(path, target, entry.index):
                # A later entry of that name wins over a link that waits for its target, an earlier one does not.
                self._parents(path)
                self._drop(path)
                self._links.pop(path, None)
                self._links[path] = said, entry.index
        elif entry.type == SYM:
            node = Node(stat.S_IFLNK, 0, None, clamp_time(entry.mtime_ns))
            node.link = entry.linkname
            self._put(path, node)
        else:
            self._put(path, self._taken(_file(entry), entry))

    def finish(self) -> None:
        waiting = [link for link in self._links.items() if link[0] not in self.nodes and self._has_parent(link[0])]
        while waiting:
            still = [link for link in waiting if not self._link(link[0], self._real(link[1][0]), link[1][1])]
            if len(still) == len(waiting):
                break
            waiting = still
        self.missing = sorted((index, path, target) for path, (target, index) in waiting)
        for path in self._whiteouts:
            if self._settle_whiteout(path):
                self.converted.add(_hidden(path))
        self._drop(_PLINKS)

    @property
    def implied(self) -> list[bytes]:
        """The directories without an entry."""
        return [path for path, node in self.nodes.items() if node.implied]

    def settle(self, facts: Sequence[dict[str, Any]]) -> None:
        """Applies what was derived from the layers below; raises KeyError, TypeError, ValueError on others."""
        for fact in facts:
            if fact["kind"] == "moved":
                self._move(os.fsencode(fact["path"]), os.fsencode(fact["to"]))
        self._derived(facts)
        self._copies()

    def _place(self, entry: Entry, said: bytes) -> bytes:
        """Where an entry goes: symlinks of this layer on the way to its last name are followed."""
        parent = said.rpartition(b"/")[0]
        there = self.nodes.get(parent)
        if there is not None and there.kind == stat.S_IFDIR:
            return said
        path = self._real(said)
        if path != said:
            self.placed[entry.index] = path
        return path

    def _taken(self, node: Node, entry: Entry) -> Node:
        node.partial = entry.index in self._unkept
        return node

    def _put(self, path: bytes, node: Node) -> None:
        self._parents(path)
        if path in self.nodes:
            self._drop(path)
        self.nodes[path] = node

    def _directory(self, path: bytes, entry: Entry) -> None:
        there = self.nodes.get(path)
        if there is None or there.kind != stat.S_IFDIR:
            self._put(path, self._taken(_node(entry, stat.S_IFDIR), entry))
            return
        self.nodes[path] = self._taken(_node(entry, stat.S_IFDIR), entry)

    def _link(self, path: bytes, target: bytes, index: int) -> bool:
        node = self.nodes.get(target)
        # What stands below the link's own name goes when the link comes.
        if node is None or node.kind == stat.S_IFDIR or target.startswith(path + b"/"):
            return False
        if self.nodes.get(path) is not node:
            self._put(path, _copy(node) if index in self._copied else node)
        return True

    def _copies(self) -> None:
        """Where the original of a copy is gone, the copy holds the payload."""
        if not self._copied:
            return
        held = {node.index for node in self.nodes.values()}
        for node in self.nodes.values():
            if node.copy >= 0 and node.copy not in held:
                held.add(node.copy)
                node.index, node.copy = node.copy, -1

    def _parents(self, path: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        missing = []
        while (node := self.nodes.get(parent)) is None or node.kind != stat.S_IFDIR:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for parent in reversed(missing):
            made = _implied()
            # A file that stood there has replaced what lies below, so nothing there says how this directory looks.
            made.implied = parent not in self.nodes
            self._drop(parent)
            self.nodes[parent] = made

    def _has_parent(self, path: bytes) -> bool:
        parent = self.nodes.get(path.rpartition(b"/")[0])
        return parent is not None and parent.kind == stat.S_IFDIR

    def _drop(self, path: bytes) -> None:
        node = self.nodes.pop(path, None)
        if node is not None and node.kind == stat.S_IFDIR:
            inside = path + b"/"
            for below in [x for x in self.nodes if x.startswith(inside)]:
                del self.nodes[below]

    def _real(self, path: bytes) -> bytes:
        """``path`` with the symlinks of this layer resolved on the way to its last name."""
        real: list[bytes] = []
        ahead = path.split(b"/")[::-1]
        hops = 0
        while ahead:
            part = ahead.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                real = real[:-1]
                continue
            node = self.nodes.get(b"/".join((*real, part)))
            if node is not None and node.kind == stat.S_IFLNK and ahead and hops < 40:
                hops += 1
                real = [] if node.link.startswith(b"/") else real
                ahead.extend(node.link.split(b"/")[::-1])
                continue
            real.append(part)
        return b"/".join(real)

    def _move(self, old: bytes, new: bytes) -> None:
        """Moves the contents of a directory into another; what stands there already stays, as settling has it."""
        inside = old + b"/" if old else b""
        moving = sorted(path for path in self.nodes if path.startswith(inside) and path != old)
        nodes = [(path[len(inside) :], self.nodes.pop(path)) for path in moving]
        del self.nodes[old]
        self._parents(new + b"/")
        for below, node in nodes:
            path = new + b"/" + below if new else below
            if not path.startswith(_AUFS) or path == _OPAQUE:
                self.nodes.setdefault(path, node)
        self._settle_whiteouts()

    def _derived(self, facts: Sequence[dict[str, Any]]) -> None:
        links = False
        for fact in facts:
            path = os.fsencode(fact["path"])
            if fact["kind"] == "link":
                links = True
                if path not in self.nodes:
                    self._put(path, _copied(fact))
            elif fact["kind"] == "directory":
                node = self.nodes.get(path)
                if node is not None and node.implied:
                    _dress(node, fact)

        if links:
            self._settle_whiteouts()

    def _settle_whiteouts(self) -> None:
        for path in [x for x in self.nodes if x.rpartition(b"/")[2].startswith(_WHITEOUT)]:
            if not path.endswith(_OPAQUE):
                self._settle_whiteout(path)

    def _settle_whiteout(self, path: bytes) -> bool:
        """Whether it has become the opaque marker of a directory."""
        hidden = _hidden(path)
        node, marker = self.nodes.get(hidden), self.nodes.get(path)
        if node is None or marker is None:
            return False
        del self.nodes[path]
        if node.kind == stat.S_IFDIR:
            self.nodes.setdefault(hidden + b"/" + _OPAQUE, marker)
        return node.kind == stat.S_IFDIR


def _hidden(path: bytes) -> bytes:
    """What a whiteout names."""
    parent, _, name = path.rpartition(b"/")
    hidden = name[len(_WHITEOUT) :]
    return parent + b"/" + hidden if parent else hidden


def _implied() -> Node:
    node = Node(stat.S_IFDIR, 0o755, _IMPLIED, None)
    node.implied = True
    return node


def _node(entry: Entry, kind: int) -> Node:
    on_disk = kind if kind in (stat.S_IFREG, stat.S_IFDIR) else stat.S_IFREG
    override = override_stat(kind, entry.mode, entry.uid, entry.gid)
    node = Node(on_disk, disk_mode(on_disk, entry.mode), override, clamp_time(entry.mtime_ns))
    for name, value in (entry.xattrs or {}).items():
        kept = disk_name(name)
        if kept is not None:
            node.attributes[kept] = value
    return node


def _file(entry: Entry) -> Node:
    node = _node(entry, _KINDS[entry.type])
    if entry.type == REG:
        node.size = entry.size
        node.index = entry.index if entry.stored else -1
    return node


def _marker(entry: Entry) -> Node:
    node = _node(entry, stat.S_IFREG)
    node.attributes = {}
    return node


def _copy(node: Node) -> Node:
    """Another inode with the same facts."""
    made = Node(node.kind, node.mode, node.override, node.mtime_ns)
    made.size, made.link, made.attributes, made.partial = node.size, node.link, node.attributes, node.partial
    made.copy = node.index if node.index >= 0 else node.copy
    return made


def _copied(fact: dict[str, Any]) -> Node:
    if "symlink" in fact:
        node = Node(stat.S_IFLNK, 0, None, fact["mtime_ns"])
        node.link = os.fsencode(fact["symlink"])
        return node
    override = fact["override"].encode("ascii")
    mode = int(override.split(b":")[2], 8)
    node = Node(stat.S_IFREG, disk_mode(stat.S_IFREG, mode), override, fact["mtime_ns"])
    node.size = int(fact["size"])
    node.sha256 = str(fact.get("sha256", ""))
    node.origin = os.fsencode(fact["real"])
    node.attributes = _decoded(fact["xattrs"].items())
    return node


def _dress(node: Node, fact: dict[str, Any]) -> None:
    node.override = fact["override"].encode("ascii")
    node.mtime_ns = fact["mtime_ns"]
    node.attributes = _decoded(fact["xattrs"].items())


def _decoded(attributes: Iterable[tuple[str, str]]) -> dict[bytes, bytes]:
    return {os.fsencode(name): a2b_base64(value) for name, value in attributes}
