"""Pools of threads, apart from single ones, since loading what they need takes longer than all else at a start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import exhausted

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from msb_pull.ground.running import Cancel


class Pool(ThreadPoolExecutor):
    """A pool whose :meth:`submit` raises LocalError when it needs one more thread and there can be no more."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As it is everywhere."""
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
