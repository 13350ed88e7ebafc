"""A reader that counts, keeps and verifies what passes through it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from msb_pull.ground.errors import Cancelled, ContentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msb_pull.image.digest import Digest

CHUNK = 512 * 1024

_GZIP = b"\x1f\x8b\x08"
_GZIP_FIXED = 10
_GZIP_CHECKED, _GZIP_EXTRA, _GZIP_NAME, _GZIP_COMMENT, _GZIP_RESERVED = 0x02, 0x04, 0x08, 0x10, 0xE0
_MAX_GZIP_HEADER = 1 << 17
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_FIXED, _ZSTD_SINGLE_SEGMENT = 5, 0x20


class Readable(Protocol):
    """Anything that gives 1 to ``size`` bytes, and ``b""`` at its end."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


# What to do about content that is not what its digest says: from a network, and from a folder or an archive.
ON_THE_WAY = "the registry or a proxy changed the content; try again or use another mirror"
COPY_AGAIN = "it was copied in part or changed: copy it again"


class DigestMismatch(ContentError):
    """A blob arrived whole, but it is not the one that was asked for."""


class BlobReader:
    """One pass over a blob: the part that an earlier run kept, then the rest from its source.

    Every byte is hashed, counted and, where ``keep`` is a file descriptor, appended there for a later run. Nothing
    that was read may be trusted before :meth:`verify` has returned (umoci's verified reader has the same contract).
    """

    def __init__(
        self,
        digest: Digest,
        size: int,
        open_rest: Callable[[int], Readable],
        *,
        keep: int | None,
        progress: Callable[[int], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.fetched = 0
        self.kept = 0
        self._digest = digest
        self._size = size
        self._open_rest = open_rest
        self._keep = keep
        self._progress = progress
        self._stopped = stopped
        self._hash = digest.hasher()
        self._done = 0

    def chunks(self) -> Iterator[bytes]:
        """Yields the blob's bytes in order, at most :data:`CHUNK` at a time.

        Raises Cancelled as soon as the stop flag is seen, and whatever the source raises.
        """
        for chunk in self._from_kept():
            self.kept += len(chunk)
            self._count(chunk)
            yield chunk
        if self._done == self._size:
            return
        with contextlib.closing(self._open_rest(self._done)) as rest:
            while chunk := rest.read(CHUNK):
                if self._keep is not None:
                    _write_all(self._keep, chunk)
                self.fetched += len(chunk)
                self._count(chunk)
                yield chunk

    def verify(self) -> None:
        """Compares size and digest of all that was read; raises DigestMismatch."""
        if self._done != self._size:
            raise DigestMismatch(f"blob {self._digest.short} has {self._done} bytes instead of {self._size}")
        found = self._hash.hexdigest()
        if found != self._digest.hex:
            raise DigestMismatch(
                f"blob {self._digest.short} does not match its digest",
                cause=f"expected {self._digest}, received {self._digest.algorithm}:{found}",
                hint=ON_THE_WAY,
            )

    def _from_kept(self) -> Iterator[bytes]:
        if self._keep is None:
            return
        # A longer file than the blob cannot be a part of it.
        if os.fstat(self._keep).st_size > self._size:
            os.ftruncate(self._keep, 0)
        os.lseek(self._keep, 0, os.SEEK_SET)
        while chunk := os.read(self._keep, CHUNK):
            yield chunk

    def _count(self, chunk: bytes) -> None:
        if self._stopped():
            raise Cancelled("interrupted")
        self._hash.update(chunk)
        self._done += len(chunk)
        self._progress(self._done)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def gzip_header_is_whole(data: bytes) -> bool:
    """Whether ``data`` begins with the whole header of a gzip member (RFC 1952); raises ValueError with a reason.

    ISA-L wants it whole: it forgets the flags of a header that comes in pieces, and then takes a name in it for
    compressed data (intel/isa-l, issue 224).
    """
    if data[:3] != _GZIP[: len(data)]:
        raise ValueError("the gzip header is missing")
    if len(data) < _GZIP_FIXED:
        return False
    flags = data[3]
    if flags & _GZIP_RESERVED:
        raise ValueError("the gzip header has flags that are not defined")
    end = _GZIP_FIXED
    if flags & _GZIP_EXTRA:
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for text in (_GZIP_NAME, _GZIP_COMMENT):
        if flags & text and end <= len(data):
            end = data.find(0, end) + 1 or len(data) + 1
    if flags & _GZIP_CHECKED:
        end += 2
    if end > _MAX_GZIP_HEADER:
        raise ValueError(f"the gzip header is larger than {_MAX_GZIP_HEADER} bytes")
    return end <= len(data)


def zstd_window(data: bytes) -> int | None:
    """Bytes of window that the zstd frame at the start of ``data`` wants (RFC 8878, 3.1.1.1), 0 for a skippable one.

    None when more of its header is needed (18 bytes at most); raises ValueError when there is no such frame.
    """
    if len(data) < _ZSTD_FIXED:
        return None
    if is_zstd_skippable(data):
        return 0
    if not data.startswith(_ZSTD):
        raise ValueError("the zstd frame is missing")
    flags, at = data[_ZSTD_FIXED - 1], _ZSTD_FIXED
    if not flags & _ZSTD_SINGLE_SEGMENT:
        if len(data) == at:
            return None
        base = 1 << (10 + (data[at] >> 3))
        return base + base // 8 * (data[at] & 7)
    # The content is the window: its size follows the dictionary's id.
    at += (0, 1, 2, 4)[flags & 3]
    end = at + (1, 2, 4, 8)[flags >> 6]
    if len(data) < end:
        return None
    return int.from_bytes(data[at:end], "little") + (256 if end - at == 2 else 0)


def is_zstd_skippable(head: bytes) -> bool:
    """Whether these bytes begin a zstd frame that holds no content (RFC 8878, 3.1.2)."""
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
