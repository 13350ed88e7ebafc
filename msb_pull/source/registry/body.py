"""The body of one answer, from the byte that was wanted: ranges, lengths and encodings as servers get them wrong."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, MsbPullError
from msb_pull.image.readers import ON_THE_WAY
from msb_pull.source.http.failures import BROKEN, Failure, RangeIgnored, failure_of
from msb_pull.source.registry.refusals import is_web_page, web_page

if TYPE_CHECKING:
    from msb_pull.source.http.answer import Answer

# One call gathers what arrives within this time, in seconds, so that neither small packets nor TLS records make many
# small pieces; a slow line is not held up for longer.
_GATHER = 0.02
GATHER_BYTES = 256 * 1024
# Some versions of urllib3 decode what they read at once, however much comes of it.
_STEP = 64 * 1024
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_PLAIN = frozenset({"", "identity"})


class Body:
    """Gives the bytes of a blob from ``offset`` on. Not for several threads."""

    def __init__(self, answer: Answer, *, offset: int, size: int, decode: bool, end: int | None = None) -> None:
        """Takes over the answer to a request for ``offset`` to ``end`` (exclusive, None: ``size``, the blob's own).

        Raises RangeIgnored for any other range, ContentError for a wrong length, Failure for a web page.
        """
        end = size if end is None else end
        self.answer = answer
        self.encoded = answer.headers.get("Content-Encoding", "").strip().lower() not in _PLAIN
        self.ambiguous = False
        self._decode = False
        self._skip = 0
        self._trouble: Exception | None = None
        if answer.status == 416:
            raise RangeIgnored("the registry has no such range")
        start = 0
        if answer.status == 206:
            _check_range(answer, offset, end, size)
            start = offset
        elif end != size:
            raise RangeIgnored("the answer is no part")
        elif offset:
            self._skip = offset
        self._check_length(end - start, decode)
        if self._decode and start:
            raise RangeIgnored("a range of an encoded answer cannot be decoded")

    def _check_length(self, expected: int, decode: bool) -> None:
        length = self.answer.length
        if self.encoded:
            # Some name the encoding of the blob itself, whose bytes are what is wanted; some really add one. The
            # length tells them apart, and where there is none, only the digest can.
            if length is None:
                self.ambiguous = not decode
                self._decode = decode
            else:
                self._decode = length != str(expected)
        elif length is not None and length != str(expected):
            if is_web_page(self.answer):
                raise web_page(self.answer, "blob")
            if self.answer.status == 206:
                raise RangeIgnored("the answer has another length than the range that it says it is")
            raise ContentError(
                "the registry sends another length than the manifest says",
                cause=f"expected {expected} bytes, Content-Length is {self.answer.quote(length, limit=20)}",
                hint=ON_THE_WAY,
            )

    def read(self, size: int) -> bytes:
        """Returns 1 to ``size`` bytes, b"" at the end of the answer; raises Failure, Cancelled."""
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble
        while self._skip:
            skipped = len(self._read_once(min(self._skip, GATHER_BYTES)))
            if not skipped:
                return b""
            self._skip -= skipped
        return self._gather(min(size, GATHER_BYTES))

    def _gather(self, size: int) -> bytes:
        first = self._read_once(size)
        if not first or len(first) * 2 > size:
            return first
        pieces, left = [first], size - len(first)
        deadline = time.monotonic() + _GATHER
        while left and time.monotonic() < deadline:
            try:
                piece = self._read_once(left)
            except (Failure, MsbPullError) as error:
                # Raised by the next call: what has arrived is not lost.
                self._trouble = error
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _read_once(self, size: int) -> bytes:
        raw = self.answer.response.raw
        try:
            if self._decode:
                decoded: bytes = raw.read(min(size, _STEP), decode_content=True)
                return decoded
            # At least a byte of the blob must come in time: the lengths of chunks can trickle for ever.
            with self.answer.until(fresh=True):
                plain: bytes = raw.read1(size, decode_content=False)
            return plain
        except BROKEN as error:
            raise failure_of(error, self.answer.hide) from None

    def early_end(self, reason: str) -> Failure:
        """The failure for an answer that has ended before its time."""
        return web_page(self.answer, "blob") if is_web_page(self.answer) else Failure(reason)

    @property
    def divisible(self) -> bool:
        """Whether the server gives parts of this blob as they are."""
        answer = self.answer
        return not self.encoded and (answer.status == 206 or answer.headers.get("Accept-Ranges") == "bytes")

    def ended(self) -> bool:
        """After the last byte that is wanted: whether nothing follows. Reads at most one byte more."""
        try:
            return not self._read_once(1)
        except Failure:
            # A cut after the last byte does no harm.
            return True

    def close(self) -> None:
        """Gives the connection back or ends it."""
        self.answer.close()


def _check_range(answer: Answer, offset: int, limit: int, size: int) -> None:
    """A 206 must be exactly what was asked for (RFC 9110 15.3.7; containers/image is as strict)."""
    values = answer.header_values("Content-Range")
    found = _RANGE.fullmatch(values[0].strip()) if len(values) == 1 else None
    if found is None:
        raise RangeIgnored("the answer does not say which range it is")
    start, end, total = found.groups()
    if int(start) != offset or int(end) != limit - 1 or total not in ("*", str(size)):
        raise RangeIgnored(f"the answer is another range: {found[0]}")
