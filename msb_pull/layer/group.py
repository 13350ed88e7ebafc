"""A child process that leads a process group of its own, and its end together with all that it has started."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess

# What was killed gets this long to vanish; only a broken disk or kernel holds it longer.
_PATIENCE = 5.0
_INTERVAL = 0.01


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
