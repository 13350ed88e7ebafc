"""Trees for the EROFS writer, and a small reader of its images that shares no code with it."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 4096
PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
SECOND = 1_000_000_000


@dataclass
class Inode:
    """A name of a tree in memory, as the writer wants it."""

    path: bytes
    kind: int = stat.S_IFREG
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: bytes = b""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    link_of: bytes | None = None
    segments: tuple[tuple[int, int], ...] | None = None
    length: int | None = None

    @property
    def size(self) -> int:
        return len(self.content) if self.length is None else self.length

    def pieces(
        self, room: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size))
    ) -> Iterator[tuple[int, memoryview]]:
        """The content in pieces of an odd size; that of a sparse file repeats ``content``."""
        for offset, length in ((0, self.size),) if self.segments is None else self.segments:
            at, end = offset, offset + length
            while at < end:
                place = room(min(5000, end - at))
                size = len(place)
                place[:] = self.content[at : at + size] if self.segments is None else (self.content * size)[:size]
                yield at, place
                at += size

    def whole(self) -> bytes:
        data = bytearray(self.size)
        for at, piece in self.pieces():
            data[at : at + len(piece)] = piece
        return bytes(data)


def folder(path: bytes = b"", **facts: object) -> Inode:
    return Inode(path, **{"kind": stat.S_IFDIR, "mode": 0o755, **facts})  # type: ignore[arg-type]


def in_order(inodes: list[Inode]) -> list[Inode]:
    return sorted(inodes, key=lambda one: one.path.split(b"/") if one.path else [])


def facts_of(inodes: list[Inode]) -> dict[bytes, tuple[object, ...]]:
    """What an image of the tree must say of each name, in the form of :func:`read_image`."""
    by_path = {one.path: one for one in inodes}
    names: dict[bytes, set[bytes]] = {}
    subfolders = {one.path: 0 for one in inodes}
    for one in inodes:
        names.setdefault(one.link_of if one.link_of is not None else one.path, set()).add(one.path)
        if one.kind == stat.S_IFDIR and one.path:
            subfolders[one.path.rpartition(b"/")[0]] += 1
    facts = {}
    for name, one in by_path.items():
        first = by_path[one.link_of] if one.link_of is not None else one
        group = names[first.path]
        content: object = {stat.S_IFREG: first.whole, stat.S_IFLNK: lambda first=first: first.target}.get(
            first.kind, lambda: None
        )()
        device = first.device if first.kind in (stat.S_IFCHR, stat.S_IFBLK) else None
        links = 2 + subfolders[name] if first.kind == stat.S_IFDIR else len(group)
        owner = (first.uid, first.gid, first.mtime_ns)
        facts[name] = (first.kind, first.mode, *owner, links, frozenset(group), content, device, first.xattrs)
    return facts


class Image:
    """Reads an image by the documentation of the format, and asserts what the kernel wants."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        magic, self.checksum, self.compatible, bits, slots, self.root = struct.unpack_from("<IIIBBH", data, 1024)
        self.inodes, self.built, nanoseconds, self.blocks, self.meta, self.shared = struct.unpack_from(
            "<QQIIII", data, 1040
        )
        self.uuid = data[1072:1088]
        self.features = struct.unpack_from("<I", data, 1104)[0]
        assert (magic, bits, slots, self.built, nanoseconds) == (0xE0F5E1E2, 12, 0, 0, 0)
        assert len(data) == self.blocks * BLOCK

    def read(self) -> dict[bytes, tuple[object, ...]]:
        """All names, with what the image says of them."""
        found: dict[bytes, int] = {}
        self._walk(b"", self.root, self.root, found)
        assert len(set(found.values())) == self.inodes
        names: dict[int, set[bytes]] = {}
        for path, nid in found.items():
            names.setdefault(nid, set()).add(path)
        facts = {}
        for path, nid in found.items():
            mode, _, where, uid, gid, seconds, nanoseconds, links = self._inode(nid)[:8]
            kind = stat.S_IFMT(mode)
            content = self.content(nid) if kind in (stat.S_IFREG, stat.S_IFLNK) else None
            device = None
            if kind in (stat.S_IFCHR, stat.S_IFBLK):
                device = (where >> 8 & 0xFFF, where & 0xFF | where >> 12 & 0xFFF00)
            owner = (uid, gid, seconds * SECOND + nanoseconds)
            group = frozenset(names[nid])
            facts[path] = (kind, stat.S_IMODE(mode), *owner, links, group, content, device, self.xattrs(nid))
        return facts

    def _inode(self, nid: int) -> tuple[int, ...]:
        at = self.meta * BLOCK + nid * 32
        form, count, mode, size, where, _, uid, gid, seconds, nanoseconds, links = struct.unpack_from(
            "<HHH2xQIIIIqII", self.data, at
        )
        assert form & 1, "an extended inode"
        attributes = 12 + 4 * (count - 1) if count else 0
        return mode, size, where, uid, gid, seconds, nanoseconds, links, form >> 1, at + 64, attributes

    def content(self, nid: int) -> bytes:
        _, size, where, *_, layout, at, attributes = self._inode(nid)
        behind = at + attributes
        if layout == 0:
            return self.data[where * BLOCK :][:size] if size else b""
        if layout == 2:
            tail = size % BLOCK
            assert tail
            assert behind // BLOCK == (behind + tail - 1) // BLOCK, "a tail lies in one block"
            body = self.data[where * BLOCK :][: size - tail] if size > tail else b""
            return body + self.data[behind : behind + tail]
        assert layout == 4
        assert self.features == 4
        chunk = BLOCK << where
        parts = []
        for number in range(-(-size // chunk)):
            block = struct.unpack_from("<I", self.data, behind + 4 * number)[0]
            length = min(chunk, size - number * chunk)
            part = bytes(length) if block == 0xFFFFFFFF else self.data[block * BLOCK :][:length]
            assert len(part) == length
            parts.append(part)
        return b"".join(parts)

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        *_, at, size = self._inode(nid)
        if not size:
            return {}
        end = at + size
        shared = self.data[at + 4]
        ids = struct.unpack_from(f"<{shared}I", self.data, at + 12)
        found = dict(self._xattr(self.shared * BLOCK + 4 * number)[:2] for number in ids)
        at += 12 + 4 * shared
        while at < end:
            name, value, at = self._xattr(at)
            found[name] = value
        assert at == end
        return found

    def _xattr(self, at: int) -> tuple[bytes, bytes, int]:
        length, index, size = struct.unpack_from("<BBH", self.data, at)
        name = self.data[at + 4 : at + 4 + length]
        end = at + 4 + length + size
        return PREFIXES[index] + name, self.data[at + 4 + length : end], -(-end // 4) * 4

    def _walk(self, path: bytes, nid: int, above: int, found: dict[bytes, int]) -> None:
        found[path] = nid
        if stat.S_IFMT(self._inode(nid)[0]) != stat.S_IFDIR:
            return
        entries = list(self.entries(nid))
        names = [name for name, _, _ in entries]
        assert names == sorted(set(names))
        for name, inner, kind in entries:
            assert kind == {1: 5, 2: 3, 4: 2, 6: 4, 8: 1, 10: 7, 12: 6}[self._inode(inner)[0] >> 12]
            if name in (b".", b".."):
                assert inner == (nid if name == b"." else above)
            else:
                self._walk(path + b"/" + name if path else name, inner, nid, found)

    def entries(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        data = self.content(nid)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            first = struct.unpack_from("<QHB", block)[1]
            entries = [struct.unpack_from("<QHB", block, at) for at in range(0, first, 12)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (inner, offset, kind), end in zip(entries, ends, strict=True):
                yield block[offset:end].rstrip(b"\0"), inner, kind
