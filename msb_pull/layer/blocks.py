"""A stream cut into the blocks of a tar archive, with everything but payloads copied to a record."""

from __future__ import annotations

from msb_pull.layer.limits import LayerError

# Importing typing costs a child more than reading a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol

    class Sink(Protocol):
        """What takes every byte that is no payload."""

        def write(self, data: bytes) -> None: ...

    class Stream(Protocol):
        """What a reader reads from."""

        def readinto(self, buffer: memoryview, /) -> int | None: ...


BLOCK = 512
BUFFER = 1 << 20
ZEROS = bytes(BLOCK)


class BlockReader:
    """Reads ``stream`` through one buffer of a mebibyte; ``record`` takes what :meth:`_take` passes."""

    def __init__(self, stream: Stream, record: Sink | None) -> None:
        self._readinto = stream.readinto
        self._record = record
        self._view = memoryview(bytearray(BUFFER))
        self._pos = 0
        self._end = 0
        self._name = b""
        self.entries = 0
        self.bytes_read = 0

    def _raw(self, size: int, *, padded: bool = True) -> bytes:
        """``size`` bytes (at most an extension header's limit) without the padding that follows them."""
        whole = size + (-size % BLOCK if padded else 0)
        parts = []
        left = whole
        while left:
            there = min(self._need(min(left, BUFFER)), left)
            if not there:
                self._fail("the archive ends inside an extension header")
            parts.append(self._take(there))
            left -= there
        return b"".join(parts)[:size]

    def _block(self) -> bytes | None:
        pos = self._pos
        if self._end - pos >= BLOCK:
            self._pos = pos + BLOCK
            block = bytes(self._view[pos : pos + BLOCK])
            if self._record is not None:
                self._record.write(block)
            return block
        there = self._need(BLOCK)
        if not there:
            return None
        if there < BLOCK:
            self._fail("the archive ends inside a header", index=self.entries)
        return self._take(BLOCK)

    def _take(self, size: int) -> bytes:
        pos = self._pos
        data = bytes(self._view[pos : pos + size])
        self._pos = pos + size
        if self._record is not None:
            self._record.write(data)
        return data

    def _need(self, size: int) -> int:
        """Reads until ``size`` bytes (at most the buffer's size) lie in the buffer; returns how many do."""
        while self._end - self._pos < size and self._fill():
            pass
        return self._end - self._pos

    def _fill(self) -> int:
        pos, end = self._pos, self._end
        if pos == end:
            self._pos = self._end = pos = end = 0
        elif end == BUFFER:
            rest = bytes(self._view[pos:end])
            self._view[: len(rest)] = rest
            self._pos, self._end = 0, len(rest)
            end = self._end
        count = self._readinto(self._view[end:]) or 0
        self._end = end + count
        self.bytes_read += count
        return count

    def _fail(self, what: str, hint: str | None = None, index: int | None = None) -> NoReturn:
        raise LayerError(max(self.entries - 1, 0) if index is None else index, self._name, what, hint=hint)
