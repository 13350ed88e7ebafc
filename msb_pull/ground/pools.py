"""Pools of threads, apart from single ones, since loading what they need takes longer than all else at a start."""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msb_pull.ground.errors import LocalError, NoMoreTasks, check_room_for_thread, exhausted
from msb_pull.ground.running import SMALL, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.ground.running import Cancel

    _Piece = tuple[int, int, Future[Any], Callable[[], Any]]

# Waiting pieces, of a mebibyte at most, ride over what one side does slowly; the child has a store of its own.
DEPTH = 4
# How long a cancel may go unheard, in seconds.
_SLICE = 0.1

T = TypeVar("T")


class Pool(ThreadPoolExecutor):
    """A pool whose :meth:`submit` raises LocalError when it needs one more thread and there can be no more."""

    def __init__(self, size: int, *, thread_name_prefix: str = "") -> None:
        super().__init__(size, thread_name_prefix=thread_name_prefix)
        # How many threads it may still come to need, counted down with each piece of work.
        self._to_come = size

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As ThreadPoolExecutor does."""
        if self._to_come > 0:
            check_room_for_thread()
            self._to_come -= 1
        try:
            return super().submit(work, *arguments, **named)
        except RuntimeError as error:
            raise exhausted(error) or error from None


class LargestFirst:
    """A pool of threads that takes, of all work that waits, the largest piece first.

    At most ``size`` pieces are in work at once, and of those of :data:`SMALL` bytes and more at most ``large``;
    beyond what ``most`` says, which may become less, none is begun. Where the system has fewer threads, those that
    there are do it all.
    """

    def __init__(self, size: int, *, large: int | None = None, most: Callable[[], int] | None = None) -> None:
        # All that follows is read and written under this one.
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        # How many may still be started, how many wait for a piece, and whether no piece will follow.
        self._to_come = size
        self._idle = 0
        self._over = False
        # Two heaps: the first one is passed over while enough of its pieces are in work.
        self._large: list[_Piece] = []
        self._small: list[_Piece] = []
        self._places = size if large is None else large
        self._most = most or (lambda: size)
        self._at_work = 0
        self._order = itertools.count()

    def __enter__(self) -> LargestFirst:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def submit(self, size: int, work: Callable[[], Any]) -> Future[Any]:
        """Hands over one piece of work; of two of one size the older goes first. Raises LocalError without a thread."""
        future: Future[Any] = Future()
        heap = self._small if size < SMALL else self._large
        with self._changed:
            heapq.heappush(heap, (-size, next(self._order), future, work))
            ready = len(self._small) + min(len(self._large), self._places)
            more = ready > self._idle and self._to_come > 0
            self._to_come -= more
            self._changed.notify()
        if more:
            self._add_thread(future)
        return future

    def _add_thread(self, needed: Future[Any]) -> None:
        try:
            thread = start_thread(self._work_off, "layer")
        except LocalError:
            with self._changed:
                self._to_come += 1
                if self._threads:
                    return
            needed.cancel()
            raise
        with self._changed:
            self._threads.append(thread)

    def _work_off(self) -> None:
        while (piece := self._take()) is not None:
            size, _, future, work = piece
            try:
                if future.set_running_or_notify_cancel():
                    _fulfil(future, work)
            finally:
                self._give_back(large=-size >= SMALL)

    def _take(self) -> _Piece | None:
        with self._changed:
            self._idle += 1
            try:
                while (piece := self._next()) is None:
                    if self._over:
                        # What still waits is for those who are at work.
                        return None
                    self._changed.wait()
                return piece
            finally:
                self._idle -= 1

    def _next(self) -> _Piece | None:
        """What may be begun now, if anything; called under the lock."""
        if self._at_work >= self._most():
            return None
        if self._large and self._places:
            self._places -= 1
            self._at_work += 1
            return heapq.heappop(self._large)
        if self._small:
            self._at_work += 1
            return heapq.heappop(self._small)
        return None

    def _give_back(self, *, large: bool) -> None:
        with self._changed:
            self._places += large
            self._at_work -= 1


def _fulfil(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is for whoever waits for the future
        future.set_exception(error)


class StoppingPool:
    """What one user gives to a pool, which others may use too: all of it has ended when the ``with`` block is left.

    An error that leaves the block sets ``failed`` and drops what has not begun.
    """

    def __init__(self, pool: LargestFirst, failed: Cancel) -> None:
        self._pool = pool
        self._failed = failed
        self._given: list[Future[Any]] = []

    def __enter__(self) -> StoppingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._failed.set()
            self._given = [future for future in self._given if not future.cancel()]
        wait(self._given)

    def submit(self, size: int, work: Callable[[], Any]) -> Future[Any]:
        """See :meth:`LargestFirst.submit`."""
        self._given.append(self._pool.submit(size, work))
        return self._given[-1]


class Admission:
    """Lets pieces of work run at the same time, as many as the system has threads and processes for.

    Any thread may call it. No piece may wait for another one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._most = sys.maxsize

    def run(self, work: Callable[[], T], cancel: Cancel) -> T:
        """Does ``work``, and where that raised NoMoreTasks while others ran, again once one of them has ended.

        Raises what ``work`` does, Cancelled.
        """
        while True:
            alone = self._enter(cancel)
            try:
                return work()
            except NoMoreTasks:
                if alone:
                    raise
                self._allow_fewer()
            finally:
                self._leave()
            # The kernel counts a thread for a moment after it has ended.
            cancel.wait(_SLICE)

    def _enter(self, cancel: Cancel) -> bool:
        """Waits until one more may run; whether no other does so, nor will."""
        with self._changed:
            while self._running >= self._most:
                cancel.check()
                self._changed.wait(_SLICE)
            self._running += 1
            return self._most == 1

    def _allow_fewer(self) -> None:
        with self._changed:
            self._most = max(1, min(self._most, self._running - 1))

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


class Handoff(Generic[T]):
    """A step of a pipeline: gives pieces, in order, to ``work`` in another thread; at most ``depth`` wait.

    Leaving the ``with`` block waits for the piece in work, so whatever ``work`` may be waiting for must have been ended
    before; pieces that still wait then are dropped.
    """

    def __init__(self, work: Callable[[T], None], depth: int = DEPTH) -> None:
        self._work = work
        self._depth = depth
        self._pool = Pool(1, thread_name_prefix="handoff")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Handoff[T]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, piece: T) -> None:
        """Hands over one piece; blocks while too many wait. Raises what ``work`` raised on an earlier one."""
        self._waiting.append(self._pool.submit(self._work, piece))
        while self._waiting and (len(self._waiting) > self._depth or self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Returns when all pieces are worked off; raises what ``work`` raised."""
        while self._waiting:
            self._waiting.popleft().result()
