"""Decompression of layers: gzip through ISA-L, zstd, or none; told by magic numbers, since media types lie.

Every path is pushed compressed bytes and gives pieces of bounded size; a stream that is cut, damaged or followed by
anything but padding is refused (Go's gzip and zstd readers do the same; Python's gzip and zstd modules do not always).
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from isal import isal_zlib

from msb_pull.ground.errors import ContentError
from msb_pull.ground.limits import Limits
from msb_pull.ground.magic import GZIP, compression_of, gzip_header_is_whole, zstd_window

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

# With smaller ones more time goes into handing them from thread to thread: 2.5 % of a pull with half as much.
PIECE = 1024 * 1024
# What libzstd itself refuses; our own limit need not be a power of two.
_MAX_WINDOW_LOG = 31


class Decompressor(Protocol):
    """Pushes in compressed bytes, gets out the tar stream."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields what ``data`` inflates to, at most :data:`PIECE` bytes at a time; raises ContentError."""

    def finish(self) -> None:
        """Ends the stream; raises ContentError when it is cut."""


def detect(head: bytes) -> str:
    """``gzip``, ``zstd`` or ``none`` by the first six bytes; raises ContentError for formats that OCI does not know."""
    found = compression_of(head) or "none"
    if found not in _NAMES:
        raise ContentError(f"{found} compressed layers are not supported", hint="ask for a gzip or zstd image")
    return found


def open_decompressor(
    head: bytes, media_type: str, max_window: int = Limits().max_window
) -> tuple[Decompressor, str | None]:
    """The decompressor for a blob that begins with ``head``, and a warning when the media type says otherwise.

    A zstd frame that wants a window of more than ``max_window`` bytes is refused; gzip has one of 32 KiB.
    """
    found = detect(head)
    claimed = "gzip" if media_type.endswith("gzip") else "zstd" if media_type.endswith("zstd") else "none"
    warning = None if found == claimed else f"the media type {media_type} is wrong, the content is {_NAMES[found]}"
    return _Zstd(max_window) if found == "zstd" else _Gzip() if found == "gzip" else _Plain(), warning


class _Gzip:
    """All members of a gzip file; zero padding may follow, nothing else."""

    def __init__(self) -> None:
        self._member: Any = None
        self._header = b""
        self._padding = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._member is None or self._member.eof:
                data = self._next_member(data)
                if not data:
                    return
            try:
                piece = self._member.decompress(data, PIECE)
            except (isal_zlib.error, zlib.error, EOFError) as error:  # type: ignore[misc]
                raise ContentError("the gzip stream is damaged", cause=str(error)) from None
            if piece:
                yield piece
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            # A full piece may leave more behind in the inflater although it has taken all of its input.
            if not data and len(piece) < PIECE:
                return

    def finish(self) -> None:
        if self._header or (self._member is not None and not self._member.eof):
            raise ContentError("the gzip stream is truncated")

    def _next_member(self, data: bytes) -> bytes:
        """Passes over zero padding; what follows it, or the member before, must be a member.

        Its header is held back until it is whole: ISA-L forgets the flags of one that comes in pieces, and then takes
        a name for compressed data.
        """
        if self._member is not None and not self._header:
            rest = data.lstrip(b"\0")
            self._padding = self._padding or len(rest) < len(data)
            if rest and self._padding:
                raise ContentError("bytes that are not gzip follow the end of the gzip stream")
            data = rest
        self._header += data
        try:
            if not gzip_header_is_whole(self._header):
                return b""
        except ValueError as error:
            if self._member is not None and not GZIP.startswith(self._header[:3]):
                raise ContentError("bytes that are not gzip follow the end of the gzip stream") from None
            raise ContentError("the gzip stream is damaged", cause=str(error)) from None
        self._member = isal_zlib.decompressobj(wbits=31)
        data, self._header = self._header, b""
        return data


class _Zstd:
    """All frames of a zstd file, skippable ones passed over."""

    def __init__(self, max_window: int) -> None:
        self._max_window = max_window
        self._frame = self._new_frame()
        self._header = b""
        self._inside = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        left: bytes | memoryview = data
        try:
            while left or (self._inside and not self._frame.needs_input):
                if not self._inside:
                    left = self._begin_frame(bytes(left))
                    continue
                piece = self._frame.decompress(left, PIECE)
                if piece:
                    yield piece
                left = self._frame.unused_data if self._frame.eof else b""
                self._inside = not self._frame.eof
        except (zstd.ZstdError, ValueError) as error:
            raise ContentError("the zstd stream is damaged", cause=str(error)) from None

    def finish(self) -> None:
        if self._inside or self._header:
            raise ContentError("the zstd stream is truncated")

    def _begin_frame(self, data: bytes) -> memoryview:
        """Holds a header back until it says how much memory its frame wants.

        Then the first byte goes on its own: libzstd checks more of a small frame that comes whole than of one in
        pieces, so whether a damaged one is refused would depend on the network.
        """
        self._header += data
        window = zstd_window(self._header)
        if window is None:
            return memoryview(b"")
        if window > self._max_window:
            raise ContentError(
                f"the zstd stream wants a window of {window} bytes, more than {self._max_window}",
                hint="raise --max-window if you trust the image",
            )
        if self._frame.eof:
            self._frame = self._new_frame()
        self._inside = True
        data, self._header = self._header, b""
        self._frame.decompress(data[:1])
        return memoryview(data)[1:]

    @staticmethod
    def _new_frame() -> zstd.ZstdDecompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        return


_NAMES = {"gzip": "gzip", "zstd": "zstd", "none": "not compressed"}
