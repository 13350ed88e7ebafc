"""Counts operations, since a clock on a busy machine proves nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable


def calls(work: Callable[[], object]) -> int:
    """How many functions, of Python or of C, ``work`` calls: every look at a path, a name or a file is one."""
    count = 0

    def on_event(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Twice as much takes at most two and a half times as many calls."""
    work(size)  # Whatever is loaded or cached on first use is no growth.
    once, twice = calls(lambda: work(size)), calls(lambda: work(2 * size))
    assert twice < 2.5 * once, f"{once} calls for {size}, {twice} for {2 * size}"
