"""Extended attributes: behind the inode that has them, or once for all inodes that have the same one."""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import visible_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from msb_pull.disk.inode import Inode

# Kept as a number; the rest of the name follows. The names of access control lists are kept whole.
_PREFIXES = {b"user.": 1, b"trusted.": 4, b"security.": 6}
_WHOLE = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_HEADER = struct.Struct("<IB7x")
_ENTRY = struct.Struct("<BBH")
_MAX_SHARED = 255
_MAX_VALUE = 0xFFFF
# More of them are moved to the shared ones, so that inodes stay small.
_MAX_INLINE = 1024


class Attributes:
    """The attributes of a tree. ``shared`` is the area of those that are referred to, empty where there are none."""

    def __init__(self, inodes: Iterable[Inode]) -> None:
        self._ids: dict[bytes, int] = {}
        area = bytearray()
        held = [_entries(inode) for inode in inodes if inode.xattrs and inode.link_of is None]
        times = Counter(entry for entries in held for entry in entries)
        for entries in held:
            crowded = sum(len(entry) for entry in entries if times[entry] == 1) > _MAX_INLINE
            for entry in entries:
                if entry not in self._ids and (crowded or times[entry] > 1):
                    self._ids[entry] = len(area) // 4
                    area += entry
        self.shared = bytes(area)

    def of(self, inode: Inode) -> bytes:
        """What stands behind an inode; raises ContentError for more attributes than it may have."""
        entries = _entries(inode) if inode.xattrs else []
        if not entries:
            return b""
        ids = [self._ids[entry] for entry in entries if entry in self._ids]
        if len(ids) > _MAX_SHARED:
            raise ContentError(f"{visible_bytes(inode.path)}: EROFS takes no more than {_MAX_SHARED} attributes a file")
        inline = (entry for entry in entries if entry not in self._ids)
        return b"".join([_HEADER.pack(0, len(ids)), struct.pack(f"<{len(ids)}I", *ids), *inline])


def foreign(xattrs: Mapping[bytes, bytes]) -> list[bytes]:
    """The names of attributes that EROFS cannot hold: of other systems, or too large."""
    return sorted(name for name, value in xattrs.items() if _split(name) is None or len(value) > _MAX_VALUE)


def _entries(inode: Inode) -> list[bytes]:
    entries = []
    for name, value in sorted(inode.xattrs.items()):
        split = _split(name)
        if split is None or len(value) > _MAX_VALUE:
            continue
        index, rest = split
        entry = _ENTRY.pack(len(rest), index, len(value)) + rest + value
        entries.append(entry + bytes(-len(entry) % 4))
    return entries


def _split(name: bytes) -> tuple[int, bytes] | None:
    if name in _WHOLE:
        return _WHOLE[name], b""
    for prefix, index in _PREFIXES.items():
        rest = name[len(prefix) :]
        if name.startswith(prefix) and 0 < len(rest) <= 0xFF:
            return index, rest
    return None
