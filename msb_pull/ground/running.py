"""How work runs: what ends it, who observes it, how often, and in which threads."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from msb_pull.ground.errors import Cancelled, GivenUp, check_room_for_thread, exhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.ground.events import Event, Observer

# How long a cancel that comes from elsewhere may go unheard, in seconds.
_SLICE = 0.1
# Layers at a time, unless the user names a number.
MOST_AT_ONCE = 8
# Work on fewer bytes mostly waits for an answer, and takes neither much memory nor a processor.
SMALL = 1 << 20
MOST_SMALL_AT_ONCE = 16
# Each takes some seven descriptors. What there is is for images of many layers where it is less than systems give.
_USUAL_OPEN_FILES = 1024
# A terminal cannot show more, and a slow one must not slow the work.
_PROGRESS_INTERVAL = 0.1


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Flag(Protocol):
    """Anything that can be set: a :class:`Cancel`, or a ``threading.Event`` of a program that embeds this package."""

    def is_set(self) -> bool: ...


class Cancel:
    """Ends work. Any thread may set and ask it; it counts as set, too, once one of ``others`` is.

    One that has others ends a part of their work, and is set itself where that part has failed.
    """

    def __init__(self, *others: Flag) -> None:
        self._own = threading.Event()
        self._others = others

    def set(self) -> None:
        """Asks for the end, for good."""
        self._own.set()

    def is_set(self) -> bool:
        """Whether work is to end."""
        # Asked for each small file; most have no others.
        return self._own.is_set() or (bool(self._others) and any(other.is_set() for other in self._others))

    def wait(self, seconds: float) -> bool:
        """Waits; returns True as soon as work is to end, else False when the time is over."""
        if not self._others:
            return self._own.wait(seconds)
        end = time.monotonic() + seconds
        while not self.is_set():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._own.wait(min(left, _SLICE))
        return True

    def check(self, hint: str | None = None) -> None:
        """Raises Cancelled once work is to end, GivenUp if that was not asked for; ``hint`` says how to continue it."""
        if self.is_set():
            raise (Cancelled if self._asked() else GivenUp)("interrupted", hint=hint)

    def _asked(self) -> bool:
        if not self._others:
            return self._own.is_set()
        return any(other._asked() if isinstance(other, Cancel) else other.is_set() for other in self._others)


def _ignore(event: Event) -> None:
    """Nobody listens."""


# Events are loaded when there is something to tell: a pull that has nothing to do takes less time than loading them.


@dataclass(frozen=True, slots=True)
class Job:
    """How a piece of work is to run: who hears of it, what ends it, and how many layers it may handle at a time.

    ``jobs`` is None for what suits the machine. ``own_process`` says that nothing else runs in this process, so that
    what holds for all of it may be changed for good. ``eased`` is set once a server has failed to answer as many
    requests at a time as it got.
    """

    observer: Observer = _ignore
    cancel: Cancel = field(default_factory=Cancel)
    jobs: int | None = None
    own_process: bool = False
    eased: Cancel = field(default_factory=Cancel)

    @property
    def at_once(self) -> int:
        """How many layers to handle at a time if most of them are small; may become fewer."""
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        few = most != resource.RLIM_INFINITY and most < _USUAL_OPEN_FILES
        return self.jobs or (MOST_AT_ONCE if few or self.eased.is_set() else MOST_SMALL_AT_ONCE)

    @property
    def large_at_once(self) -> int:
        """How many layers to handle at a time that take a processor each: those of :data:`SMALL` bytes and more."""
        return self.jobs or min(MOST_AT_ONCE, 2 * processors())

    def tell(self, event: Event) -> None:
        """Hands an event to the observer."""
        self.observer(event)

    def log(self, image: str, text: str, *, level: int = 1) -> None:
        """Tells ``-v`` (level 1) or ``-vv`` (level 2) of something about ``image`` ("" for none)."""
        from msb_pull.ground.events import Logged

        self.observer(Logged(image, level, text))

    def warn(self, image: str, text: str) -> None:
        """Warns of something about ``image`` ("" for none) that a person should know."""
        from msb_pull.ground.events import Warned

        self.observer(Warned(image, text))

    def tell_waiting(self, holder: str) -> None:
        """Tells that another process, ``holder``, has locked the whole store."""
        from msb_pull.ground.events import StoreWaiting

        self.observer(StoreWaiting("", holder))


class Throttle:
    """Lets progress pass ten times a second; for one thread."""

    def __init__(self) -> None:
        self._last = 0.0

    def passes(self, *, last: bool = False) -> bool:
        """Whether to tell now; the last report always passes."""
        now = time.monotonic()
        if not last and now - self._last < _PROGRESS_INTERVAL:
            return False
        self._last = now
        return True


class OwnThread(threading.Thread):
    """A thread of this package, as opposed to those of a program that uses it."""


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Starts a thread that ends with the process; raises LocalError when there can be no more."""
    check_room_for_thread()
    thread = OwnThread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        # Python has no error of its own for this.
        raise exhausted(error) or error from None
    return thread
