"""Gathers what is to be written in large buffers, each written by a thread while the next one is filled."""

from __future__ import annotations

import os
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from msb_pull.ground.running import start_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

# Two of them stay in a processor's cache, and a system call for each costs next to nothing.
BUFFER = 1 << 19
_BUFFERS = 2
_PLACE = 1 << 18


def one_place() -> Callable[[int], memoryview]:
    """Room for one piece at a time, for whoever has written it when the next one comes."""
    place = memoryview(bytearray(_PLACE))
    return lambda size: place[:size]


def writer_at(handle: int, start: int) -> Callable[[memoryview], None]:
    """Writes into an open file from ``start`` on, wherever others write into it. Raises OSError."""
    at = start

    def write(data: memoryview) -> None:
        nonlocal at
        while data:
            count = os.pwrite(handle, data, at)
            data, at = data[count:], at + count

    return write


class Behind:
    """Takes bytes in order; a context manager, at whose end all are written. ``size`` counts what was taken.

    ``write`` writes all that it is given, and may keep none of it. A thread calls it where it is ``aside``: it must
    wait for nobody then, since an error elsewhere waits for it. What it raises, a later call here raises.
    """

    def __init__(self, write: Callable[[memoryview], object], *, aside: bool) -> None:
        self._write = write
        self._aside = aside
        self._thread: threading.Thread | None = None
        self._filled: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._error: BaseException | None = None
        self._buffer = memoryview(bytearray(BUFFER))
        self._at = 0
        self._flushed = 0

    @property
    def size(self) -> int:
        """How many bytes have been taken."""
        return self._flushed + self._at

    def room(self, size: int) -> memoryview:
        """Where to put the next bytes, ``size`` of them or a buffer full; :meth:`took` says how many are there."""
        size = min(size, BUFFER)
        if self._at + size > BUFFER:
            self.flush()
        return self._buffer[self._at : self._at + size]

    def took(self, count: int) -> None:
        """So many bytes stand in the room that was asked for last."""
        self._at += count

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Takes bytes from elsewhere."""
        size = len(data)
        end = self._at + size
        if end > BUFFER:
            self._put_large(memoryview(data))
            return
        self._buffer[self._at : end] = data
        self._at = end

    def zeros(self, count: int) -> None:
        """Takes as many zeros, if any."""
        while count > 0:
            part = min(count, BUFFER)
            self.put(bytes(part))
            count -= part

    def _put_large(self, data: memoryview) -> None:
        while data:
            room = self.room(min(len(data), BUFFER - self._at or BUFFER))
            room[:] = data[: len(room)]
            self._at += len(room)
            data = data[len(room) :]

    def flush(self) -> None:
        """Begins to write what has been taken."""
        self._flushed += self._at
        count, self._at = self._at, 0
        if not self._aside:
            self._write(self._buffer[:count])
            return
        if self._thread is None:
            self._thread = start_thread(self._run, "writing")
            for _ in range(_BUFFERS - 1):
                self._free.put(memoryview(bytearray(BUFFER)))
        self._filled.put((self._buffer, count))
        self._buffer = self._free.get()
        self._raise()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # What fits into one buffer needs no thread.
            if kind is None and self._thread is None:
                self._write(self._buffer[: self._at])
            elif kind is None and self._at:
                self.flush()
        finally:
            if self._thread is not None:
                self._filled.put(None)
                self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (filled := self._filled.get()) is not None:
            buffer, count = filled
            if self._error is None:
                try:
                    self._write(buffer[:count])
                except BaseException as error:  # noqa: BLE001 - the other thread raises it
                    self._error = error
            self._free.put(buffer)
