"""Ctrl-C, SIGTERM and SIGHUP: the first asks everything to stop, the second, or a second's delay, ends the process."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING, Any

from msb_pull.ground.running import Cancel, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

# How long work may take to notice that it is to stop. What is left lying is swept by the next pull.
_GRACE = 0.9


class Interrupts:
    """Turns signals into a flag, even while the main thread waits inside a C function (a name server, say).

    Python runs signal handlers between two steps of the main thread only; a thread of our own that reads the wake-up
    descriptor learns of them at once.
    """

    def __init__(self) -> None:
        self.cancel = Cancel()
        self.number: int | None = None
        self._farewell: Callable[[], None] = lambda: None
        self._read, self._write = -1, -1
        self._former: dict[int, Any] = {}

    def install(self, farewell: Callable[[], None]) -> None:
        """Starts listening; ``farewell`` is called right before a forced end. Only for the main thread."""
        self._farewell = farewell
        self._read, self._write = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # What the caller has ignored (nohup, a job in the background of a script) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, _leave_it_to_the_thread)
        start_thread(self._watch, "signals")

    def remove(self) -> None:
        """Stops listening; once a signal has come the thread stays, to end a process that cannot end by itself."""
        if self.number is None and self._write >= 0:
            signal.set_wakeup_fd(-1)
            for number, handler in self._former.items():
                signal.signal(number, handler)
            os.close(self._write)

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal that came first."""
        return 128 + (self.number or signal.SIGINT)

    def _watch(self) -> None:
        number = os.read(self._read, 1)
        if not number:
            os.close(self._read)
            return
        self.number = number[0]
        self.cancel.set()
        select.select([self._read], [], [], _GRACE)
        self._farewell()
        os._exit(self.exit_code)


def _leave_it_to_the_thread(number: int, frame: object) -> None:
    """A handler must exist for the wake-up descriptor to be written to."""
