"""Extended attributes: behind the fields of an inode where they have room, else in a block of its own."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from msb_pull.disk.ext4.format import BEHIND
from msb_pull.disk.ext4.geometry import BLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAGIC = 0xEA020000
# Kept as a number; the rest of the name follows.
_PREFIXES = {b"user.": 1, b"trusted.": 4, b"security.": 6}
_LISTS = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_ENTRY = struct.Struct("<BBHIII")
_HEADER = struct.Struct("<IIIII12x")
_MASK = 0xFFFF_FFFF

# Access control lists as programs see them, and as they stand on the disk.
_SEEN, _STORED = 2, 1
_RULE = struct.Struct("<HHI")
_NAMED = (0x02, 0x08)
_UNNAMED = (0x01, 0x04, 0x10, 0x20)


def packed(xattrs: Mapping[bytes, bytes]) -> tuple[bytes, bytes]:
    """What stands behind the inode's fields, and what fills a block; both empty for no attribute.

    Raises ValueError for more than a block holds. What :func:`foreign` names is left out.
    """
    kept = sorted((*split, value) for split, value in map(_kept, xattrs.items()) if split is not None)
    # In this order the kernel looks for them in a block.
    kept.sort(key=lambda entry: (entry[0], len(entry[1]), entry[1]))
    if not kept:
        return b"", b""
    size = sum(_padded(_ENTRY.size + len(name)) + _padded(len(value)) for _, name, value in kept) + 4
    if size <= BEHIND - 4:
        return struct.pack("<I", _MAGIC) + _filled(kept, BEHIND - 4, 0)[0], b""
    if size > BLOCK - _HEADER.size:
        raise ValueError(f"ext4 has room for {BLOCK - _HEADER.size} bytes of its attributes, they take {size}")
    body, hashes = _filled(kept, BLOCK - _HEADER.size, _HEADER.size)
    whole = 0
    for one in hashes:
        whole = (whole << 16 | whole >> 16) & _MASK ^ one
    return b"", _HEADER.pack(_MAGIC, 1, 1, whole, 0) + body


def foreign(xattrs: Mapping[bytes, bytes]) -> list[bytes]:
    """The names of attributes that ext4 cannot hold: those of other systems."""
    return sorted(name for name, value in xattrs.items() if _kept((name, value))[0] is None)


def _kept(attribute: tuple[bytes, bytes]) -> tuple[tuple[int, bytes] | None, bytes]:
    name, value = attribute
    if name in _LISTS:
        stored = _access_list(value)
        return (None, b"") if stored is None else ((_LISTS[name], b""), stored)
    for prefix, index in _PREFIXES.items():
        rest = name[len(prefix) :]
        if name.startswith(prefix) and 0 < len(rest) <= 0xFF:
            return (index, rest), value
    return None, b""


def _access_list(value: bytes) -> bytes | None:
    """An access control list as it stands on the disk, None for what is none."""
    if len(value) % 8 != 4 or struct.unpack_from("<I", value)[0] != _SEEN:
        return None
    stored = [struct.pack("<I", _STORED)]
    for tag, rights, who in _RULE.iter_unpack(value[4:]):
        if tag in _NAMED:
            stored.append(_RULE.pack(tag, rights, who))
        elif tag in _UNNAMED:
            stored.append(struct.pack("<HH", tag, rights))
        else:
            return None
    return b"".join(stored)


def _padded(size: int) -> int:
    return size + -size % 4


def _filled(kept: list[tuple[int, bytes, bytes]], size: int, before: int) -> tuple[bytes, list[int]]:
    """Entries from the start, values from the end; where a value is counts from ``before`` bytes before the start."""
    entries, values, hashes, end = [], [], [], size
    for index, name, value in kept:
        end -= _padded(len(value))
        hashes.append(_hash(name, value))
        where = before + end if value else 0
        entry = _ENTRY.pack(len(name), index, where, 0, len(value), hashes[-1]) + name
        entries.append(entry.ljust(_padded(len(entry)), b"\0"))
        values.append(value.ljust(_padded(len(value)), b"\0"))
    front = b"".join(entries)
    return front + bytes(end - len(front)) + b"".join(reversed(values)), hashes


def _hash(name: bytes, value: bytes) -> int:
    found = 0
    for byte in name:
        found = (found << 5 | found >> 27) & _MASK ^ byte
    for (word,) in struct.iter_unpack("<I", value.ljust(_padded(len(value)), b"\0")):
        found = (found << 16 | found >> 16) & _MASK ^ word
    return found
