"""Writes a tree as one tar archive (POSIX.1-2001 pax, sparse files as in GNU tar's format 1.0).

Nothing in it depends on the machine, the user or the store: the same image gives the same bytes.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Protocol

from msb_pull.ground.tarfields import BLOCK, byte_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from msb_pull.work.export.tree import Inode

    class Sink(Protocol):
        """What takes bytes."""

        def write(self, data: bytes, /) -> object: ...


_FILE, _LINK, _SYMLINK = b"0", b"1", b"2"
_TYPES = {stat.S_IFREG: _FILE, stat.S_IFLNK: _SYMLINK, stat.S_IFDIR: b"5"}
_TYPES |= {stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}
_BATCH = 1 << 18
# GNU tar pads archives to records of this size, and warns of a lone block of zeros.
_RECORD = 20 * BLOCK
_SECOND = 1_000_000_000
_HEADER = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%sustar\00000%s%s%s"
_NAME = 100
_MAX_ID = 8**7 - 1
_MAX_SIZE = 8**11 - 1


def write_tar(inodes: Iterable[Inode], out: Sink, progress: Callable[[int], None]) -> int:
    """Writes the archive into ``out`` and returns its size; ``progress`` gets the bytes of each piece of content.

    Raises ContentError for damaged content, when most of the archive may have been written, and OSError.
    """
    archive = _Archive(out)
    for inode in inodes:
        archive.put(*_headers(inode))
        if inode.kind == stat.S_IFREG and inode.link_of is None:
            at = 0
            for offset, piece in inode.pieces():
                # From one segment to the next within its last block; what is more is a hole.
                archive.put(bytes(_gap(at, offset)), piece)
                at = offset + len(piece)
                progress(len(piece))
            archive.put(bytes(-at % BLOCK))
    archive.put(bytes(2 * BLOCK))
    archive.put(bytes(-archive.size % _RECORD))
    archive.flush()
    return archive.size


def _gap(at: int, offset: int) -> int:
    """How many zeros stand between data that ends ``at`` and data that begins at ``offset``, as in :func:`_blocks`."""
    end = at + -at % BLOCK
    return offset - at if offset < end else end - at + offset % BLOCK


def _blocks(segments: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The segments in whole blocks: GNU tar reads each from the beginning of one, others read on where one ended."""
    found: list[tuple[int, int]] = []
    for offset, length in segments:
        start, end = offset - offset % BLOCK, offset + length
        end = min(end + -end % BLOCK, size)
        if found and start <= sum(found[-1]):
            start = found.pop()[0]
        found.append((start, end - start))
    return found


class _Archive:
    """Gathers small pieces, so that there are few writes."""

    def __init__(self, out: Sink) -> None:
        self._out = out
        self._parts: list[bytes] = []
        self._gathered = 0
        self.size = 0

    def put(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._parts.append(piece)
            self._gathered += len(piece)
            self.size += len(piece)
        if self._gathered >= _BATCH:
            self.flush()

    def flush(self) -> None:
        self._out.write(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))
        self._parts.clear()
        self._gathered = 0


def _headers(inode: Inode) -> list[bytes]:
    """All that stands before the content: an extended header where one is needed, the header, a sparse file's map."""
    name = (inode.path or b".") + (b"/" if inode.kind == stat.S_IFDIR else b"")
    link = inode.target if inode.link_of is None else inode.link_of
    kind = _LINK if inode.link_of is not None else _TYPES[inode.kind]
    records: list[tuple[bytes, bytes]] = []
    size = inode.size if kind == _FILE else 0
    leading = b""
    if kind == _FILE and inode.segments is not None:
        blocks = _blocks(inode.segments, inode.size)
        leading = _map(blocks, inode.size)
        size = len(leading) + sum(length for _, length in blocks)
        records += ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", name))
        records.append((b"GNU.sparse.realsize", b"%d" % inode.size))
    if len(name) > _NAME:
        records.append((b"path", name))
    if len(link) > _NAME:
        records.append((b"linkpath", link))
    seconds, fraction = divmod(inode.mtime_ns, _SECOND)
    if fraction or not 0 <= seconds <= _MAX_SIZE:
        records.append((b"mtime", _decimal(inode.mtime_ns)))
        seconds = min(max(seconds, 0), _MAX_SIZE)
    for key, number, most in ((b"uid", inode.uid, _MAX_ID), (b"gid", inode.gid, _MAX_ID), (b"size", size, _MAX_SIZE)):
        if number > most:
            records.append((key, b"%d" % number))
    if kind != _LINK:
        records += [(b"SCHILY.xattr." + key, value) for key, value in sorted(inode.xattrs.items())]
    header = _header(inode, name[:_NAME], kind, link[:_NAME], size, seconds)
    return [*(_extended(records) if records else ()), header, *([leading] if leading else ())]


def _header(inode: Inode, name: bytes, kind: bytes, link: bytes, size: int, seconds: int) -> bytes:
    uid, gid = (number if number <= _MAX_ID else 0 for number in (inode.uid, inode.gid))
    major, minor = inode.device
    return _block(name, inode.mode, uid, gid, size if size <= _MAX_SIZE else 0, seconds, kind, link, major, minor)


def _block(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    kind: bytes,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
) -> bytes:
    fields = (mode, uid, gid, size, seconds, kind, link.ljust(_NAME, b"\0"), bytes(64), _device(major), _device(minor))
    block = (_HEADER % (name.ljust(_NAME, b"\0"), *fields)).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % byte_sum(block) + block[156:]


def _device(number: int) -> bytes:
    """Octal, or base-256 where it has more than seven digits."""
    return b"%07o\0" % number if number <= _MAX_ID else b"\x80" + number.to_bytes(7, "big")


def _extended(records: list[tuple[bytes, bytes]]) -> list[bytes]:
    """An extended header with its records (``LENGTH KEY=VALUE``, the length counting itself)."""
    body = b""
    for key, value in records:
        rest = b" %s=%s\n" % (key, value)
        length = len(rest) + 1
        while len(rest) + len(b"%d" % length) != length:
            length = len(rest) + len(b"%d" % length)
        body += b"%d%s" % (length, rest)
    return [_block(b"././@PaxHeader", 0o644, 0, 0, len(body), 0, b"x"), body, bytes(-len(body) % BLOCK)]


def _map(segments: list[tuple[int, int]], size: int) -> bytes:
    """The map that leads a sparse file's data: how many segments, then offset and length of each, in lines."""
    # The last one says where the file ends (GNU tar needs it where that is in a hole).
    if not segments or sum(segments[-1]) != size:
        segments = [*segments, (size, 0)]
    lines = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % segment for segment in segments)
    return lines + bytes(-len(lines) % BLOCK)


def _decimal(nanoseconds: int) -> bytes:
    """Seconds as a decimal number; the sign stands for all of it."""
    seconds, fraction = divmod(abs(nanoseconds), _SECOND)
    text = b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", seconds, fraction)
    return text.rstrip(b"0").rstrip(b".")
