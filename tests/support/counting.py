"""What takes the place of a clock in tests: waiting for something that will be, and counting what is done.

How long a thing takes says something of the machine and what else it does; how often something is done is the same
everywhere. How time grows is measured by ``tests/bench/growth.py``.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 30.0, pause: float = 0.005) -> T:
    """What ``condition`` returns, once that counts as true; a test that waits in vain for so many seconds fails."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s in vain")
        time.sleep(pause)
    return found


def open_files() -> set[str]:
    """The numbers of the files that this process has open.

    What an earlier test has left to its threads (connections of a server that was stopped) may go at any moment: look
    whether there are any that were not there before.
    """
    return set(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def steps(action: Callable[[], Any]) -> int:
    """How many lines of Python the calling thread runs in ``action`` and how many functions it calls, those in C too.

    Twice as many things to do should be twice as many steps. What one call into C does with much data is not seen.
    """
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "c_call"

    former = sys.gettrace(), sys.getprofile()
    # What other tests have left would be taken down in between, which are steps as well.
    gc.collect()
    gc.disable()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.settrace(former[0])
        sys.setprofile(former[1])
        gc.enable()
    return count


def assert_linear(action: Callable[[int], Any], size: int) -> None:
    """Twice as much takes at most two and a half times as many steps."""
    action(size)  # What is loaded or cached on first use is no growth.
    once, twice = (steps(partial(action, count)) for count in (size, 2 * size))
    assert twice < 2.5 * once, f"{once} steps for {size}, {twice} for {2 * size}"
