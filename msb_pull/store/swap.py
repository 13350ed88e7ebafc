"""What the standard library does not offer: swapping two directories at once, and flushing a file system."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2
# What kernels say that lack a call, and the seccomp policies of containers that forbid it.
_NOT_OFFERED = frozenset((errno.ENOSYS, errno.EPERM))
# Where EPERM is about the folders instead, moving them one by one meets it again and reports it.
_NO_SWAP = _NOT_OFFERED | {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_BUSY_TRIES = 3


def rename(old: Path, new: Path) -> None:
    """os.rename, tried three times: indexers and virus scanners hold directories for a moment. Raises OSError."""
    for remaining in reversed(range(_BUSY_TRIES)):
        try:
            os.rename(old, new)
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EPERM) or not remaining:
                raise
            time.sleep(0.1)


def exchange(new: Path, old: Path, *, aside: Path) -> None:
    """Swaps two names of one file system, so that ``old`` always shows one of both; then ``new`` is what was replaced.

    renameat2 on Linux, renamex_np on macOS. Where the system cannot, ``old`` is moved to ``aside`` first, so that for a
    moment there is none. Raises OSError.
    """
    if _swap(os.fsencode(new), os.fsencode(old)):
        return
    rename(old, aside)
    try:
        rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise


def flush(*folders: Path) -> None:
    """Flushes the file system of the first folder to its device (syncfs, or sync), and each folder's own entries.

    Raises OSError, also for data that could not be written earlier.
    """
    for position, folder in enumerate(folders):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if position == 0:
                _flush_file_system(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(one: bytes, other: bytes) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        result = libc.renamex_np(one, other, _RENAME_SWAP)
    elif hasattr(libc, "renameat2"):
        result = libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
    else:
        return False
    number = ctypes.get_errno()
    if result != 0 and number not in _NO_SWAP:
        raise OSError(number, os.strerror(number), os.fsdecode(other))
    return bool(result == 0)


def _flush_file_system(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
    elif libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        if number not in _NOT_OFFERED:
            raise OSError(number, os.strerror(number))
        os.sync()
