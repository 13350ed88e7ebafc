"""Reads the files of an image's layers, each compared with the checksum that its layer's record has of it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from isal.isal_zlib import crc32

from msb_pull.ground.below import Trail, open_file
from msb_pull.ground.errors import ContentError, raise_if_exhausted
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.tree.holes import first_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from msb_pull.layer.proof.node import Node
    from msb_pull.layer.tar.record import Payload

    # Gives where so many bytes can be read to, and they stay until it is asked again.
    Room = Callable[[int], memoryview]

_PIECE = 1 << 18
_REPAIR = "`msb-pull verify --repair` repairs it"


def fresh(size: int) -> memoryview:
    """Room of its own for each piece."""
    return memoryview(bytearray(size))


class Source:
    """Where the content of a file lies: a layer (counted from the bottom), a path there, and what must be read.

    Of a sparse file ``segments`` are where (offset, length) it holds data, and ``size`` counts its holes. The ``node``
    lives as long as this, so that its id stands for it alone, or until it is set to None.
    """

    __slots__ = ("crc", "layer", "node", "path", "segments", "size")

    def __init__(self, layer: int, path: bytes, payload: Payload, node: Node) -> None:
        self.layer = layer
        self.path = path
        self.crc = payload[2]
        self.segments = payload[4]
        self.size = node.size
        self.node: Node | None = node


class Contents:
    """The open directories of an image's layers, each given with its name for people; :meth:`close` closes them.

    What was read from last stays open. For one thread.
    """

    def __init__(self, layers: Sequence[tuple[str, int]]) -> None:
        self._layers = layers
        # Of one layer at a time: many layers, each with a trail of its own, would hold too many descriptors.
        self._trail: tuple[int, Trail] | None = None

    def close(self) -> None:
        """Closes every descriptor."""
        if self._trail is not None:
            self._trail[1].close()
        for _, root in self._layers:
            os.close(root)
        self._layers = ()

    def pieces(self, source: Source, room: Room = fresh) -> Iterator[tuple[int, memoryview]]:
        """What a file holds, as (offset, bytes) in order and without its holes, read into ``room``.

        Raises ContentError, at the latest after the last piece, for a file that is not what its layer's record says.
        """
        size = source.size
        try:
            handle = self.open(source)
        except OSError as error:
            raise self.trouble(source, error) from error
        try:
            if source.segments is None and size < _PIECE:
                # Most files: one byte more than there should be tells as much as a look at the size.
                piece = room(size + 1)
                try:
                    count = os.readv(handle, (piece,))
                except OSError as error:
                    raise self.trouble(source, error) from error
                if count == size and crc32(piece := piece[:size]) == source.crc:
                    yield 0, piece
                    return
            yield from self._read(source, handle, room)
        finally:
            os.close(handle)

    def _read(self, source: Source, handle: int, room: Room) -> Iterator[tuple[int, memoryview]]:
        sparse = source.segments
        with self._reading(source):
            size = os.fstat(handle).st_size
        if size != source.size:
            raise self._damage(source, f"{source.size} bytes", f"{size} bytes")
        crc = 0
        for offset, length in sparse if sparse is not None else ((0, source.size),):
            end = offset + length
            while offset < end:
                piece = room(min(_PIECE, end - offset))
                with self._reading(source):
                    os.lseek(handle, offset, os.SEEK_SET)
                    count = os.readv(handle, (piece,))
                if not count:
                    raise self._damage(source, f"{source.size} bytes", f"{offset} bytes")
                piece = piece[:count]
                crc = crc32(piece, crc)
                yield offset, piece
                offset += count
        if crc != source.crc:
            raise self._damage(source, f"crc32 {source.crc:08x}", f"crc32 {crc:08x}")
        if sparse is not None:
            with self._reading(source):
                at = first_data(handle, sparse, source.size)
            if at is not None:
                raise self._damage(source, "a hole", f"data at byte {at}")

    @contextlib.contextmanager
    def _reading(self, source: Source) -> Iterator[None]:
        """What fails here is the file; what ``room`` raises is another matter."""
        try:
            yield
        except OSError as error:
            raise self.trouble(source, error) from error

    def open(self, source: Source) -> int:
        """A descriptor to read a file; raises OSError."""
        parent, _, name = source.path.rpartition(b"/")
        if self._trail is None or self._trail[0] != source.layer:
            if self._trail is not None:
                self._trail[1].close()
            self._trail = source.layer, Trail(self._layers[source.layer][1])
        return open_file(name, self._trail[1].reach(parent))

    def trouble(self, source: Source, error: OSError) -> ContentError:
        """What an error of :meth:`open` or of reading means; raises LocalError for a limit of this machine."""
        raise_if_exhausted(error)
        return self._damage(source, f"{source.size} bytes", error.strerror or "an unreadable file")

    def _damage(self, source: Source, expected: str, found: str) -> ContentError:
        name = f'layer {self._layers[source.layer][0]}: "{visible_bytes(source.path)}"'
        return ContentError(f"{name} is damaged (expected {expected}, found {found})", hint=_REPAIR)
