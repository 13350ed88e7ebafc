"""What the tar reader makes of a stream."""

from __future__ import annotations

import io

from msb_pull.ground.limits import Limits
from msb_pull.layer.tar.tar import TarReader
from tests.support.archive import END, hdr


class Dribble(io.RawIOBase):
    """Gives a stream in pieces of a few bytes, as a slow pipe does."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step, self._at = data, step, 0

    def readinto(self, buffer) -> int:
        piece = self._data[self._at : self._at + min(self._step, len(buffer))]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def read(*parts: bytes, end: bytes = END, step: int = 1 << 20, **limits):
    """Every entry with its payload, and the reader after the end."""
    reader = TarReader(Dribble(b"".join(parts) + end, step), limits=Limits(**limits))
    found = []
    while (entry := reader.next()) is not None:
        data = b""
        while piece := reader.chunk():
            data += bytes(piece)
        found.append((entry, data))
    reader.drain()
    return found, reader


def one(*parts: bytes, **options):
    ((entry, data),) = read(*parts, **options)[0]
    return entry, data


def names(*parts: bytes, **options) -> list[bytes]:
    return [entry.name for entry, _ in read(*parts, **options)[0]]


def gnu_long(data: bytes, kind: bytes = b"L") -> bytes:
    data += b"\0"
    return hdr(b"././@LongLink", typ=kind, size=len(data)) + data + bytes(-len(data) % 512)
