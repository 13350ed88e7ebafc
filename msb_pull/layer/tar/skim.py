"""Reads of a record what concerns some paths, and passes over all other entries without a look at what they say."""

from __future__ import annotations

from msb_pull.ground.limits import Limits
from msb_pull.ground.tarfields import BLOCK, ZEROS, BadField, header_name, number
from msb_pull.layer.limits import LayerError
from msb_pull.layer.rules import PLINKS, WHITEOUT, clean, whiteout_of
from msb_pull.layer.tar.entry import FIFO, REG
from msb_pull.layer.tar.record import CHECKSUM, RecordStream
from msb_pull.layer.tar.tar import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from msb_pull.layer.tar.entry import Entry
    from msb_pull.layer.tar.record import Payload

_UNLIMITED = Limits(max_entries=1 << 62, max_bytes=1 << 62)
_PIECE = 1 << 20
_WITHOUT_PAYLOAD = b"123456"
_EXTENSIONS = b"xLK"
_GLOBAL, _VOLUME = ord("g"), ord("V")
_OLD, _CONTIGUOUS = 0, ord("7")


class Unclear(Exception):
    """Only a reader of the whole record can tell."""


class Skimmed:
    """The entries of a record that stand at some clean paths or above, hide these, or lie below the longest of them.

    It is right for a layer each of whose entries lies where it says. Their indexes and ``payloads`` are those of
    :class:`Record`. Raises Unclear where the record has what only that one reads, ContentError for a damaged one.
    """

    def __init__(self, path: Path | str, paths: Collection[bytes]) -> None:
        self.path = path
        self.payloads: list[Payload] = []
        self._wanted = {way for path in paths for way in (path, *_above(path))}
        ends = {way.rpartition(b"/")[2] for way in self._wanted if way}
        lasts = set(paths).difference(*map(_above, paths))
        self._wanted |= {whiteout_of(way) for way in self._wanted if way}
        self._near = {*self._wanted, *(way + b"/" for way in self._wanted)}
        self._below = (PLINKS, *(path + b"/" for path in lasts))
        # Of what extended headers say: odd names, all that ends as a wanted path does, and all that may lie below one.
        self._marks = {WHITEOUT, b"/.", b"//", *(path.rpartition(b"/")[2] for path in lasts)}
        self._marks |= {end + mark for end in ends for mark in (b"\n", b"\0", b"/\n", b"/\0")}

    def entries(self) -> Iterator[Entry]:
        """Those entries in order."""
        kept = list(self._kept())
        stream = _Joined([data for _, data in kept])
        reader = TarReader(stream, limits=_UNLIMITED, stripped=True)
        try:
            for index, _ in kept:
                reader.entries = index
                entry = reader.next()
                if entry is None:
                    raise Unclear
                if entry.crc is not None:
                    place = reader.passed - CHECKSUM
                    self.payloads.append((place, index, entry.crc, entry.stored, entry.sparse))
                yield entry
        except LayerError:
            raise Unclear from None

    def _kept(self) -> Iterator[tuple[int, bytes]]:
        """Index and bytes of each: its headers, the checksum and the padding of its payload."""
        stream = RecordStream(self.path)
        try:
            data, at, index = b"", 0, 0
            while True:
                more = stream.read(_PIECE)
                data = data[at:] + more
                at = 0
                while True:
                    at, index = self._pass(data, at, index)
                    if (span := self._span(data, at)) is None:
                        break
                    end, keep = span
                    if end < 0:
                        # What follows the end of the archive; damage would show there, too.
                        while stream.read(_PIECE):
                            pass
                        return
                    if keep:
                        yield index, data[at:end]
                    at, index = end, index + 1
                if not more:
                    raise Unclear
        finally:
            stream.close()

    def _pass(self, data: bytes, at: int, index: int) -> tuple[int, int]:
        """Passes over entries that nobody wants, as most are: without extensions, under clean names."""
        near, below, last = self._near, self._below, len(data) - 3 * BLOCK
        while at <= last:
            kind = data[at + 156]
            # A name that begins with a dot or a slash may be another way to say it, and a prefix stands elsewhere.
            if not REG <= kind <= FIFO or data[at] < REG or data[at + 345]:
                break
            # One of 100 bytes has no end, and is left to the other way.
            name = data[at : data.find(0, at, at + 100)] if not data[at + 99] else b"//"
            if name in near or b"/." in name or b"//" in name or name.startswith(below):
                break
            at += BLOCK
            if kind == REG:
                field = data[at - 388 : at - 377]
                if data[at - 377] or field.strip(b"01234567"):
                    return at - BLOCK, index
                if length := int(field, 8):
                    at += CHECKSUM + -length % BLOCK
            index += 1
        return at, index

    def _span(self, data: bytes, at: int) -> tuple[int, bool] | None:
        """Where the entry that begins here ends, and whether it is kept; None for more data, -1 for the last one."""
        start, keep, size = at, False, len(data)
        while at + BLOCK <= size:
            kind = data[at + 156]
            if kind in _WITHOUT_PAYLOAD:
                return at + BLOCK, keep or self._concerns(data, at)
            if kind == _VOLUME:
                at += BLOCK
                continue
            if kind in _EXTENSIONS or kind == _GLOBAL:
                length = self._number(data, at)
                end = at + BLOCK + length + -length % BLOCK
                if end > size:
                    return None
                if kind != _GLOBAL:
                    body = data[at + BLOCK : end]
                    if b"GNU.sparse" in body or b" size=" in body:
                        raise Unclear
                    keep = keep or any(mark in body for mark in self._marks)
                at = end
                continue
            if kind == _OLD and start == at and data[at : at + BLOCK] == ZEROS:
                return -1, False
            if kind not in (REG, _OLD, _CONTIGUOUS):
                raise Unclear
            keep = keep or self._concerns(data, at)
            end = at + BLOCK
            if (length := self._number(data, at)) and not (kind == _OLD and header_name(data[at:end]).endswith(b"/")):
                end += CHECKSUM + -length % BLOCK
            return (end, keep) if end <= size else None
        return None

    def _concerns(self, data: bytes, at: int) -> bool:
        if data[at + 345]:
            name = header_name(data[at : at + BLOCK])
        else:
            end = data.find(0, at, at + 100)
            name = data[at : end if end >= 0 else at + 100]
        if name[:2] == b"./":
            name = name[2:]
        if name[-1:] == b"/":
            name = name[:-1]
        if name[:1] in (b"/", b".", b"") or b"//" in name or b"/." in name:
            try:
                name = clean(name) if name else name
            except ValueError:
                raise Unclear from None
        return name in self._wanted or name.startswith(self._below)

    def _number(self, data: bytes, at: int) -> int:
        field = data[at + 124 : at + 135]
        try:
            found = int(field, 8) if field.isdigit() and not data[at + 135] else number(data[at + 124 : at + 136])
        except (BadField, ValueError):
            raise Unclear from None
        if found < 0:
            raise Unclear
        return found


def _above(path: bytes) -> list[bytes]:
    """All that a path lies in."""
    found = []
    while path:
        path = path.rpartition(b"/")[0]
        found.append(path)
    return found


class _Joined:
    def __init__(self, parts: list[bytes]) -> None:
        self._data = memoryview(b"".join(parts) + bytes(2 * BLOCK))
        self._at = 0

    def read(self, size: int) -> memoryview:
        at = self._at
        self._at = min(at + size, len(self._data))
        return self._data[at : self._at]
