"""A step of a pipeline in a thread of its own, so that the steps before and after it work at the same time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msb_pull.ground.pools import Pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType

# Waiting pieces ride over what one side does slowly; each is half a mebibyte, and the child has a store of its own.
DEPTH = 4


class Handoff:
    """Gives pieces, in order, to ``work`` in another thread; at most :data:`DEPTH` wait.

    Leaving the ``with`` block waits for the piece in work, so whatever ``work`` may be waiting for must have been ended
    before; pieces that still wait then are dropped.
    """

    def __init__(self, work: Callable[[bytes], None]) -> None:
        self._work = work
        self._pool = Pool(1, thread_name_prefix="handoff")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Handoff:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, piece: bytes) -> None:
        """Hands over one piece; blocks while too many wait. Raises what ``work`` raised on an earlier one."""
        self._waiting.append(self._pool.submit(self._work, piece))
        while self._waiting and (len(self._waiting) > DEPTH or self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Returns when all pieces are worked off; raises what ``work`` raised."""
        while self._waiting:
            self._waiting.popleft().result()
