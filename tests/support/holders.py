"""Processes that hold a lock."""

from __future__ import annotations

import contextlib
import subprocess
import sys

from tests.conftest import REPOSITORY, program_environment
from tests.support.stores import NEVER

HOLDER = """
import sys, threading
from pathlib import Path
from msb_pull.store.locks import Locks
with Locks(Path(sys.argv[1])).hold(sys.argv[2], exclusive=sys.argv[3] == "x", on_wait=print, cancel=threading.Event()):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder, name="store", kind="x"):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), name, kind],
        cwd=REPOSITORY, env=program_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def hold(locks, name="store", *, exclusive=True, on_wait=lambda text: None, cancel=NEVER, wait=True):
    return locks.hold(name, exclusive=exclusive, on_wait=on_wait, cancel=cancel, wait=wait)
