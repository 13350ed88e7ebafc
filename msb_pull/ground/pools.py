"""Pools of threads, apart from single ones, since loading what they need takes longer than all else at a start."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import exhausted

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

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


class StoppingPool:
    """A thread pool that stops its work before it lets an error pass."""

    def __init__(self, size: int, failed: Cancel) -> None:
        self._pool = Pool(size, thread_name_prefix="layer")
        self._failed = failed
        self.submit = self._pool.submit

    def __enter__(self) -> StoppingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._failed.set()
        self._pool.shutdown(wait=True, cancel_futures=error is not None)


class Handoff:
    """A step of a pipeline: gives pieces, in order, to ``work`` in another thread; at most :data:`DEPTH` wait.

    Leaving the ``with`` block waits for the piece in work, so whatever ``work`` may be waiting for must have been ended
    before; pieces that still wait then are dropped.
    """

    def __init__(self, work: Callable[[bytes], None]) -> None:
        self._work = work
        self._pool = Pool(1, thread_name_prefix="handoff")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Handoff:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
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
