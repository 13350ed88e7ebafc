"""Hashing beside the work that gives the bytes, on another processor where there is one."""

from __future__ import annotations

from msb_pull.ground.errors import LocalError, check_room_for_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from queue import SimpleQueue
    from types import TracebackType
    from typing import Protocol

    class Hasher(Protocol):
        """What :mod:`hashlib` makes."""

        def update(self, data: bytes | memoryview, /) -> None: ...

        def hexdigest(self) -> str: ...


# Pieces that may wait; together a few MiB.
_DEPTH = 8


class Hashing:
    """Hashes with ``hasher``: in a thread of its own if ``beside``, unless there can be no more threads.

    The thread has ended when the ``with`` block is left.
    """

    def __init__(self, hasher: Hasher, *, beside: bool) -> None:
        self._hasher = hasher
        self._beside = beside
        self._over = True

    def __enter__(self) -> Hashing:
        if self._beside:
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def update(self, piece: bytes | memoryview) -> None:
        """Takes the next bytes, which the caller may then use for others; waits while too many wait."""
        if self._over:
            self._hasher.update(piece)
        else:
            self._room.acquire()
            self._pieces.put(bytes(piece))

    def hexdigest(self) -> str:
        """The digest of all that was taken; nothing more may follow."""
        self._end()
        return self._hasher.hexdigest()

    def _start(self) -> None:
        from queue import SimpleQueue
        from threading import BoundedSemaphore, Thread

        self._pieces: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = BoundedSemaphore(_DEPTH)
        self._thread = Thread(target=self._work, name="hashing", daemon=True)
        try:
            check_room_for_thread()
            self._thread.start()
        except (RuntimeError, LocalError):
            return
        self._over = False

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._pieces.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._hasher.update(piece)
            self._room.release()
