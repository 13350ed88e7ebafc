"""Two things the standard library does not offer: swapping two directories at once, and flushing a file system."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(new: Path, old: Path, *, aside: Path) -> None:
    """Swaps two directories of one file system, so that ``old``'s name always shows one of them (renameat2).

    Where the system cannot, ``old`` is moved to ``aside`` first. Raises OSError.
    """
    if sys.platform.startswith("linux"):
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
    os.rename(old, aside)
    os.rename(new, old)


def flush(path: Path) -> None:
    """Flushes the file system that holds ``path`` to its device (syncfs, or sync where there is none)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if sys.platform.startswith("linux"):
            import ctypes

            ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
        else:
            os.sync()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
