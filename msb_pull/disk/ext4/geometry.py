"""How large a file system is, and what of it goes to its own books."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.ground.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4096
GROUP = 8 * BLOCK
INODE = 256
# The inodes that the format keeps for itself; the first free one follows.
RESERVED = 10
_DESCRIPTOR = 32
_PER_BLOCK = BLOCK // INODE
_MAX_INODES = 8 * BLOCK
_MAX_BLOCKS = 1 << 32
_MIB = 1 << 20
# As mke2fs has it: one inode for so many bytes of the file system; here they are beside those of the tree.
_BYTES_PER_INODE = 16384
# Blocks of the file system, and of the journal that mke2fs gives to smaller ones; all others get the last.
_JOURNALS = ((32_768, 1024), (262_144, 4096), (524_288, 8192), (4_194_304, 16_384), (8_388_608, 32_768))
_LARGEST_JOURNAL = 65_536
# A last group that cannot hold more than its copy of the superblock is left out.
_LEAST_GROUP = 64


class Geometry:
    """The shape of a file system of ``size`` bytes for so many inodes: ``blocks`` and ``groups`` of it, ``per_group``
    inodes in each of these, ``descriptors`` blocks of group descriptors, ``tables`` blocks of inodes for each group,
    ``journal`` blocks."""

    __slots__ = ("blocks", "descriptors", "groups", "journal", "per_group", "size", "tables")

    def __init__(self, size: int, inodes: int) -> None:
        self.size = size
        self.blocks = size // BLOCK
        self.groups = max(-(-self.blocks // GROUP), 1)
        self.descriptors = -(-self.groups * _DESCRIPTOR // BLOCK)
        rest = self.blocks - (self.groups - 1) * GROUP
        if self.groups > 1 and rest < _LEAST_GROUP + self.descriptors:
            self.blocks -= rest
            self.groups -= 1
        wanted = inodes + RESERVED + inodes // 10 + size // _BYTES_PER_INODE
        each = -(-wanted // self.groups)
        self.per_group = min(each + -each % _PER_BLOCK, _MAX_INODES)
        self.tables = self.per_group // _PER_BLOCK
        self.journal = next((journal for most, journal in _JOURNALS if self.blocks < most), _LARGEST_JOURNAL)

    @property
    def own(self) -> int:
        """How many blocks are no content."""
        copies = 1 + sum(1 for _ in self.copies())
        return copies * (1 + self.descriptors) + self.groups * (2 + self.tables) + self.journal

    def copies(self) -> Iterator[int]:
        """The groups, beside the first one, that begin with a copy of the superblock and the descriptors."""
        for group in range(1, self.groups):
            if _is_power(group):
                yield group

    def holds(self, content: int, inodes: int) -> bool:
        """Whether so many blocks of content and inodes have room."""
        return self.own + content <= self.blocks and inodes + RESERVED <= self.groups * self.per_group


def _is_power(group: int) -> bool:
    """Of 3, 5 or 7, as the feature "sparse_super" has it."""
    for base in (3, 5, 7):
        power = 1
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def chosen(size: int | None, content: int, inodes: int) -> Geometry:
    """A file system of ``size`` bytes, by default of what the tree takes plus a tenth plus 64 MiB.

    ``content`` are blocks. Raises UsageError for a size that is too small or too large.
    """
    if size is not None:
        if size // BLOCK >= _MAX_BLOCKS:
            raise UsageError(f"--size: ext4 takes less than {_MAX_BLOCKS * BLOCK >> 40} TiB")
        asked = Geometry(size, inodes)
        if not asked.holds(content, inodes):
            raise too_small(size, content, inodes)
        return asked
    taken = content * BLOCK + inodes * INODE
    return _first(taken + taken // 10 + 64 * _MIB, content, inodes)


def too_small(size: int, content: int, inodes: int) -> UsageError:
    """What is said of a size that the tree does not fit into."""
    least = _first(content * BLOCK, content, inodes).size
    return UsageError(f"--size: {size // _MIB} MiB is too small", hint=f"the tree needs at least {least // _MIB} MiB")


def _first(size: int, content: int, inodes: int) -> Geometry:
    """The smallest one of whole MiB, of at least ``size`` bytes, that holds them."""
    mebibytes = -(-size // _MIB) or 1
    while not (found := Geometry(mebibytes * _MIB, inodes)).holds(content, inodes):
        # A step that stays small beside what there is.
        mebibytes += 1 + mebibytes // 1024
    return found
