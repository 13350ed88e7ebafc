"""Pools of threads, apart from single ones, since loading what they need takes longer than all else at a start."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msb_pull.ground.errors import LocalError, exhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.ground.running import Cancel

# Waiting pieces ride over what one side does slowly; each is half a mebibyte, and the child has a store of its own.
DEPTH = 4


class Pool(ThreadPoolExecutor):
    """A pool whose :meth:`submit` raises LocalError when it needs one more thread and there can be no more."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As ThreadPoolExecutor does."""
        try:
            return super().submit(work, *arguments, **named)
        except RuntimeError as error:
            raise exhausted(error) or error from None


class LargestFirst:
    """A pool of threads that takes, of all work that waits, the largest piece first."""

    def __init__(self, size: int) -> None:
        self._pool = Pool(size, thread_name_prefix="layer")
        self._guard = threading.Lock()
        self._waiting: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        self._order = itertools.count()

    def __enter__(self) -> LargestFirst:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown()

    def submit(self, size: int, work: Callable[[], Any]) -> Future[Any]:
        """Hands over one piece of work; of two of one size the older goes first. Raises LocalError."""
        future: Future[Any] = Future()
        with self._guard:
            heapq.heappush(self._waiting, (-size, next(self._order), future, work))
        try:
            self._pool.submit(self._take_largest)
        except LocalError:
            # A thread that is there may come to it all the same.
            future.cancel()
            raise
        return future

    def _take_largest(self) -> None:
        with self._guard:
            _, _, future, work = heapq.heappop(self._waiting)
        if not future.set_running_or_notify_cancel():
            return
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


_Piece = TypeVar("_Piece")


class Handoff(Generic[_Piece]):
    """A step of a pipeline: gives pieces, in order, to ``work`` in another thread; at most ``depth`` wait.

    Leaving the ``with`` block waits for the piece in work, so whatever ``work`` may be waiting for must have been ended
    before; pieces that still wait then are dropped.
    """

    def __init__(self, work: Callable[[_Piece], None], depth: int = DEPTH) -> None:
        self._work = work
        self._depth = depth
        self._pool = Pool(1, thread_name_prefix="handoff")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Handoff[_Piece]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, piece: _Piece) -> None:
        """Hands over one piece; blocks while too many wait. Raises what ``work`` raised on an earlier one."""
        self._waiting.append(self._pool.submit(self._work, piece))
        while self._waiting and (len(self._waiting) > self._depth or self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Returns when all pieces are worked off; raises what ``work`` raised."""
        while self._waiting:
            self._waiting.popleft().result()
