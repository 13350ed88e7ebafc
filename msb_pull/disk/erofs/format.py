"""The structures of an EROFS image (Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h).

An inode is named by its number (nid): its byte offset in the image divided by 32. All numbers are little-endian.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BLOCK = 4096
SLOT = 32
INODE = 64
SUPER = 1024
# "No block": a hole in a map of chunks, and the start of what has no blocks of its own.
NOWHERE = 0xFFFFFFFF

PLAIN, INLINE, CHUNKED = 0, 2, 4

_BLOCK_BITS = 12
_MAGIC = 0xE0F5E1E2
_HAS_CHECKSUM, _TIMES_ARE_MTIMES = 1, 2
_HAS_CHUNKS = 4
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_EXTENDED = 1
_INODE = struct.Struct("<HHH2xQIIIIQII16x")
_DIRENT = struct.Struct("<QHBx")
_SECOND = 1_000_000_000
_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6}
_TYPES |= {stat.S_IFLNK: 7}
_CASTAGNOLI = 0x82F63B78


def blocks_of(size: int) -> int:
    """How many blocks hold so many bytes."""
    return -(-size // BLOCK)


def super_block(*, root: int, inodes: int, blocks: int, shared: int, uuid: bytes, chunked: bool) -> bytes:
    """The first block: ``root`` is a nid, ``shared`` the block where shared attributes begin. No time of its making."""
    features = _HAS_CHUNKS if chunked else 0
    rest = (root, inodes, 0, 0, blocks, 0, shared, uuid, b"", features, 0, 0, 0, 0, 0, 0, 0)

    def build(checksum: int) -> bytes:
        return _SUPER.pack(_MAGIC, checksum, _HAS_CHECKSUM | _TIMES_ARE_MTIMES, _BLOCK_BITS, 0, *rest)

    checksum = _crc32c(build(0).ljust(BLOCK - SUPER, b"\0"))
    return (bytes(SUPER) + build(checksum)).ljust(BLOCK, b"\0")


def _crc32c(data: bytes) -> int:
    """CRC-32C as the superblock has it: without the inversion at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc


def inode(
    *,
    layout: int,
    attributes: int,
    mode: int,
    size: int,
    where: int,
    number: int,
    owner: tuple[int, int],
    mtime_ns: int,
    links: int,
) -> bytes:
    """An extended inode. ``attributes`` is the size of what :mod:`attributes` puts behind it, ``where`` a block, a
    device or the format of chunks.

    A time before 1970 becomes two's complement: the field has no sign, but Linux reads it into a signed number.
    """
    seconds, nanoseconds = divmod(mtime_ns, _SECOND)
    # The first 12 bytes count as one of the units of four.
    count = (attributes - 12) // 4 + 1 if attributes else 0
    times = (seconds & 0xFFFF_FFFF_FFFF_FFFF, nanoseconds)
    return _INODE.pack(layout << 1 | _EXTENDED, count, mode, size, where, number, *owner, *times, links)


def device_number(major: int, minor: int) -> int:
    """A device as Linux encodes it in 32 bits; raises ValueError for more than 12 bits of major, 20 of minor."""
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ValueError(f"device {major}:{minor} does not exist on Linux")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


# Directories: blocks of entries and, behind them, their names, all in the order of their bytes.


def directory_blocks(names: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
    """Where the sorted names of a directory are cut into blocks: (first, end, bytes used)."""
    first, used = 0, 0
    for at, name in enumerate(names):
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            yield first, at, used
            first, used = at, 0
        used += need
    yield first, len(names), used


def directory_block(entries: Iterable[tuple[bytes, int, int]]) -> bytes:
    """One block of (name, nid, kind), without the zeros that fill it."""
    held = list(entries)
    offset = len(held) * _DIRENT.size
    packed = []
    for name, nid, kind in held:
        packed.append(_DIRENT.pack(nid, offset, _TYPES[kind]))
        offset += len(name)
    return b"".join([*packed, *(name for name, _, _ in held)])
