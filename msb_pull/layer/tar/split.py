"""The metadata of tar-split: a tar stream as lines of JSON, which name the files that hold its contents.

github.com/vbatts/tar-split, tar/storage/entry.go: a line is a segment, raw bytes of the stream, or a file, with the
CRC-64 of its content. Whoever puts the stream together again compares that, and takes no name twice.
"""

from __future__ import annotations

from base64 import b64encode
from json import dumps
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.layer.tar.crc64 import crc64
from msb_pull.layer.tar.record import CHECKSUM

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from msb_pull.layer.tar.record import Record

_FILE, _SEGMENT = 1, 2
# A segment is ended at this size, so that nobody needs much memory for one.
_LONG = 1 << 20
# Contents that lie in no file as the stream has them stand in segments, all of which readers may hold in memory.
CARRIED_LIMIT = 64 << 20


def split_lines(record: Record, stream: Iterable[memoryview], paths: Mapping[int, bytes]) -> Iterator[bytes]:
    """The lines for the tar stream of a layer, whose record has been read.

    ``paths`` says where payloads lie, by the index of their entries. Those that lie nowhere, and sparse files, stand in
    the lines themselves. Raises ContentError where these are more than ``CARRIED_LIMIT`` bytes.
    """
    position = 0
    segment = bytearray()
    crc = 0
    for path, size, piece, ends in _cut(_files(record, paths), stream):
        if path is None:
            segment += piece
            if len(segment) < _LONG:
                continue
        else:
            crc = crc64(piece, crc)
            if not ends:
                continue
        if segment:
            yield _line(_SEGMENT, b64encode(segment), position)
            segment.clear()
            position += 1
        if path is not None:
            yield _line(_FILE, b64encode(crc.to_bytes(8, "big")), position, _named(path) + f'"size":{size},')
            position += 1
            crc = 0
    if segment:
        yield _line(_SEGMENT, b64encode(segment), position)


def _files(record: Record, paths: Mapping[int, bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Where files begin in the stream, their sizes and paths."""
    passed = carried = 0
    for number, (place, index, _, stored, sparse) in enumerate(record.payloads):
        path = paths.get(index) if sparse is None else None
        if path is None:
            carried += stored
        elif stored:
            yield place - number * CHECKSUM + passed, stored, path
        passed += stored
        if carried > CARRIED_LIMIT:
            raise ContentError("too much of it is overwritten later in the same layer, or sparse")


def _cut(
    files: Iterator[tuple[int, int, bytes]], stream: Iterable[memoryview]
) -> Iterator[tuple[bytes | None, int, memoryview, bool]]:
    """The stream in pieces of which each is of one file or of none: path, size of the file, piece, whether it ends."""
    at = 0
    start, size, path = next(files, (None, 0, b""))
    for piece in stream:
        rest = piece
        while rest:
            if start is None or at + len(rest) <= start:
                yield None, 0, rest, False
                at += len(rest)
                break
            if at < start:
                yield None, 0, rest[: start - at], False
                rest = rest[start - at :]
                at = start
            own = rest[: start + size - at]
            at += len(own)
            rest = rest[len(own) :]
            ends = at == start + size
            yield path, size, own, ends
            if ends:
                start, size, path = next(files, (None, 0, b""))


def _named(path: bytes) -> str:
    try:
        return f'"name":{dumps(path.decode())},'
    except UnicodeDecodeError:
        return f'"name_raw":"{b64encode(path).decode()}",'


def _line(kind: int, payload: bytes, position: int, more: str = "") -> bytes:
    return f'{{"type":{kind},{more}"payload":"{payload.decode()}","position":{position}}}\n'.encode()
