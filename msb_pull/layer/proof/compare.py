"""Compares the entries of a layer's directory with what they must be; of files all but what they hold."""

from __future__ import annotations

import errno
import os
import stat

from msb_pull.ground.below import Trail, open_file
from msb_pull.ground.errors import raise_if_exhausted
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.attributes import (
    OVERRIDE_STAT,
    UNSUPPORTED,
    clamp_time,
    get_attribute,
    image_attributes,
    link_attributes,
    list_attributes,
    parse_override_stat,
    typed_override,
)
from msb_pull.layer.proof.task import Damage
from msb_pull.layer.tree.keeping import Keeping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from msb_pull.layer.proof.node import Node

_NAMES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}
_DENIED = frozenset((errno.EACCES, errno.EPERM))
# How many entries between two calls of ``progress``, which may also interrupt.
_OFTEN = 512


def knows_attributes(root: int) -> bool:
    """Whether the file system of an open directory has user attributes, found out without writing; raises OSError."""
    try:
        get_attribute(root, OVERRIDE_STAT)
    except OSError as error:
        return error.errno not in UNSUPPORTED
    return True


class Check:
    """The comparison of one layer, whose top directory is open as ``root``.

    Without ``attributes`` (a store on a file system that has none) owners are not compared. ``progress`` gets
    the number of entries seen, ``denied`` takes what this user may not read. ``writable_by_others`` counts modes
    that have more of the image's bits than get onto the disk today: layers that an earlier version unpacked are as good
    as any other.
    """

    def __init__(
        self, root: int, nodes: Mapping[bytes, Node], *, attributes: bool, progress: Callable[[int], None]
    ) -> None:
        self.denied: list[bytes] = []
        self.writable_by_others = 0
        self.root = root
        self.nodes = nodes
        self._attributes = attributes
        self._progress = progress
        self._seen = {b""}
        self._shared = _shared(nodes)
        self._inodes: dict[int, int] = {}
        self._groups: dict[int, int] = {}
        self._trail = Trail(root)
        self._later = False
        self._keeping = Keeping(root)

    def tree(self, *, content_follows: bool) -> Iterator[Damage]:
        """Compares names, types, modes, owners, attributes, sizes, links and times; raises OSError.

        If the contents of files are compared afterwards, so are attributes of those that are opened for that
        (:meth:`attributes_left`).
        """
        self._later = content_follows
        yield from self._compare(b"", self.nodes[b""], os.fstat(self.root), b".", self.root)
        # Depth first: then most directories are opened from one that is open still.
        waiting = [b""]
        try:
            while waiting:
                path = waiting.pop()
                try:
                    directory = self._trail.reach(path)
                except OSError as error:
                    yield from self.trouble(path, error)
                    continue
                if self._attributes:
                    yield from self._compare_attributes(path, self.nodes[path], directory)
                below: list[bytes] = []
                yield from self._look_into(path, directory, below)
                waiting += reversed(below)
        finally:
            self._trail.close()
        self._progress(len(self._seen))
        yield from self._missing()

    def attributes_left(self, path: bytes, handle: int) -> Iterable[Damage]:
        """Compares what :meth:`tree` has left of an open file."""
        node = self.nodes[path]
        if self._attributes and id(node) not in self._shared and not _as_expected(node, handle):
            return self._compare_attributes(path, node, handle)
        return ()

    def trouble(self, path: bytes, error: OSError) -> Iterator[Damage]:
        """What this user may not read is not damage by itself: its mode would show, or the store is another user's."""
        raise_if_exhausted(error)
        if error.errno in _DENIED:
            self.denied.append(path)
        elif error.errno != errno.ENOENT:
            yield Damage(path, "unreadable", "a readable entry", error.strerror or "an error")

    def _look_into(self, path: bytes, directory: int, below: list[bytes]) -> Iterator[Damage]:
        """Compares what a directory holds; the directories in it go to ``below``."""
        nodes, seen, prefix = self.nodes, self._seen, path + b"/" if path else b""
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            inside = prefix + name
            try:
                facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                # It has gone meanwhile; _missing reports it.
                continue
            node = nodes.get(inside)
            if node is None:
                yield Damage(inside, "extra", "nothing", _kind(facts.st_mode))
                continue
            seen.add(inside)
            if not len(seen) % _OFTEN:
                self._progress(len(seen))
            # Nearly every entry is as it should be; what differs is worked out by those who take longer.
            if (
                facts.st_mode != node.kind | node.mode
                or facts.st_mtime_ns != node.mtime_ns
                or (node.kind == stat.S_IFREG and (facts.st_size != node.size or facts.st_nlink > 1))
                or node.kind == stat.S_IFLNK
                or id(node) in self._shared
            ):
                yield from self._compare(inside, node, facts, name, directory)
            if stat.S_IFMT(facts.st_mode) != node.kind:
                continue
            if node.kind == stat.S_IFDIR:
                below.append(inside)
            elif self._attributes and node.kind == stat.S_IFREG:
                if self._later and node.index >= 0 and id(node) not in self._shared:
                    continue
                try:
                    handle = open_file(name, directory)
                except OSError as error:
                    yield from self.trouble(inside, error)
                    continue
                try:
                    if not _as_expected(node, handle):
                        yield from self._compare_attributes(inside, node, handle)
                finally:
                    os.close(handle)

    def _missing(self) -> Iterator[Damage]:
        if len(self._seen) == len(self.nodes):
            return
        closed = tuple(path + b"/" for path in self.denied)
        for path, node in self.nodes.items():
            if path not in self._seen and not path.startswith(closed):
                yield Damage(path, "missing", _kind(node.kind), "nothing")

    def _compare(self, path: bytes, node: Node, facts: os.stat_result, name: bytes, directory: int) -> Iterator[Damage]:
        if stat.S_IFMT(facts.st_mode) != node.kind:
            yield Damage(path, "type", _kind(node.kind), _kind(facts.st_mode))
            return
        when = None if node.mtime_ns is None else clamp_time(node.mtime_ns)
        if when is not None and not self._keeping.is_kept(when, facts.st_mtime_ns):
            yield Damage(path, "time", _seconds(when), _seconds(facts.st_mtime_ns))
        if node.kind == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=directory)
            if target != node.link:
                yield Damage(path, "target", visible_bytes(node.link), visible_bytes(target))
            for extra in link_attributes(directory, name) if self._attributes else ():
                yield Damage(path, "attribute", "nothing", visible_bytes(extra))
            yield from self._compare_links(path, node, facts)
            return
        # Earlier versions let group and others write where the image does; that is reported, but not damage.
        if (mode := stat.S_IMODE(facts.st_mode)) != node.mode:
            if mode == node.mode | _writable_by_others(node):
                self.writable_by_others += 1
            else:
                yield Damage(path, "mode", f"{node.mode:04o}", f"{mode:04o}")
        if node.kind == stat.S_IFREG:
            if facts.st_size != node.size:
                yield Damage(path, "size", str(node.size), str(facts.st_size))
            yield from self._compare_links(path, node, facts)

    def _compare_links(self, path: bytes, node: Node, facts: os.stat_result) -> Iterator[Damage]:
        """Hard links of one inode must stay one, and strangers must not become one."""
        # Both ways: one map finds a link that was broken, the other two files that were joined.
        inode = self._inodes.setdefault(id(node), facts.st_ino)
        owner = self._groups.setdefault(facts.st_ino, id(node))
        if inode != facts.st_ino or owner != id(node):
            yield Damage(path, "link", "the links of the image", "other links")

    def _compare_attributes(self, path: bytes, node: Node, handle: int) -> Iterator[Damage]:
        try:
            there = dict(image_attributes(handle))
        except OSError as error:
            yield from self.trouble(path, error)
            return
        override = there.pop(OVERRIDE_STAT, b"")
        # A view for podman adds the type of a device.
        if override != node.override and override != typed_override(node.override, node.device):
            noted = visible_bytes(node.override or b"nothing")
            yield Damage(path, "owner", noted, visible_bytes(override) or "nothing")
        for extra in sorted(there.keys() - node.attributes.keys()):
            yield Damage(path, "attribute", "nothing", visible_bytes(extra))
        for kept, value in sorted(node.attributes.items()):
            if kept in there and there[kept] != value:
                yield Damage(path, "attribute", visible_bytes(kept), "a different value")
            elif kept not in there and not (node.partial and self._keeping.refuses(kept, value, there, override)):
                yield Damage(path, "attribute", visible_bytes(kept), "nothing")


def _writable_by_others(node: Node) -> int:
    """The bits that the image's mode has and the disk has not any more."""
    if node.override is None or node.implied:
        return 0
    return (parse_override_stat(node.override)[2] or 0) & 0o022


def _as_expected(node: Node, handle: int) -> bool:
    """Whether an open entry has nothing but our own attribute, and that as it should be; False also when in doubt."""
    try:
        return (
            not node.attributes
            and get_attribute(handle, OVERRIDE_STAT) == node.override
            and list_attributes(handle) == [OVERRIDE_STAT]
        )
    except OSError:
        return False


def _shared(nodes: Mapping[bytes, Node]) -> frozenset[int]:
    """The ids of nodes that have several paths."""
    once: set[int] = set()
    again: set[int] = set()
    for node in map(id, nodes.values()):
        if node in once:
            again.add(node)
        once.add(node)
    return frozenset(again)


def _kind(mode: int) -> str:
    return _NAMES.get(stat.S_IFMT(mode), "special file")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 1_000_000_000}.{nanoseconds % 1_000_000_000:09d}"
