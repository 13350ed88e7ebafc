"""Compares a layer's directory with what it must be, entry by entry and byte by byte."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.layer.attributes import ESCAPE, OVERRIDE_STAT
from msb_pull.layer.expected import content_paths
from msb_pull.layer.limits import printable
from msb_pull.layer.recreate import recreate
from msb_pull.layer.xattrs import user_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from msb_pull.layer.expected import Node

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAMES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


@dataclass(frozen=True, slots=True)
class Damage:
    """One difference. ``path`` is relative to the layer's directory; ``kind`` is one word, the rest is for people."""

    path: bytes
    kind: str
    expected: str
    found: str


def check_tree(
    root: int, nodes: Mapping[bytes, Node], *, attributes: bool, progress: Callable[[int], None]
) -> Iterator[Damage]:
    """Compares names, types, modes, owners, attributes, sizes, links and times below the open directory ``root``.

    Without ``attributes`` (a store on a file system that has none) owners are not compared. ``progress`` is told how
    many entries have been seen. Raises OSError.
    """
    yield from _Walk(root, nodes, attributes, progress).run()


def check_content(
    root: int, record: Path, nodes: Mapping[bytes, Node], take: Callable[[bytes], None]
) -> Iterator[Damage]:
    """Re-creates the layer's tar stream into ``take`` and yields every file whose content is not what it was."""
    found: list[Damage] = []
    stream = recreate(
        record, root, content_paths(nodes), lambda path, a, b: found.append(Damage(path, "content", a, b))
    )
    for piece in stream:
        take(piece)
        yield from found
        found.clear()


class _Walk:
    def __init__(
        self, root: int, nodes: Mapping[bytes, Node], attributes: bool, progress: Callable[[int], None]
    ) -> None:
        self._root = root
        self._nodes = nodes
        self._attributes = attributes
        self._progress = progress
        self._seen: set[bytes] = set()
        self._inodes: dict[int, int] = {}
        self._groups: dict[int, int] = {}

    def run(self) -> Iterator[Damage]:
        yield from self._compare(b"", os.fstat(self._root), self._root, b".")
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            directory = self._open(path)
            try:
                for name in sorted(os.fsencode(entry.name) for entry in os.scandir(directory)):
                    below = path + b"/" + name if path else name
                    facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    node = self._nodes.get(below)
                    if node is None:
                        yield Damage(below, "extra", "nothing", _kind(facts.st_mode))
                        continue
                    yield from self._compare(below, facts, directory, name)
                    if stat.S_ISDIR(facts.st_mode) and node.kind == stat.S_IFDIR:
                        waiting.append(below)
            finally:
                os.close(directory)
            self._progress(len(self._seen))
        yield from self._missing()

    def _missing(self) -> Iterator[Damage]:
        for path, node in self._nodes.items():
            if path not in self._seen:
                yield Damage(path, "missing", _kind(node.kind), "nothing")

    def _open(self, path: bytes) -> int:
        current = os.dup(self._root)
        for part in path.split(b"/") if path else ():
            try:
                following = os.open(part, _OPEN_DIR, dir_fd=current)
            finally:
                os.close(current)
            current = following
        return current

    def _compare(self, path: bytes, facts: os.stat_result, directory: int, name: bytes) -> Iterator[Damage]:
        node = self._nodes[path]
        self._seen.add(path)
        if stat.S_IFMT(facts.st_mode) != node.kind:
            yield Damage(path, "type", _kind(node.kind), _kind(facts.st_mode))
            return
        if node.mtime_ns is not None and not _same_time(facts.st_mtime_ns, node.mtime_ns):
            yield Damage(path, "time", _seconds(node.mtime_ns), _seconds(facts.st_mtime_ns))
        if node.kind == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=directory)
            if target != node.link:
                yield Damage(path, "target", printable(node.link), printable(target))
            return
        if stat.S_IMODE(facts.st_mode) != node.mode:
            yield Damage(path, "mode", f"{node.mode:04o}", f"{stat.S_IMODE(facts.st_mode):04o}")
        if node.kind == stat.S_IFREG:
            if facts.st_size != node.size:
                yield Damage(path, "size", str(node.size), str(facts.st_size))
            yield from self._compare_links(path, node, facts)
        if self._attributes:
            yield from _compare_attributes(path, node, directory, name)

    def _compare_links(self, path: bytes, node: Node, facts: os.stat_result) -> Iterator[Damage]:
        """Hard links of one inode must stay one, and strangers must not become one."""
        inode = self._inodes.setdefault(id(node), facts.st_ino)
        owner = self._groups.setdefault(facts.st_ino, id(node))
        if inode != facts.st_ino or owner != id(node):
            yield Damage(path, "link", "the links of the image", "other links")


def _compare_attributes(path: bytes, node: Node, directory: int, name: bytes) -> Iterator[Damage]:
    handle = os.open(name, _OPEN_DIR if node.kind == stat.S_IFDIR else _OPEN_FILE, dir_fd=directory)
    try:
        there = dict(user_attributes(handle))
    finally:
        os.close(handle)
    override = there.pop(OVERRIDE_STAT, b"")
    if override != node.override:
        yield Damage(path, "owner", printable(node.override or b"nothing"), printable(override) or "nothing")
    for extra in sorted(there.keys() - node.attributes.keys()):
        yield Damage(path, "attribute", "nothing", printable(extra))
    for kept, value in sorted(node.attributes.items()):
        # An attribute that did not fit was left out with a warning when the layer was unpacked.
        if kept in there and there[kept] != value:
            yield Damage(path, "attribute", printable(kept), "another value")
        elif kept not in there and kept.startswith((b"user.", ESCAPE)) and len(value) < _FITS:
            yield Damage(path, "attribute", printable(kept), "nothing")


# What every file system takes beside our own attribute; more may have been refused.
_FITS = 1024


def _same_time(found: int, expected: int) -> bool:
    # A file system keeps what it can: ext4 ends in 2446, others know no nanoseconds.
    return found == expected or expected > _FAR or (found == expected // 1_000_000_000 * 1_000_000_000 != expected)


_FAR = 15_032_385_535 * 1_000_000_000


def _kind(mode: int) -> str:
    return _NAMES.get(stat.S_IFMT(mode), "special file")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 1_000_000_000}.{nanoseconds % 1_000_000_000:09d}"
