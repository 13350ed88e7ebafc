"""A stream cut into the blocks of a tar archive, with everything but payloads copied to a record."""

from __future__ import annotations

from msb_pull.ground.tarfields import BLOCK
from msb_pull.layer.limits import LayerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol

    class Sink(Protocol):
        """Takes every byte that is not payload."""

        def write(self, data: bytes) -> None: ...

    class Stream(Protocol):
        """What a reader reads from."""

        def read(self, size: int, /) -> bytes | memoryview:
            """1 to ``size`` bytes, which stay valid until the next call; none at the end."""


BUFFER = 1 << 20


class BlockReader:
    """Reads ``stream`` piece by piece, where the pieces lie; ``record`` takes what :meth:`_take` passes."""

    def __init__(self, stream: Stream, record: Sink | None) -> None:
        self._read = stream.read
        self._record = record
        self._view = memoryview(b"")
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
            there = min(self._need(min(left, BLOCK)), left)
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
        """Reads until ``size`` bytes (at most a block) lie ready; returns how many do."""
        while self._end - self._pos < size and self._fill():
            pass
        return self._end - self._pos

    def _fill(self) -> int:
        rest = bytes(self._view[self._pos : self._end])
        piece = self._read(BUFFER)
        self._view = memoryview(rest + piece if rest else piece)
        self._pos, self._end = 0, len(self._view)
        self.bytes_read += len(piece)
        return len(piece)

    def _fail(self, what: str, hint: str | None = None, index: int | None = None) -> NoReturn:
        raise LayerError(max(self.entries - 1, 0) if index is None else index, self._name, what, hint=hint)
