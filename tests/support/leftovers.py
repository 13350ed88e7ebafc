"""What a test leaves behind ends with it, so that one failure is not found again by the tests that come after it."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def noted_starts() -> Iterator[list[subprocess.Popen]]:
    """All that subprocess starts in this process meanwhile, on any thread."""
    started: list[subprocess.Popen] = []
    begin = subprocess.Popen.__init__

    def noted(self: subprocess.Popen, *arguments: object, **named: object) -> None:
        begin(self, *arguments, **named)
        started.append(self)

    # Not the test's own: that may undo its changes at any moment.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", noted)
        yield started


def end(started: list[subprocess.Popen]) -> list[object]:
    """Kills what still runs, stopped or not, and waits for it; returns the command lines."""
    running = [process for process in started if process.poll() is None]
    for process in running:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                # What was written and not sent has nobody to go to.
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait(60)
    return [process.args for process in running]


def forget_failure() -> None:
    """Drops what the last traceback keeps alive: else its open files are found in the middle of another test."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
