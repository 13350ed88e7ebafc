"""How the C library deals with large buffers."""

from __future__ import annotations

import sys
from functools import cache

# mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_NEVER = (1 << 31) - 1
# It takes no more.
_LARGEST = 32 << 20


@cache
def keep_freed() -> None:
    """Has glibc keep buffers that were freed for the next ones of their size; nothing with other C libraries.

    Else it gives each that is larger than 128 KiB back to the system at once, which then has to find and clear every
    page of the next one: 3 % of a pull, where all bytes go through such buffers. One place for all threads keeps that
    small, and costs nothing, since Python lets one at a time make or free something.

    It holds for the whole process and for good, so a program that embeds this package is left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_ARENA_MAX, 1)
