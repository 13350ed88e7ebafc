"""Makes a layer's tar stream again, byte for byte, from its record and its directory."""

from __future__ import annotations

import os
import stat
import zlib
from typing import TYPE_CHECKING

from msb_pull.layer.limits import Limits
from msb_pull.layer.record import RecordStream
from msb_pull.layer.tar import TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from msb_pull.layer.entry import Entry

_PIECE = 1 << 20
_UNLIMITED = Limits(max_entries=1 << 62, max_bytes=1 << 62)


def recreate(
    record: Path, layer: int, paths: Mapping[int, bytes], on_damage: Callable[[bytes, str, str], None]
) -> Iterator[bytes]:
    """Yields the tar stream of a layer. ``layer`` is its open directory, ``paths`` says where each payload lies.

    ``on_damage`` is told path, expectation and finding of each payload that is not what it was; the stream then goes
    on with what there is, padded to its size. Raises ContentError when the record itself is damaged.
    """
    raw = _Raw()
    stream = RecordStream(record)
    files = _Files(layer)
    try:
        reader = TarReader(stream, limits=_UNLIMITED, record=raw, stripped=True)
        while (entry := reader.next()) is not None:
            if entry.crc is None:
                yield raw.take()
                continue
            # The last four bytes are the checksum that stands for the payload.
            yield raw.take()[:-4]
            path = paths.get(entry.index)
            if path is None:
                yield from _zeros(entry.stored)
            else:
                yield from files.payload(entry, path, on_damage)
        reader.drain()
        yield raw.take()
    finally:
        files.close()
        stream.close()


class _Raw:
    """Takes the place of a record writer and keeps what passed since the last look."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


class _Files:
    """Reads files below an open directory without following symlinks; the last directory is kept open."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._path = b""
        self._directory = os.dup(root)

    def close(self) -> None:
        os.close(self._directory)

    def payload(self, entry: Entry, path: bytes, on_damage: Callable[[bytes, str, str], None]) -> Iterator[bytes]:
        try:
            handle = self._open(path)
        except OSError as error:
            on_damage(path, f"{entry.stored} bytes", error.strerror or "unreadable")
            yield from _zeros(entry.stored)
            return
        crc = 0
        try:
            for offset, length in entry.sparse if entry.sparse is not None else ((0, entry.stored),):
                for piece in _range(handle, offset, length):
                    crc = zlib.crc32(piece, crc)
                    yield piece
        finally:
            os.close(handle)
        if crc != entry.crc:
            on_damage(path, f"crc32 {entry.crc:08x}", f"crc32 {crc:08x}")

    def _open(self, path: bytes) -> int:
        parent, _, name = path.rpartition(b"/")
        if parent != self._path:
            self._enter(parent)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(name, flags, dir_fd=self._directory)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(0, "no regular file")
        return handle

    def _enter(self, path: bytes) -> None:
        current = os.dup(self._root)
        for part in path.split(b"/") if path else ():
            try:
                following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            finally:
                os.close(current)
            current = following
        os.close(self._directory)
        self._directory, self._path = current, path


def _range(handle: int, offset: int, length: int) -> Iterator[bytes]:
    end = offset + length
    while offset < end:
        piece = os.pread(handle, min(_PIECE, end - offset), offset)
        if not piece:
            yield from _zeros(end - offset)
            return
        offset += len(piece)
        yield piece


def _zeros(length: int) -> Iterator[bytes]:
    while length:
        count = min(length, _PIECE)
        yield bytes(count)
        length -= count
