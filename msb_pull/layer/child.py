"""A child process that leads a process group of its own: its start, and its end together with all it has started."""

from __future__ import annotations

import os
import sys
import time

import isal

import msb_pull
from msb_pull.ground.errors import LocalError, exhausted, no_more_tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

# What was killed gets this long to vanish; only a broken disk or kernel holds it longer.
_PATIENCE = 5.0
_INTERVAL = 0.01
_SIGKILL = 9
_KILLED = "the kernel does so when memory runs out (`dmesg`, the limit of a container); --jobs 1 needs the least"
_PATHS = "import sys; sys.path += sys.argv.pop(1), sys.argv.pop(1); "


def start_child(
    code: str, words: Sequence[str], *, stdin: int, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Runs ``code`` in an interpreter that has the standard library, this package and ISA-L alone, and no environment.

    Raises LocalError when there can be no more processes, OSError for any other reason.
    """
    import subprocess
    from pathlib import Path

    paths = [str(Path(x).resolve().parent.parent) for x in (msb_pull.__file__, isal.__file__)]
    try:
        return subprocess.Popen(
            # Isolated, without site-packages.
            [sys.executable, "-I", "-S", "-B", "-c", _PATHS + code, *paths, *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=pass_fds,
            env={},
            cwd="/",
            # A Ctrl-C at the terminal is for the parent, which ends its children itself.
            start_new_session=True,
        )
    except OSError as error:
        # A program that cannot be run has a name, a process that cannot be made has none.
        if error.filename is None:
            raise exhausted(error) or no_more_tasks(error.strerror) from None
        raise


def crashed(who: str, status: int, stderr: bytes) -> LocalError:
    """The error of a child that ended without an answer, with its last line on standard error or its ``status``."""
    if status < 0:
        hint = _KILLED if status == -_SIGKILL else None
        return LocalError(f"{who} was killed by signal {-status}", hint=hint)
    lines = stderr.decode("utf-8", "backslashreplace").strip().splitlines()
    last = lines[-1] if lines else f"exit status {status}"
    # Before it could tell its parent properly: while it loaded its modules, say.
    if last.startswith("MemoryError") and (spent := exhausted(MemoryError())):
        return spent
    return LocalError(f"{who} crashed", cause=last)


class ProcessGroup:
    """``leader`` was started with a session of its own. Any thread may call :meth:`end`, any number of times."""

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        import threading

        self._leader = leader
        self._lock = threading.Lock()

    def end(self) -> bool:
        """Kills the leader and every process of its group, and waits; False when they are still there after that."""
        import signal
        import subprocess

        leader = self._leader
        with self._lock:
            if leader.returncode is None:
                # Until it has been waited for, its number cannot have become that of others.
                _signal(leader.pid, signal.SIGKILL)
            try:
                leader.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                return False
        deadline = time.monotonic() + _PATIENCE
        while _signal(leader.pid, 0):
            if time.monotonic() > deadline:
                return False
            time.sleep(_INTERVAL)
        return True


def _signal(group: int, number: int) -> bool:
    """Whether there is such a group."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # So macOS says that all that is left of it waits to be waited for.
        return True
    return True
