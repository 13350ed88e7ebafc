"""Makes a layer's tar stream again, byte for byte, from its record and its directory."""

from __future__ import annotations

import os

from isal.isal_zlib import crc32

from msb_pull.ground.below import Trail, open_file
from msb_pull.ground.errors import raise_if_exhausted
from msb_pull.layer.tar.record import CHECKSUM, Headers, Record
from msb_pull.layer.tree.holes import first_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from msb_pull.layer.tar.record import Payload
    from msb_pull.layer.tree.kept import Kept

# Small enough to be hashed out of the processor's cache, large enough for few calls.
_BUFFER = 1 << 18


class Listener:
    """Callbacks while files are read: ``damaged`` takes path, what was expected, and what was found.

    ``opened`` (path, open file) is called before each one is read, ``closed`` (path, bytes wanted, error) for one that
    cannot be read, ``lost`` (path, found) for what a later entry has overwritten and nothing has kept. Without the last
    two that is damage like any other.
    """

    __slots__ = ("closed", "damaged", "lost", "opened")

    def __init__(
        self,
        damaged: Callable[[bytes, str, str], None],
        *,
        opened: Callable[[bytes, int], None] = lambda path, handle: None,
        closed: Callable[[bytes, int, OSError], None] | None = None,
        lost: Callable[[bytes, str], None] | None = None,
    ) -> None:
        self.damaged = damaged
        self.opened = opened
        self.closed = closed or self._closed
        self.lost = lost or (lambda path, found: damaged(path, "the overwritten content", found))

    def _closed(self, path: bytes, stored: int, error: OSError) -> None:
        raise_if_exhausted(error)
        self.damaged(path, f"{stored} bytes", error.strerror or "unreadable")


def stream(
    record: Record, layer: int, paths: Mapping[int, bytes | None], listener: Listener, *, kept: Kept | None = None
) -> Iterator[memoryview]:
    """Yields the tar stream of a layer from its record, whose entries have been read; a piece is valid until the next
    one is asked for.

    ``layer`` is its open directory, ``paths`` says where each payload lies, None of one that is not to be read.
    Payloads that lie nowhere there are looked for in ``kept``. ``listener`` hears of each payload that has changed; the
    stream then goes on with what is there, padded to its size. Raises ContentError when the record itself is
    damaged.
    """
    headers = Headers(record.path)
    files = _Files(layer, listener)
    beside = _Beside(record, paths, kept, listener)
    out = _Out()
    try:
        for payload in record.payloads:
            for piece in headers.until(payload[0]):
                if not out.put(piece):
                    yield from out.add(piece)
            headers.skip(CHECKSUM)
            path = paths.get(payload[1], b"")
            if path is None:
                yield from out.zeros(payload[3])
            elif not path:
                yield from beside.payload(payload, out)
            elif not files.small(payload, path, out):
                yield from files.payload(payload, path, out)
        for piece in headers.until(None):
            yield from out.add(piece)
        if out.used:
            yield out.take()
    finally:
        beside.close()
        files.close()
        headers.close()


class _Out:
    """One buffer that everything is put into, and that is handed out whenever it is full."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_BUFFER))
        self.used = 0

    def take(self) -> memoryview:
        """Empties the buffer and returns what it held."""
        piece = self.view[: self.used]
        self.used = 0
        return piece

    def put(self, data: bytes) -> bool:
        """Adds what fits; False when it does not."""
        used = self.used
        end = used + len(data)
        if end > _BUFFER:
            return False
        self.view[used:end] = data
        self.used = end
        return True

    def add(self, data: bytes) -> Iterator[memoryview]:
        if not self.put(data):
            # Readers take an empty piece for the end.
            if self.used:
                yield self.take()
            if not self.put(data):
                yield memoryview(data)

    def zeros(self, length: int) -> Iterator[memoryview]:
        while length:
            count = min(length, _BUFFER)
            yield from self.add(bytes(count))
            length -= count


class _Files:
    """Reads files below an open directory without following symlinks."""

    def __init__(self, root: int, listener: Listener) -> None:
        self._listener = listener
        self._trail = Trail(root)
        self._path = b""
        self._directory = root

    def close(self) -> None:
        self._trail.close()

    def small(self, payload: Payload, path: bytes, out: _Out) -> bool:
        """Puts a file into the room that ``out`` has left; False, and nothing done, when it has too little.

        The same as :meth:`payload`, which most files are too small to be worth.
        """
        _, _, expected, stored, sparse = payload
        used = out.used
        if sparse is not None or stored > _BUFFER - used:
            return False
        view = out.view[used : used + stored]
        out.used = used + stored
        count = 0
        try:
            handle = self._open(path)
            try:
                self._listener.opened(path, handle)
                count = os.readv(handle, (view,))
                while count < stored and (more := os.readv(handle, (view[count:],))):
                    count += more
            finally:
                os.close(handle)
        except OSError as error:
            view[count:] = bytes(stored - count)
            self._listener.closed(path, stored, error)
            return True
        if count < stored:
            view[count:] = bytes(stored - count)
        crc = crc32(view)
        if crc != expected:
            self._listener.damaged(path, f"crc32 {expected:08x}", f"crc32 {crc:08x}")
        return True

    def payload(self, payload: Payload, path: bytes, out: _Out) -> Iterator[memoryview]:
        """Puts one file into ``out``."""
        _, _, expected, stored, sparse = payload
        try:
            handle = self._open(path)
        except OSError as error:
            self._listener.closed(path, stored, error)
            yield from out.zeros(stored)
            return
        crc, left = 0, stored
        try:
            self._listener.opened(path, handle)
            for offset, length in sparse if sparse is not None else ((0, stored),):
                end = offset + length
                while offset < end:
                    used = out.used
                    if used == _BUFFER:
                        yield out.take()
                        used = 0
                    view = out.view[used : used + end - offset]
                    count = os.preadv(handle, (view,), offset) if offset else os.readv(handle, (view,))
                    if not count:
                        # It was truncated; what is missing counts as zeros.
                        view[:] = bytes(len(view))
                        count = len(view)
                    out.used = used + count
                    crc = crc32(view[:count], crc)
                    offset += count
                    left -= count
            if sparse is not None and (at := first_data(handle, sparse, os.fstat(handle).st_size)) is not None:
                self._listener.damaged(path, "a hole", f"data at byte {at}")
        except OSError as error:
            self._listener.closed(path, stored, error)
            yield from out.zeros(left)
            return
        finally:
            os.close(handle)
        if crc != expected:
            self._listener.damaged(path, f"crc32 {expected:08x}", f"crc32 {crc:08x}")

    def _open(self, path: bytes) -> int:
        parent, _, name = path.rpartition(b"/")
        if parent != self._path:
            # Only once it is there: until then nothing else may be taken for the last one.
            self._path = b"\0"
            self._directory, self._path = self._trail.reach(parent), parent
        return open_file(name, self._directory)


class _Beside:
    """Payloads without a place in the layer any more; damage is reported under their entries' names."""

    def __init__(
        self, record: Record, paths: Mapping[int, bytes | None], kept: Kept | None, listener: Listener
    ) -> None:
        self._record = record
        self._paths = paths
        self._kept = kept
        self._listener = listener
        self._files: _Files | None = None
        self._names: dict[int, bytes] = {}

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def payload(self, payload: Payload, out: _Out) -> Iterator[memoryview]:
        index, stored = payload[1], payload[3]
        found, what = None, "nothing"
        try:
            if self._kept is not None:
                found = self._kept.take(payload, self._record.sizes.get(index, stored))
        except OSError as error:
            raise_if_exhausted(error)
            what = error.strerror or "unreadable"
        if found is None or self._kept is None:
            self._lost(index, what)
            yield from out.zeros(stored)
            return
        if self._files is None:
            self._files = _Files(self._kept.folder, Listener(self._listener.damaged))
        yield from self._files.payload(found[1], found[0], out)

    def _lost(self, index: int, found: str) -> None:
        if not self._names:
            wanted = {payload[1] for payload in self._record.payloads} - self._paths.keys()
            self._names = {x.index: x.name for x in Record(self._record.path).entries() if x.index in wanted}
        self._listener.lost(self._names[index].strip(b"/"), found)
