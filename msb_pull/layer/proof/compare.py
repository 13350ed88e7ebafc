"""Compares a layer's directory with what it must be, entry by entry and byte by byte."""

from __future__ import annotations

import errno
import os
import stat

from msb_pull.ground.errors import raise_if_exhausted
from msb_pull.layer.limits import printable
from msb_pull.layer.proof.model import content_paths
from msb_pull.layer.proof.stream import Listener, stream
from msb_pull.layer.rules import join
from msb_pull.layer.tree.attributes import OVERRIDE_STAT, parse_override_stat
from msb_pull.layer.tree.holes import crc_of, first_data, sha256_of
from msb_pull.layer.tree.keeping import Keeping
from msb_pull.layer.tree.xattrs import UNSUPPORTED, get_attribute, image_attributes, link_attributes, list_attributes

# Importing typing takes longer than verifying a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from msb_pull.layer.node import Node
    from msb_pull.layer.record import Payload, Record
    from msb_pull.layer.tree.kept import Kept

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAMES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}
_DENIED = frozenset((errno.EACCES, errno.EPERM))
# Whoever waits, or wants to interrupt, is served in between.
_OFTEN = 512
# The kind of damage that may be that of a layer below.
DERIVED = "derived"
# Directories that are kept open on the way to the one that is being looked at.
_DEPTH = 32


class Damage:
    """One difference. ``path`` is relative to the layer's directory; ``kind`` is one word, the rest is for people."""

    __slots__ = ("expected", "found", "kind", "path")

    def __init__(self, path: bytes, kind: str, expected: str, found: str) -> None:
        self.path = path
        self.kind = kind
        self.expected = expected
        self.found = found

    def __repr__(self) -> str:
        return f"Damage({self.path!r}, {self.kind!r}, {self.expected!r}, {self.found!r})"


def knows_attributes(root: int) -> bool:
    """Whether the file system of an open directory has user attributes, found out without writing; raises OSError."""
    try:
        get_attribute(root, OVERRIDE_STAT)
    except OSError as error:
        return error.errno not in UNSUPPORTED
    return True


class Check(Listener):
    """The comparison of one layer, whose top directory is open as ``root``.

    Without ``attributes`` (a store on a file system that has none) owners are not compared. ``progress`` is told how
    many entries have been seen, ``is_original`` compares an open file with that of a path in the layers below,
    ``denied`` takes what this user may not look into. ``writable_by_others`` counts modes that have more of the image's
    bits than get onto the disk today: layers that an earlier version unpacked are as good as any other.
    """

    def __init__(
        self,
        root: int,
        nodes: Mapping[bytes, Node],
        *,
        attributes: bool,
        progress: Callable[[int], None],
        is_original: Callable[[bytes, int], bool],
    ) -> None:
        super().__init__(self._content_differs)
        self.denied: list[bytes] = []
        self.writable_by_others = 0
        self._root = root
        self._nodes = nodes
        self._attributes = attributes
        self._progress = progress
        self._is_original = is_original
        self._seen = {b""}
        self._shared = _shared(nodes)
        self._inodes: dict[int, int] = {}
        self._groups: dict[int, int] = {}
        self._open_ones: list[tuple[bytes, int]] = []
        self._content: list[Damage] = []
        self._later = False
        self._keeping = Keeping(root)

    def tree(self, *, content_follows: bool) -> Iterator[Damage]:
        """Compares names, types, modes, owners, attributes, sizes, links and times; raises OSError.

        If :meth:`content` follows, attributes of the files that it opens are left to it.
        """
        self._later = content_follows
        yield from self._compare(b"", self._nodes[b""], os.fstat(self._root), b".", self._root)
        waiting = [b""]
        try:
            while waiting:
                path = waiting.pop()
                try:
                    directory = self._open(path)
                except OSError as error:
                    yield from self._trouble(path, error)
                    continue
                if self._attributes:
                    yield from self._compare_attributes(path, self._nodes[path], directory)
                below: list[bytes] = []
                yield from self._look_into(path, directory, below)
                waiting += reversed(below)
        finally:
            for _, directory in self._open_ones:
                os.close(directory)
        self._progress(len(self._seen))
        yield from self._missing()

    def content(
        self, record: Record, kept: Kept, leave: Callable[[bytes], bool], take: Callable[[memoryview], None]
    ) -> Iterator[Damage]:
        """Re-creates the layer's tar stream into ``take`` and yields every file whose content is not what it was.

        The record's entries have been read. Files that ``leave`` is true for are not read, and what is overwritten is
        looked for in ``kept``.
        """
        paths = {index: None if leave(path) else path for index, path in content_paths(self._nodes).items()}
        found = self._content
        for piece in stream(record, self._root, paths, self, kept=kept):
            take(piece)
            yield from found
            found.clear()
        copies, compared = [], set[int]()
        for path, node in self._nodes.items():
            if node.origin is not None and node.kind == stat.S_IFREG and not leave(path):
                # Hard links to one lower file are one copy.
                if id(node) not in compared:
                    compared.add(id(node))
                    yield from self._copy(path, node)
            elif node.copy >= 0 and not leave(path):
                copies.append((path, node.copy))
            elif node.index < 0 and node.size and node.origin is None and not leave(path):
                # It is one hole, of which the stream has nothing.
                yield from self._second(path, (0, -1, 0, 0, ()))
        if copies:
            payloads = {payload[1]: payload for payload in record.payloads}
            for path, index in copies:
                yield from self._second(path, payloads[index])

    def _copy(self, path: bytes, node: Node) -> Iterator[Damage]:
        """A file that settling copied from a lower layer."""
        try:
            handle = _descend(self._root, path, _OPEN_FILE)
            try:
                found = sha256_of(handle)
                same = self._is_original(node.origin or b"", handle)
            finally:
                os.close(handle)
        except OSError as error:
            yield from self._trouble(path, error)
            return
        if node.sha256 and found != node.sha256:
            yield Damage(path, "content", f"sha256 {node.sha256}", f"sha256 {found}")
        elif not same:
            yield Damage(path, DERIVED, f"the content of {printable(node.origin or b'')} in a layer below", "another")

    def _second(self, path: bytes, payload: Payload) -> Iterator[Damage]:
        """A file whose content the stream does not have from it: a hard link that is a copy, or one hole."""
        _, _, expected, stored, sparse = payload
        try:
            handle = _descend(self._root, path, _OPEN_FILE)
            try:
                segments = sparse if sparse is not None else ((0, stored),)
                crc = crc_of(handle, segments)
                stray = first_data(handle, segments, os.fstat(handle).st_size)
            finally:
                os.close(handle)
        except OSError as error:
            yield from self._trouble(path, error)
            return
        if crc != expected:
            yield Damage(path, "content", f"crc32 {expected:08x}", f"crc32 {crc:08x}")
        elif stray is not None:
            yield Damage(path, "content", "a hole", f"data at byte {stray}")

    def opened(self, path: bytes, handle: int) -> None:
        """Compares what :meth:`tree` has left."""
        node = self._nodes[path]
        if self._attributes and id(node) not in self._shared and not _as_expected(node, handle):
            self._content.extend(self._compare_attributes(path, node, handle))

    def closed(self, path: bytes, stored: int, error: OSError) -> None:
        """A file that cannot be opened or read."""
        self._content.extend(self._trouble(path, error))

    def lost(self, path: bytes, found: str) -> None:
        """What a later entry has overwritten is no part of the tree, but of the stream."""
        self._content.append(Damage(path, "overwritten", "the content that a later entry replaced", found))

    def _content_differs(self, path: bytes, expected: str, found: str) -> None:
        self._content.append(Damage(path, "content", expected, found))

    def _look_into(self, path: bytes, directory: int, below: list[bytes]) -> Iterator[Damage]:
        """Compares what a directory holds; the directories in it go to ``below``."""
        nodes, seen, prefix = self._nodes, self._seen, path + b"/" if path else b""
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            inside = prefix + name
            try:
                facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                # It has gone since; that is told in the end.
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
                    handle = os.open(name, _OPEN_FILE, dir_fd=directory)
                except OSError as error:
                    yield from self._trouble(inside, error)
                    continue
                try:
                    if not _as_expected(node, handle):
                        yield from self._compare_attributes(inside, node, handle)
                finally:
                    os.close(handle)

    def _missing(self) -> Iterator[Damage]:
        if len(self._seen) == len(self._nodes):
            return
        closed = tuple(path + b"/" for path in self.denied)
        for path, node in self._nodes.items():
            if path not in self._seen and not path.startswith(closed):
                yield Damage(path, "missing", _kind(node.kind), "nothing")

    def _trouble(self, path: bytes, error: OSError) -> Iterator[Damage]:
        """What this user may not look into is no damage by itself: the mode tells, or the store is somebody else's."""
        raise_if_exhausted(error)
        if error.errno in _DENIED:
            self.denied.append(path)
        elif error.errno != errno.ENOENT:
            yield Damage(path, "unreadable", "a readable entry", error.strerror or "an error")

    def _open(self, path: bytes) -> int:
        """Opens a directory from the nearest one above it that is open still; it is closed when the walk leaves it."""
        ones = self._open_ones
        while ones and ones[-1][0] and not path.startswith(ones[-1][0] + b"/"):
            os.close(ones.pop()[1])
        if not ones:
            ones.append((b"", os.dup(self._root)))
        above, current = ones[-1]
        rest = path[len(above) + 1 if above else 0 :]
        for name in rest.split(b"/") if rest else ():
            above, current = join(above, name), os.open(name, _OPEN_DIR, dir_fd=current)
            ones.append((above, current))
            if len(ones) > _DEPTH:
                # The top stays, and the way back up begins near here.
                os.close(ones.pop(1)[1])
        return current

    def _compare(self, path: bytes, node: Node, facts: os.stat_result, name: bytes, directory: int) -> Iterator[Damage]:
        if stat.S_IFMT(facts.st_mode) != node.kind:
            yield Damage(path, "type", _kind(node.kind), _kind(facts.st_mode))
            return
        if node.mtime_ns is not None and not self._keeping.is_kept(node.mtime_ns, facts.st_mtime_ns):
            yield Damage(path, "time", _seconds(node.mtime_ns), _seconds(facts.st_mtime_ns))
        if node.kind == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=directory)
            if target != node.link:
                yield Damage(path, "target", printable(node.link), printable(target))
            for extra in link_attributes(directory, name) if self._attributes else ():
                yield Damage(path, "attribute", "nothing", printable(extra))
            yield from self._compare_links(path, node, facts)
            return
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
        inode = self._inodes.setdefault(id(node), facts.st_ino)
        owner = self._groups.setdefault(facts.st_ino, id(node))
        if inode != facts.st_ino or owner != id(node):
            yield Damage(path, "link", "the links of the image", "other links")

    def _compare_attributes(self, path: bytes, node: Node, handle: int) -> Iterator[Damage]:
        try:
            there = dict(image_attributes(handle))
        except OSError as error:
            yield from self._trouble(path, error)
            return
        override = there.pop(OVERRIDE_STAT, b"")
        if override != node.override:
            yield Damage(path, "owner", printable(node.override or b"nothing"), printable(override) or "nothing")
        for extra in sorted(there.keys() - node.attributes.keys()):
            yield Damage(path, "attribute", "nothing", printable(extra))
        for kept, value in sorted(node.attributes.items()):
            if kept in there and there[kept] != value:
                yield Damage(path, "attribute", printable(kept), "another value")
            elif kept not in there and not (node.partial and self._keeping.refuses(kept, value, there, override)):
                yield Damage(path, "attribute", printable(kept), "nothing")


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


def _descend(directory: int, path: bytes, flags: int = _OPEN_DIR) -> int:
    """Opens what lies below an open directory, through no symlink on the way."""
    *parents, name = path.split(b"/")
    current = directory
    try:
        for parent in parents:
            following = os.open(parent, _OPEN_DIR, dir_fd=current)
            if current != directory:
                os.close(current)
            current = following
        return os.open(name, flags, dir_fd=current)
    finally:
        if current != directory:
            os.close(current)


def _kind(mode: int) -> str:
    return _NAMES.get(stat.S_IFMT(mode), "special file")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 1_000_000_000}.{nanoseconds % 1_000_000_000:09d}"
