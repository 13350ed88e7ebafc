"""The structures of an ext4 file system (Linux, Documentation/filesystems/ext4), with blocks of 4 KiB.

All numbers are little-endian, but for those of the journal.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING

from msb_pull.disk.ext4.geometry import BLOCK, GROUP, INODE, RESERVED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from msb_pull.disk.ext4.geometry import Geometry

ROOT, JOURNAL, FIRST = 2, 8, RESERVED + 1
# What an inode itself holds: a short target, four extents, and attributes behind its fields.
SHORT = 60
BEHIND = INODE - 160
EXTENTS = 0x80000
# An extent whose content is written has 15 bits for its length, and one more value.
MOST = 1 << 15

_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFLNK: 7}
_SECOND = 1_000_000_000
_FIRST_SECOND, _LAST_SECOND = -(1 << 31), (1 << 34) - (1 << 31) - 1

_HAS_JOURNAL, _HAS_ATTRIBUTES, _HAS_INDEXES = 0x4, 0x8, 0x20
_FILE_TYPES, _HAS_EXTENTS, _FLEXIBLE_GROUPS = 0x2, 0x40, 0x200
_FEW_COPIES, _LARGE_FILES, _HUGE_FILES, _GROUP_CHECKSUMS, _MANY_FOLDERS, _LARGE_INODES = 0x1, 0x2, 0x8, 0x10, 0x20, 0x40
_COMPATIBLE = _HAS_JOURNAL | _HAS_ATTRIBUTES | _HAS_INDEXES
_INCOMPATIBLE = _FILE_TYPES | _HAS_EXTENTS | _FLEXIBLE_GROUPS
_TO_READ = _FEW_COPIES | _LARGE_FILES | _HUGE_FILES | _GROUP_CHECKSUMS | _MANY_FOLDERS | _LARGE_INODES
# No inode of the group is in use, no block is, the table of inodes is all zeros behind those in use.
NO_INODES, NO_BLOCKS, ZEROED = 1, 2, 4

_EXTENT_MAGIC = 0xF30A
_HEADER = struct.Struct("<HHHHI")
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_IN_INODE = (SHORT - _HEADER.size) // _EXTENT.size
IN_BLOCK = (BLOCK - _HEADER.size) // _EXTENT.size
_INODE = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHHHHIIIIIII")
_ENTRY = struct.Struct("<IHBB")
_GROUP = struct.Struct("<IIIHHHHIHHH")


# Inodes


def inode(
    *,
    mode: int,
    owner: tuple[int, int],
    size: int,
    mtime_ns: int,
    links: int,
    taken: int,
    flags: int,
    map: bytes,
    attributes: tuple[bytes, int],
) -> bytes:
    """An inode: ``taken`` counts its blocks, ``map`` says where they are (or is a target, or a device).

    Of ``attributes`` the first are what stands behind the fields, the second is the block of the others. All its times
    are ``mtime_ns``, or the nearest between 1901 and 2446.
    """
    seconds, fraction = divmod(mtime_ns, _SECOND)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        seconds, fraction = min(max(seconds, _FIRST_SECOND), _LAST_SECOND), 0
    low = seconds & 0xFFFF_FFFF
    # 32 bits with a sign, and two more for how often they have passed over.
    extra = fraction << 2 | (seconds - (low - (low >> 31 << 32))) >> 32 & 3
    uid, gid = owner
    # More than 65,000 names are a number that has no room: one stands for it, with directories alone.
    count = 1 if links > 65_000 else links
    sectors = taken * (BLOCK // 512)
    behind, block = attributes
    fields = _INODE.pack(
        *(mode, uid & 0xFFFF, size & 0xFFFF_FFFF, low, low, low, 0, gid & 0xFFFF, count, sectors & 0xFFFF_FFFF, flags),
        *(0, map, 0, block, size >> 32, 0, sectors >> 32, 0, uid >> 16, gid >> 16, 0, 0),
        *(32, 0, extra, extra, extra, low, extra, 0, 0),
    )
    return (fields + behind).ljust(INODE, b"\0")


def device_map(major: int, minor: int) -> bytes:
    """A device: in the first word in the old way, else in the second one. Raises ValueError for what Linux lacks."""
    if major < 256 and minor < 256:
        return struct.pack("<I", major << 8 | minor).ljust(SHORT, b"\0")
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ValueError(f"device {major}:{minor} does not exist on Linux")
    return struct.pack("<II", 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12).ljust(SHORT, b"\0")


def extent_blocks(count: int) -> int:
    """How many blocks of their own so many extents take."""
    total = 0
    while count > _IN_INODE:
        count = -(-count // IN_BLOCK)
        total += count
    return total


def extent_map(extents: Sequence[tuple[int, int, int]], blocks: Iterator[int]) -> tuple[bytes, list[tuple[int, bytes]]]:
    """What stands in the inode for extents (first block of the file, of the file system, count), and the blocks of
    the tree (where, what), which are taken from ``blocks``."""
    made: list[tuple[int, bytes]] = []
    nodes = [(first, _EXTENT.pack(first, count, 0, where)) for first, where, count in extents]
    depth = 0
    while len(nodes) > _IN_INODE:
        above = []
        for at in range(0, len(nodes), IN_BLOCK):
            part = nodes[at : at + IN_BLOCK]
            where = next(blocks)
            made.append((where, _node(part, IN_BLOCK, depth)))
            above.append((part[0][0], _INDEX.pack(part[0][0], where, 0, 0)))
        nodes = above
        depth += 1
    return _node(nodes, _IN_INODE, depth).ljust(SHORT, b"\0"), made


def _node(nodes: Sequence[tuple[int, bytes]], most: int, depth: int) -> bytes:
    return _HEADER.pack(_EXTENT_MAGIC, len(nodes), most, depth, 0) + b"".join(packed for _, packed in nodes)


# Directories


def directory_blocks(names: Iterable[tuple[bytes, int, int]]) -> list[bytes]:
    """The blocks of a directory of (name, inode, kind), with its dots first. The last entry fills its block."""
    blocks: list[bytes] = []
    parts: list[bytes] = []
    used = last = 0

    def close() -> None:
        number, _, length, kind = _ENTRY.unpack_from(parts[-1])
        parts[-1] = _ENTRY.pack(number, last + BLOCK - used, length, kind) + parts[-1][_ENTRY.size :]
        blocks.append(b"".join(parts).ljust(BLOCK, b"\0"))

    for name, number, kind in names:
        size = entry_size(name)
        if used + size > BLOCK:
            close()
            parts, used = [], 0
        parts.append(_ENTRY.pack(number, size, len(name), _TYPES[kind]) + name.ljust(size - _ENTRY.size, b"\0"))
        used, last = used + size, size
    close()
    return blocks


def entry_size(name: bytes) -> int:
    """The bytes of an entry."""
    return _ENTRY.size + len(name) + -len(name) % 4


# The file system


def super_block(
    geometry: Geometry, group: int, free: tuple[int, int], uuid: bytes, journal: tuple[bytes, int]
) -> bytes:
    """The superblock, or the copy of it that stands in a group. ``free`` counts blocks and inodes, ``journal`` is the
    map and the size of the journal's inode, for whoever repairs it. It says nothing of when it was made."""
    blocks, inodes = free
    backup = (*struct.unpack("<15I", journal[0]), journal[1] >> 32, journal[1] & 0xFFFF_FFFF)
    fields = (
        # Counts, and sizes: those of blocks as powers of two above 1024.
        struct.pack("<IIIIIII", geometry.groups * geometry.per_group, geometry.blocks, 0, blocks, inodes, 0, 2),
        struct.pack("<IIII", 2, GROUP, GROUP, geometry.per_group),
        # Mounts, state (clean), what to do about errors (go on), checks (never by time), who made it (Linux).
        struct.pack("<IIHHHHHHIIIIHH", 0, 0, 0, 0xFFFF, 0xEF53, 1, 1, 0, 0, 0, 0, 1, 0, 0),
        # Copies beyond 8 TiB lie in groups with numbers that have no room here; mke2fs cuts them off, too.
        struct.pack("<IHHIII", FIRST, INODE, group & 0xFFFF, _COMPATIBLE, _INCOMPATIBLE, _TO_READ),
        uuid,
        bytes(16 + 64 + 4 + 4 + 16),
        struct.pack("<III", JOURNAL, 0, 0),
        # What hashes of names begin with, and which they are (half MD4), should a directory get an index.
        uuid,
        struct.pack("<BBHIII", 1, 1, 0, 0x0C, 0, 0),
        struct.pack("<17I", *backup),
        struct.pack("<IIIHHI", 0, 0, 0, 32, 32, 1),
        struct.pack("<HHQIB", 0, 0, 0, 0, 4),
    )
    return b"".join(fields).ljust(1024, b"\0")


def group_descriptor(
    group: int, uuid: bytes, places: tuple[int, int, int], counts: tuple[int, int, int, int, int]
) -> bytes:
    """Where the two bitmaps and the inodes are; free blocks, free inodes, directories, flags, inodes never used."""
    *counted, unused = counts
    fields = _GROUP.pack(*places, *counted, 0, 0, 0, unused)
    checksum = _crc16(fields, _crc16(struct.pack("<I", group), _crc16(uuid, 0xFFFF)))
    return fields + struct.pack("<H", checksum)


def journal_super_block(blocks: int) -> bytes:
    """The first block of an empty journal."""
    head = struct.pack(">IIIIIIIII", 0xC03B3998, 4, 0, BLOCK, blocks, 1, 1, 0, 0)
    return (head + bytes(12 + 16) + struct.pack(">I", 1)).ljust(BLOCK, b"\0")


def _crc16(data: bytes, crc: int) -> int:
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc
