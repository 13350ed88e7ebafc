"""The record of a layer: its tar stream without the file payloads, from which the stream can be made again.

``records/<digest>.tar`` is gzip (level 1) over: each header, each padding, each trailing block as it came, and after
the header of an entry with a payload the CRC-32 of that payload, four bytes, big endian. The notes beside it say what
the stream does not: where entries were placed that did not go where they said, what was derived from lower layers.
"""

from __future__ import annotations

import os

from isal import isal_zlib

from msb_pull.ground.below import opener
from msb_pull.ground.errors import ContentError
from msb_pull.ground.limits import Limits
from msb_pull.layer.tar.tar import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from msb_pull.layer.tar.entry import Entry

    # Where a payload's checksum begins in the record, and of its entry: index, checksum, size in the stream, segments
    # of a sparse file. A tuple, since a large layer has tens of thousands.
    Payload = tuple[int, int, int, int, tuple[tuple[int, int], ...] | None]

# The size of a checksum in the place of a payload.
CHECKSUM = 4
_BATCH = 1024
_LARGE = 1 << 13
_UNLIMITED = Limits(max_entries=1 << 62, max_bytes=1 << 62)


class RecordWriter:
    """Writes a record into an open file descriptor, in batches."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parts: list[bytes] = []
        self._deflate = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)

    def write(self, data: bytes) -> None:
        """Appends bytes of the stripped stream."""
        parts = self._parts
        parts.append(data)
        # What follows the end of an archive comes in pieces as large as they were read.
        if len(parts) >= _BATCH or len(data) >= _LARGE:
            self._flush()

    def close(self) -> None:
        """Completes the gzip stream; the descriptor stays open."""
        self._flush()
        self._write_all(self._deflate.flush())

    def _flush(self) -> None:
        self._write_all(self._deflate.compress(b"".join(self._parts)))
        self._parts.clear()

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class RecordStream:
    """Reads the stripped stream of a record; raises ContentError when it is damaged."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._file = open(path, "rb", opener=opener)  # noqa: SIM115 - closed by close
        self._inflate = isal_zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        try:
            while not self._inflate.eof:
                data = self._inflate.unconsumed_tail or self._file.read(1 << 16)
                if not data:
                    break
                found = self._inflate.decompress(data, size)
                if found:
                    return found
        except isal_zlib.error as error:  # type: ignore[misc]
            raise ContentError(f"{self._path}: the record is damaged", cause=str(error)) from None
        if not self._inflate.eof:
            raise ContentError(f"{self._path}: the record is truncated")
        if self._inflate.unused_data or self._file.read(1):
            raise ContentError(f"{self._path}: something follows the record")
        return b""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Headers:
    """The stream of a record, cut where payloads belong; raises ContentError when it is damaged."""

    def __init__(self, path: Path | str) -> None:
        self._stream = RecordStream(path)
        self._data = b""
        self._start = 0
        self._at = 0

    def close(self) -> None:
        """Closes the record."""
        self._stream.close()

    def until(self, place: int | None) -> Iterable[bytes]:
        """All bytes before ``place`` (None: to the end) that have not been given yet."""
        if place is not None and (end := place - self._start) <= len(self._data):
            at, self._at = self._at, end
            return (self._data[at:end],)
        return self._pieces(place)

    def _pieces(self, place: int | None) -> Iterator[bytes]:
        at = self._at
        while place is None or place - self._start > len(self._data):
            if at < len(self._data):
                yield self._data[at:]
            at = 0
            if not self._more():
                return
        end = place - self._start
        self._at = end
        yield self._data[at:end]

    def skip(self, count: int) -> None:
        """Passes over as many bytes, or to the end."""
        self._at += count
        while self._at > len(self._data):
            over = self._at - len(self._data)
            if not self._more():
                return
            self._at = over

    def _more(self) -> bool:
        self._start += len(self._data)
        self._data = self._stream.read(1 << 20)
        self._at = 0
        return bool(self._data)


class Record:
    """One record, to be read once: :meth:`entries`, and then ``payloads`` says where each payload belongs.

    Then ``sizes`` are those of sparse files by their entries, ``content`` is that of all files together, ``count`` that
    of the entries, and ``length`` that of the stream.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.payloads: list[Payload] = []
        self.sizes: dict[int, int] = {}
        self.content = 0
        self.count = 0
        self.length = 0

    def entries(self) -> Iterator[Entry]:
        """The entries in order, ``Entry.crc`` set where there is a payload; raises ContentError."""
        stream = RecordStream(self.path)
        payloads = self.payloads
        try:
            reader = TarReader(stream, limits=_UNLIMITED, stripped=True)
            while (entry := reader.next()) is not None:
                if entry.crc is not None:
                    place = reader.passed - CHECKSUM
                    payloads.append((place, entry.index, entry.crc, entry.stored, entry.sparse))
                    if entry.sparse is not None:
                        self.sizes[entry.index] = entry.size
                yield entry
            # Damage may stand behind the last entry as well.
            reader.drain()
            self.content, self.count = reader.content_bytes, reader.entries
            self.length = reader.bytes_read + sum(payload[3] - CHECKSUM for payload in payloads)
        finally:
            stream.close()
