"""A second process that writes one part of a file while this one writes another.

It is a fork of this one: it has all that was worked out here, so nothing need be sent to it, and what it writes it
writes into the same open file, at places of its own.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import signal
import sys
import threading
from struct import Struct
from typing import TYPE_CHECKING, Self

from msb_pull.ground.errors import WHY_KILLED, LocalError
from msb_pull.ground.running import OwnThread, processors

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    # Is told of as many bytes as were written.
    Tell = Callable[[int], None]

# As many bytes are written in the time that a file takes beside its content.
FILE = 1 << 14
# What is written in about 20 ms; a fork and its end take 5.
_WORTH = 1 << 25
# Milliseconds between two looks at whether this work is to end.
_PATIENCE = 100
_COUNT = Struct("=Q")
_PR_SET_PDEATHSIG = 1
# What os.fork raises: the kernel's refusal, and Python's in any interpreter of a process but its main one.
_REFUSED = (OSError, RuntimeError)


def gains(work: int) -> bool:
    """Whether a second process may be forked here, and helps with what takes as long as writing ``work`` bytes.

    Of threads only the one that forks goes on in a fork, and what others hold stays locked there. Ours hold nothing
    that a writer asks for; of those of a program that uses this package nobody knows.
    """
    return work >= _WORTH and processors() > 1 and sys.platform.startswith("linux") and _only_own_threads()


def _only_own_threads() -> bool:
    own = sum(isinstance(thread, OwnThread) for thread in threading.enumerate())
    try:
        # Those that Python did not start count as well; two are the directory itself and the one above.
        return os.stat("/proc/self/task").st_nlink == own + 1 + 2
    except OSError:
        return False


def start(work: Callable[[Tell], object]) -> Beside | None:
    """See :class:`Beside`; None where one process has to do it all, as where a limit leaves room for no more."""
    try:
        return Beside(work)
    except _REFUSED:
        return None


class Beside:
    """A process that does ``work``, which is given whom to tell of what it has written; a context manager, which ends
    the process.

    ``work`` loads no module and uses nothing that other threads lock. It sees no signal but that of Ctrl-Z, and ends
    with the thread that made it, even where it was stopped: it holds all locks of this process. Raises OSError where
    there can be no more processes, RuntimeError in a subinterpreter.
    """

    def __init__(self, work: Callable[[Tell], object]) -> None:
        import ctypes

        # Looked up here, since it loads nothing.
        prctl = ctypes.CDLL(None).prctl
        self._told = mmap.mmap(-1, _COUNT.size)
        self._seen = 0
        self._end, theirs = os.pipe()
        creator = os.getpid()
        # It would run the handlers of this program, and shares the descriptor that they write to: this process would
        # take its signals for a second Ctrl-C. Only Ctrl-Z is for both.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGTSTP})
        try:
            self._process = os.fork()
            if not self._process:
                prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                self._live(work, creator)
        except _REFUSED:
            os.close(self._end)
            raise
        finally:
            os.close(theirs)
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            # One that has ended may have been waited for by others, and its number given to a stranger.
            if not self._has_ended(0):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process, signal.SIGKILL)
            self._status()
        os.close(self._end)

    def with_it(self, progress: Tell) -> Tell:
        """Tells ``progress`` of what this process writes, and of what the other one has written meanwhile."""
        return lambda size: progress(size + self._news())

    def finish(self, progress: Tell) -> bool:
        """Waits for the end; returns whether all was done. If not, ``progress`` is told that nothing was.

        Raises LocalError when the process was killed, and what ``progress`` raises.
        """
        while not self._has_ended(_PATIENCE):
            progress(self._news())
        status = self._status()
        if status is not None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            hint = WHY_KILLED if number == signal.SIGKILL else None
            raise LocalError(f"a process that helps was killed by signal {number}", hint=hint)
        progress(self._news() if status == 0 else -self._seen)
        return status == 0

    def _has_ended(self, patience: int) -> bool:
        """Whether it ends within so many milliseconds: nobody else has the other end of the pipe."""
        ended = select.poll()
        ended.register(self._end, select.POLLIN)
        return bool(ended.poll(patience))

    def _news(self) -> int:
        before, self._seen = self._seen, _COUNT.unpack_from(self._told)[0]
        return self._seen - before

    def _status(self) -> int | None:
        """How it has ended (wait(2)), None where somebody else in this process has waited for it."""
        process, self._process = self._process, 0
        try:
            return os.waitpid(process, 0)[1]
        except ChildProcessError:
            return None

    def _live(self, work: Callable[[Tell], object], creator: int) -> NoReturn:
        written = 0
        if os.getppid() != creator:
            # It ended before the kernel was asked.
            os._exit(1)

        def tell(size: int) -> None:
            nonlocal written
            written += size
            _COUNT.pack_into(self._told, 0, written)

        failed = 1
        try:
            # Looking at every object would copy all memory that both share.
            gc.disable()
            work(tell)
            failed = 0
        finally:
            # Whatever it was, the other process finds it again, and tells.
            os._exit(failed)
