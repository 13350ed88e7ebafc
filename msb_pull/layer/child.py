"""Child processes that unpack and prove layers: how they start, report, and end with all they started.

:func:`begin` and :func:`say` run in the child itself.
"""

from __future__ import annotations

import errno
import os
import sys
import time

import isal

from msb_pull.ground.errors import WHY_KILLED, LocalError, exhausted, no_more_tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Sequence
    from typing import IO, Protocol

    class Process(Protocol):
        """What :class:`subprocess.Popen` shows of a process, as far as it is needed here."""

        pid: int
        returncode: int | None
        stdin: IO[bytes] | None
        stdout: IO[bytes] | None
        stderr: IO[bytes] | None

        def wait(self, timeout: float | None = None) -> int:
            """Its exit status, once it has ended; raises TimeoutExpired after so many seconds."""


# How long a killed process may take to go; only a broken disk or kernel holds it longer.
_PATIENCE = 5.0
_INTERVAL = 0.01
_PIECE = 1 << 16
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
# SIGUSR1 (layer/unpack/filler.py).
_LOST_HELPER = 10
_KILLED = f"{WHY_KILLED}; --jobs 1 needs the least"
_PATHS = "import sys; sys.path += [sys.argv.pop(1) for _ in range(int(sys.argv.pop(1)))]; "
_BEGIN = "from msb_pull.layer.child import begin; begin(int(sys.argv.pop(1))); "


class Child:
    """A process of ours that leads a group of its own; ``who`` is what errors call it.

    Any thread may call :meth:`end`, any number of times. Raises OSError where there can be no more descriptors; the
    process has then ended.
    """

    def __init__(self, who: str, process: Process) -> None:
        import threading

        self._who = who
        self._lock = threading.Lock()
        self.process = process
        self._watched: int | None = None
        assert process.stdout is not None
        self.out = process.stdout.fileno()
        try:
            self._watched = watch(process.pid)
        except ProcessLookupError:
            # It has ended and was waited for, by who was its parent after the server that forked it was killed.
            return
        except OSError:
            self.end()
            self.close()
            raise

    @classmethod
    def start(
        cls, who: str, code: str, words: Sequence[str] = (), *, stdin: int, pass_fds: Sequence[int] = ()
    ) -> Child:
        """Runs ``code`` as :func:`interpreter` does; its arguments are the numbers of ``pass_fds`` and ``words``.

        On Linux it dies with the thread that started it.
        """
        words = (str(os.getpid()), *map(str, pass_fds), *words)
        return cls(who, interpreter(_BEGIN + code, words, stdin=stdin, pass_fds=pass_fds))

    def end(self) -> bool:
        """Kills it and every process of its group, and waits; False when they are still there after that."""
        import signal

        with self._lock:
            if self.process.returncode is None:
                # Until it has been waited for, its process id cannot be reused.
                _signal(self.process.pid, signal.SIGKILL)
            if not self.has_ended(_PATIENCE):
                return False
        deadline = time.monotonic() + _PATIENCE
        while _runs(self.process.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(_INTERVAL)
        return True

    def has_ended(self, seconds: float) -> bool:
        """Whether the child itself ends within so many seconds."""
        import subprocess

        if self._watched is not None and self.process.returncode is None:
            if not is_readable(self._watched, seconds):
                return False
            seconds = _PATIENCE
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def await_end(self) -> None:
        """Returns once it has ended, which it can still be told apart from any other process after."""
        import contextlib

        if self._watched is not None:
            is_readable(self._watched)
        elif hasattr(os, "waitid"):
            # Another thread may have waited for it already.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def crashed(self) -> LocalError:
        """The error of a child that has ended without an answer: the signal, or its last line on standard error."""
        assert self.process.stderr is not None
        status, handle = self.process.returncode or 0, self.process.stderr.fileno()
        if status == -_LOST_HELPER:
            return LocalError(f"a process that helps {self._who} was killed", hint=_KILLED)
        if status < 0:
            hint = _KILLED if status == -_SIGKILL else None
            return LocalError(f"{self._who} was killed by signal {-status}", hint=hint)
        # Not up to the end of the pipe, which a process that the child has left behind could hold open for ever.
        os.set_blocking(handle, False)
        try:
            stderr = os.read(handle, _PIECE)
        except BlockingIOError:
            stderr = b""
        lines = stderr.decode("utf-8", "backslashreplace").strip().splitlines()
        last = lines[-1] if lines else f"exit status {status}"
        # It failed before it could report, while loading its modules for instance.
        if last.startswith("MemoryError") and (spent := exhausted(MemoryError())):
            return spent
        return LocalError(f"{self._who} crashed", cause=last)

    def close(self) -> None:
        """Closes our ends of its pipes; may be called again."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if self._watched is not None:
            os.close(self._watched)
            self._watched = None


def interpreter(
    code: str, words: Sequence[str], *, stdin: int, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Runs ``code`` in an interpreter that has the standard library, this package and ISA-L alone, and no environment.

    ``words`` are its arguments. Raises LocalError when there can be no more processes, OSError for any other reason.
    """
    import subprocess

    paths = _paths()
    try:
        return subprocess.Popen(
            # Isolated, without site-packages.
            [sys.executable, "-I", "-S", "-B", "-c", _PATHS + code, str(len(paths)), *paths, *words],
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
        # The error names a program that cannot be run, but not a process that cannot be made.
        if error.filename is None:
            raise exhausted(error) or no_more_tasks(error.strerror) from None
        raise


def watch(pid: int) -> int | None:
    """A descriptor of a process that becomes readable when it ends (pidfd_open(2)); None where there is no such thing.

    Raises OSError where there can be no more descriptors, and ProcessLookupError where there is no such process.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        # Kernels before 5.3, and policies, which refuse it with an error of their own.
        return None


def is_readable(descriptor: int, seconds: float | None = None) -> bool:
    """Whether something can be read within so many seconds, None for ever."""
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def begin(parent: int) -> None:
    """What each child does first. On Linux the kernel then ends it with its parent, whose process id is ``parent``."""
    import gc

    # Nothing per entry makes cycles, and looking for some would cost on every few hundred entries.
    gc.disable()
    if sys.platform.startswith("linux"):
        die_with_parent(parent)


def die_with_parent(parent: int) -> None:
    """Has the kernel end this process together with its parent, whose process id is ``parent``; Linux."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It ended before the kernel was asked.
        os._exit(1)


def say(pieces: Iterable[bytes]) -> None:
    """Sends the parent one line; adds the newline."""
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > _PIECE:
            del data[: os.write(1, data)]
    data += b"\n"
    while data:
        del data[: os.write(1, data)]


def _paths() -> list[str]:
    """Where a child finds this package and those it needs, which may be a folder each."""
    from importlib.util import find_spec
    from pathlib import Path

    found = [Path(__file__).resolve().parents[2], Path(isal.__file__).resolve().parents[1]]
    if sys.platform == "darwin":
        # For attributes; the second is what the first is built on.
        for name in ("xattr", "_cffi_backend"):
            spec = find_spec(name)
            if spec is not None and spec.origin is not None:
                found.append(Path(spec.origin).resolve().parents[1 if spec.submodule_search_locations else 0])
    return list(map(str, dict.fromkeys(found)))


def _signal(group: int, number: int) -> bool:
    """Whether there is such a group."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS says so when only zombies are left of it.
        return True
    return True


def _runs(group: int) -> bool:
    """Whether a process of a group is still at work.

    Those that have ended but were not waited for count for the kernel; in a container whose first process waits for
    none, they would do so for ever.
    """
    if not _signal(group, 0):
        return False
    if not sys.platform.startswith("linux"):
        return True
    with os.scandir("/proc") as entries:
        return any(_is_at_work(entry.path, group) for entry in entries if entry.name.isdigit())


def _is_at_work(process: str, group: int) -> bool:
    """Whether a process, a folder of /proc, belongs to a group and has not ended (proc_pid_stat(5))."""
    try:
        with open(f"{process}/stat", "rb") as file:
            state, _, found = file.read().rpartition(b")")[2].split()[:3]
    except OSError:
        return False
    return int(found) == group and state not in (b"Z", b"X")
