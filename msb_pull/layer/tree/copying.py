"""Copies of files, where a hard link is impossible."""

from __future__ import annotations

import errno
import os
import stat

from msb_pull.ground.below import create_file, open_file
from msb_pull.layer.tree.attributes import disk_mode
from msb_pull.layer.tree.holes import data_ranges
from msb_pull.layer.tree.xattrs import set_attribute, user_attributes

_NOT_IN_KERNEL = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM))
# Other devices, too many links, file systems or policies without hard links: then a copy does.
REFUSED = frozenset((errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))
_PIECE = 1 << 20


def copy_entry(source: int, name: bytes, directory: int, new: bytes, room: int) -> int:
    """Copies what stands at ``name`` in an open directory, never following it; ``new`` must be free.

    Returns how many bytes were copied; raises TooMuch before they are more than ``room``, OSError.
    """
    facts = os.stat(name, dir_fd=source, follow_symlinks=False)
    when = (facts.st_mtime_ns, facts.st_mtime_ns)
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), new, dir_fd=directory)
        os.utime(new, ns=when, dir_fd=directory, follow_symlinks=False)
        return 0
    original = open_file(name, source)
    try:
        copy = create_file(new, directory)
        try:
            done = copy_contents(original, copy, room)
            os.utime(copy, ns=when)
            return done
        finally:
            os.close(copy)
    finally:
        os.close(original)


def copy_contents(original: int, copy: int, room: int) -> int:
    """Copies mode (as far as it gets onto the disk), ``user.`` attributes and bytes between open files.

    Returns the number of bytes as :func:`copy_bytes` does.
    """
    facts = os.fstat(original)
    os.fchmod(copy, disk_mode(stat.S_IFREG, facts.st_mode))
    for name, value in user_attributes(original):
        set_attribute(copy, name, value)
    return copy_bytes(original, copy, room)


class TooMuch(Exception):
    """A copy would take more than it may."""


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
