"""Reads, writes and copies files with holes: what is a hole costs nothing, however large it is."""

from __future__ import annotations

import errno
import os
import sys

from isal.isal_zlib import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from msb_pull.layer.tar.entry import Entry

_PIECE = 1 << 18
_ZEROS = bytes(_PIECE)
_NOT_IN_KERNEL = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM))
# Of linux/fs.h; Python has it from 3.12 on.
_FICLONE = 0x40049409
_NOT_SHARED = _NOT_IN_KERNEL | {errno.ENOTTY}


class TooMuch(Exception):
    """A copy would take more than it may."""


def crc_of(handle: int, segments: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of what an open file holds in its segments (offset, length), as far as it goes; raises OSError."""
    crc = 0
    for offset, length in segments:
        end = offset + length
        while offset < end and (piece := os.pread(handle, min(_PIECE, end - offset), offset)):
            crc = crc32(piece, crc)
            offset += len(piece)
    return crc


def data_ranges(handle: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where (from, to) an open file may hold other bytes than zeros between two offsets; raises OSError."""
    while start < end:
        try:
            start = os.lseek(handle, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            yield start, end
            return
        if start >= end:
            return
        hole = min(end, os.lseek(handle, start, os.SEEK_HOLE))
        yield start, hole
        start = hole


def first_data(handle: int, segments: Iterable[tuple[int, int]], size: int) -> int | None:
    """The first byte outside the segments (offset, length, in order) of a file that is not zero; raises OSError.

    None where all is as it must be: between the segments of a sparse file lie holes, or zeros that fill them.
    """
    before = 0
    for offset, length in (*segments, (size, 0)):
        for start, end in data_ranges(handle, before, offset):
            found = _first_byte(handle, start, end)
            if found is not None:
                return found
        before = offset + length
    return None


def sha256_of(handle: int) -> str:
    """The SHA-256 (hex) of what an open file holds; holes are not read. Raises OSError."""
    import hashlib

    hasher, done, size = hashlib.sha256(), 0, os.fstat(handle).st_size
    for start, end in (*data_ranges(handle, 0, size), (size, size)):
        while done < start:
            hasher.update(memoryview(_ZEROS)[: start - done])
            done += min(_PIECE, start - done)
        while done < end and (piece := os.pread(handle, min(_PIECE, end - done), done)):
            hasher.update(piece)
            done += len(piece)
    return hasher.hexdigest()


def same_content(one: int, other: int) -> bool:
    """Whether two open files hold the same bytes; what is a hole in both is not read. Raises OSError."""
    size = os.fstat(one).st_size
    if size != os.fstat(other).st_size:
        return False
    for first, second in ((one, other), (other, one)):
        for start, end in data_ranges(first, 0, size):
            while start < end:
                piece = os.pread(first, min(_PIECE, end - start), start)
                if not piece or piece != os.pread(second, len(piece), start):
                    return False
                start += len(piece)
    return True


def copy_bytes(original: int, copy: int, room: int = 1 << 62) -> int:
    """Copies what one open file holds to another that is empty, in the kernel where it can (there it shares blocks).

    Holes stay holes. Returns how many bytes were copied; raises TooMuch before they are more than ``room``, OSError.
    """
    size, done = os.fstat(original).st_size, 0
    for start, end in data_ranges(original, 0, size):
        done += end - start
        if done > room:
            raise TooMuch
        while start < end:
            count = _copy_piece(original, copy, start, end - start)
            if not count:
                break
            start += count
    os.ftruncate(copy, size)
    return done


def share_blocks(original: int, copy: int) -> bool:
    """Lets one open file share all blocks of another; False where the system has no such copies. Raises OSError."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError as error:
        if error.errno not in _NOT_SHARED:
            raise
        return False
    return True


def _copy_piece(original: int, copy: int, offset: int, count: int) -> int:
    """The number of bytes copied, 0 at the end."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(original, copy, min(count, 1 << 30), offset, offset)
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
    piece = os.pread(original, min(count, _PIECE), offset)
    return os.pwrite(copy, piece, offset)


def write_segments(target: int, entry: Entry, chunk: Callable[[], memoryview]) -> None:
    """Writes the payload of a sparse entry into an open file that is empty; raises OSError."""
    os.ftruncate(target, entry.size)
    piece = memoryview(b"")
    for offset, length in entry.sparse or ():
        end = offset + length
        while offset < end:
            piece = piece or chunk()
            count = os.pwrite(target, piece[: end - offset], offset)
            offset += count
            piece = piece[count:]


def _first_byte(handle: int, start: int, end: int) -> int | None:
    while start < end and (piece := os.pread(handle, min(_PIECE, end - start), start)):
        if piece.count(0) != len(piece):
            return start + len(piece) - len(piece.lstrip(b"\0"))
        start += len(piece)
    return None
