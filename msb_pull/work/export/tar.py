"""Writes a tree as one tar archive (POSIX.1-2001 pax, sparse files as in GNU tar's format 1.0).

Nothing in it depends on the machine, the user or the store: the same image gives the same bytes.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from msb_pull.disk.behind import Behind, writer_at
from msb_pull.disk.beside import FILE, gains, start
from msb_pull.ground.running import processors
from msb_pull.ground.tarfields import BLOCK, ZEROS, byte_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from msb_pull.work.export.tree import Inode

    class Sink(Protocol):
        """What takes bytes."""

        def write(self, data: bytes | memoryview, /) -> object: ...


_FILE, _LINK, _SYMLINK, _EXTENDED = b"0", b"1", b"2", b"x"
_TYPES = {stat.S_IFREG: _FILE, stat.S_IFLNK: _SYMLINK, stat.S_IFDIR: b"5"}
_TYPES |= {stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}
_RECORD = 20 * BLOCK
_SECOND = 1_000_000_000
_HEAD = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0"
_TAIL = b"%s%sustar\00000%s%s%s"
# The checksum counts its own field as spaces.
_SPACES = 8 * ord(" ")
_NAME = 100
_MAX_ID = 8**7 - 1
_MAX_SIZE = 8**11 - 1
_MAX_TIME = _MAX_SIZE * _SECOND
_PLAIN_KINDS = (stat.S_IFREG, stat.S_IFDIR)
# Processes that write, and as many processors as they keep busy.
_HALVES = 2


def write_tar(
    inodes: Sequence[Inode],
    out: Sink,
    progress: Callable[[int], None],
    *,
    aside: bool = False,
    handle: int | None = None,
) -> int:
    """Writes the archive into ``out`` and returns its size; ``progress`` gets the bytes of each piece of content.

    ``aside`` is for a sink that never waits for a reader: a thread writes into it then. ``handle`` is an empty file
    that may be written in its place, by two processes. Raises ContentError for damaged content, when most of the
    archive may have been written, LocalError for the death of a process, and OSError.
    """
    if handle is not None and (size := _write_halves(inodes, handle, progress)) is not None:
        return size
    with Behind(out.write, aside=aside) as archive:
        _write(archive, inodes, progress)
        _finish(archive, 0)
    return archive.size


def _write_halves(inodes: Sequence[Inode], handle: int, progress: Callable[[int], None]) -> int | None:
    """Writes the first half while another process writes the second one behind it; None where that is no gain."""
    costs = list(accumulate(FILE + (inode.size if inode.has_content else 0) for inode in inodes))
    if not gains(costs[-1]):
        return None
    middle = bisect_left(costs, costs[-1] // 2)
    place = sum(map(_length, inodes[:middle]))
    aside = processors() > _HALVES

    def second(tell: Callable[[int], None]) -> None:
        with Behind(writer_at(handle, place), aside=aside) as archive:
            _write(archive, inodes[middle:], tell)
            _finish(archive, place)

    if (beside := start(second)) is None:
        return None
    with beside:
        with Behind(writer_at(handle, 0), aside=aside) as archive:
            _write(archive, inodes[:middle], beside.with_it(progress))
        assert archive.size == place
        if not beside.finish(progress):
            second(progress)
    return os.fstat(handle).st_size


def _write(archive: Behind, inodes: Iterable[Inode], progress: Callable[[int], None]) -> None:
    for inode in inodes:
        archive.put(_headers(inode))
        if inode.has_content:
            _content(archive, inode, progress)


def _finish(archive: Behind, before: int) -> None:
    """The end of an archive of which ``before`` bytes stand elsewhere."""
    # GNU tar pads archives to records, and warns of a lone block of zeros.
    archive.put(bytes(2 * BLOCK))
    archive.put(bytes(-(before + archive.size) % _RECORD))


def _length(inode: Inode) -> int:
    """How many bytes of the archive a name takes."""
    size = 0
    if inode.has_content:
        size = inode.size
        if inode.segments is not None:
            size = sum(length for _, length in _blocks(inode.segments, size))
    return (BLOCK if _is_plain(inode) else len(_headers(inode))) + size + -size % BLOCK


def _content(archive: Behind, inode: Inode, progress: Callable[[int], None]) -> None:
    if inode.segments is not None:
        _segments(archive, inode, progress)
        return
    for _, piece in inode.pieces(archive.room):
        archive.took(len(piece))
        progress(len(piece))
    if over := inode.size % BLOCK:
        archive.put(ZEROS[over:])


def _segments(archive: Behind, inode: Inode, progress: Callable[[int], None]) -> None:
    at = 0
    for offset, piece in inode.pieces():
        # From one segment to the next within its last block; what is more is a hole.
        archive.put(bytes(_gap(at, offset)))
        archive.put(piece)
        at = offset + len(piece)
        progress(len(piece))
    archive.put(bytes(-at % BLOCK))


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


def _is_plain(inode: Inode) -> bool:
    """Whether a header alone says all of a file or directory, as with nearly every one."""
    return (
        inode.link_of is None
        and inode.kind in _PLAIN_KINDS
        and not inode.xattrs
        and inode.segments is None
        and 0 < len(inode.path) < _NAME
        and not inode.mtime_ns % _SECOND
        and 0 <= inode.mtime_ns <= _MAX_TIME
        and inode.uid <= _MAX_ID
        and inode.gid <= _MAX_ID
        and inode.size <= _MAX_SIZE
    )


def _headers(inode: Inode) -> bytes:
    """All that stands before the content: an extended header where one is needed, the header, a sparse file's map."""
    name = inode.path + b"/" if inode.kind == stat.S_IFDIR else inode.path
    if _is_plain(inode):
        seconds = inode.mtime_ns // _SECOND
        return _block(name, inode.mode, inode.uid, inode.gid, inode.size, seconds, _TYPES[inode.kind])
    if not inode.path:
        name = b"./" if inode.kind == stat.S_IFDIR else b"."
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
    uid, gid = inode.uid, inode.gid
    if uid > _MAX_ID:
        records.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > _MAX_ID:
        records.append((b"gid", b"%d" % gid))
        gid = 0
    if size > _MAX_SIZE:
        records.append((b"size", b"%d" % size))
        size = 0
    if inode.xattrs and kind != _LINK:
        records += [(b"SCHILY.xattr." + key, value) for key, value in sorted(inode.xattrs.items())]
    header = _block(name[:_NAME], inode.mode, uid, gid, size, seconds, kind, link[:_NAME], *inode.device)
    return _extended(records) + header + leading if records or leading else header


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
    head = _HEAD % (name.ljust(_NAME, b"\0"), mode, uid, gid, size, seconds)
    tail, tail_sum = _PLAIN[kind] if not (link or major or minor) else _tail(kind, link, major, minor)
    return b"%s%06o\0 %s" % (head, byte_sum(head) + _SPACES + tail_sum, tail)


def _tail(kind: bytes, link: bytes, major: int, minor: int) -> tuple[bytes, int]:
    """What follows the checksum, and the sum of its bytes."""
    fields = (kind, link.ljust(_NAME, b"\0"), bytes(64), _device(major), _device(minor))
    tail = (_TAIL % fields).ljust(BLOCK - 156, b"\0")
    return tail, byte_sum(tail)


def _device(number: int) -> bytes:
    """Octal, or base-256 where it has more than seven digits."""
    return b"%07o\0" % number if number <= _MAX_ID else b"\x80" + number.to_bytes(7, "big")


# Of all but links and devices.
_PLAIN = {kind: _tail(kind, b"", 0, 0) for kind in (*_TYPES.values(), _LINK, _EXTENDED)}


def _extended(records: list[tuple[bytes, bytes]]) -> bytes:
    """An extended header with its records (``LENGTH KEY=VALUE``, the length counting itself); nothing without any."""
    if not records:
        return b""
    body = b""
    for key, value in records:
        rest = b" %s=%s\n" % (key, value)
        length = len(rest) + 1
        while len(rest) + len(b"%d" % length) != length:
            length = len(rest) + len(b"%d" % length)
        body += b"%d%s" % (length, rest)
    return _block(b"././@PaxHeader", 0o644, 0, 0, len(body), 0, _EXTENDED) + body + bytes(-len(body) % BLOCK)


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
