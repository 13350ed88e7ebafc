"""A reader that counts, keeps and verifies what passes through it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from msb_pull.ground.errors import ContentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msb_pull.ground.running import Cancel
    from msb_pull.image.digest import Digest

CHUNK = 512 * 1024
# What to do about content that is not what its digest says: from a network, and from a folder or an archive.
ON_THE_WAY = "the registry or a proxy changed the content; try again or use another mirror"
COPY_AGAIN = "it was copied in part or changed: copy it again"


class Readable(Protocol):
    """Anything that gives 1 to ``size`` bytes, and ``b""`` at its end."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


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
        cancel: Cancel,
    ) -> None:
        self.fetched = 0
        self._digest = digest
        self._size = size
        self._open_rest = open_rest
        self._keep = keep
        self._progress = progress
        self._cancel = cancel
        self._hash = digest.hasher()
        self._done = 0

    def chunks(self) -> Iterator[bytes]:
        """Yields the blob's bytes in order, at most :data:`CHUNK` at a time.

        Raises Cancelled once work is to end, and whatever the source raises.
        """
        for chunk in self._from_kept():
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
            cause = f"expected {self._digest}, received {self._digest.algorithm}:{found}"
            raise DigestMismatch(f"blob {self._digest.short} does not match its digest", cause=cause, hint=ON_THE_WAY)

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
        self._cancel.check()
        self._hash.update(chunk)
        self._done += len(chunk)
        self._progress(self._done)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
