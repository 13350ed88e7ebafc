"""Pools of threads, apart from single ones, since loading what they need takes longer than all else at a start."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msb_pull.ground.errors import LocalError, check_room_for_thread, exhausted
from msb_pull.ground.running import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.ground.running import Cancel

    _Piece = tuple[int, int, Future[Any], Callable[[], Any]]

# Waiting pieces, of a mebibyte at most, ride over what one side does slowly; the child has a store of its own.
DEPTH = 4


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

    At most ``size`` pieces are in work at once, and of those of :data:`SMALL` bytes and more at most ``large``.
    """

    def __init__(self, size: int, *, large: int | None = None) -> None:
        self._pool = Pool(size, thread_name_prefix="layer")
        self._guard = threading.Lock()
        # Two heaps: the first one is passed over while enough of its pieces are in work.
        self._large: list[_Piece] = []
        self._small: list[_Piece] = []
        self._places = size if large is None else large
        self._order = itertools.count()

    def __enter__(self) -> LargestFirst:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown()

    def submit(self, size: int, work: Callable[[], Any]) -> Future[Any]:
        """Hands over one piece of work; of two of one size the older goes first. Raises LocalError."""
        future: Future[Any] = Future()
        with self._guard:
            heap = self._small if size < SMALL else self._large
            heapq.heappush(heap, (-size, next(self._order), future, work))
        try:
            self._pool.submit(self._work_off)
        except LocalError:
            # A thread that is there may come to it all the same.
            future.cancel()
            raise
        return future

    def _work_off(self) -> None:
        """Each piece has one call of this, which may find it taken, or have to leave it to one that is at work."""
        while (piece := self._take()) is not None:
            size, _, future, work = piece
            try:
                if future.set_running_or_notify_cancel():
                    _fulfil(future, work)
            finally:
                with self._guard:
                    self._places += -size >= SMALL

    def _take(self) -> _Piece | None:
        with self._guard:
            if self._large and self._places:
                self._places -= 1
                return heapq.heappop(self._large)
            return heapq.heappop(self._small) if self._small else None


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


T = TypeVar("T")


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
