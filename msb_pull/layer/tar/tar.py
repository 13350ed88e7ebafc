"""A strict, fast reader of tar streams: it parses and checks, and never touches the disk.

Formats: v7, ustar, GNU (long names, sparse), PAX (POSIX.1-2001; ``SCHILY.xattr.``, ``GNU.sparse.``). Where archives
are ambiguous it decides as Go's archive/tar does, since Go wrote nearly every layer there is. Where Python's tarfile
ends in silence (a bad header in the middle, a cut header), it refuses.
"""

from __future__ import annotations

from isal.isal_zlib import crc32

from msb_pull.ground.pax import BadRecord, checked_map, gnu_map, leading_map, parse
from msb_pull.ground.tarfields import BLOCK, ZEROS, BadField, checksum_fits, header_name, number, text
from msb_pull.layer.tar.blocks import BlockReader
from msb_pull.layer.tar.entry import BLK, CHR, DIR, FIFO, LNK, REG, SYM, Entry, Extensions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from msb_pull.ground.limits import Limits
    from msb_pull.ground.pax import Sparse
    from msb_pull.layer.tar.blocks import Sink, Stream

_CONTIGUOUS, _OLD_REG = ord("7"), 0
_EMPTY = memoryview(b"")
_MAX_ID = (1 << 32) - 1
_MAX_DEVICE = (1 << 31) - 1
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE, _VOLUME = b"LKxgSV"


class TarReader(BlockReader):
    """Iterates the entries of one stream with :meth:`next`; payloads come from :meth:`chunk`.

    Every byte but the payloads goes to ``record``. With ``stripped`` the stream is such a record: four bytes of CRC-32
    stand where a payload was, and ``Entry.crc`` holds them. ``content_bytes`` sums the sizes of all files.
    """

    def __init__(self, stream: Stream, *, limits: Limits, record: Sink | None = None, stripped: bool = False) -> None:
        super().__init__(stream, record)
        self._limits = limits
        self._stripped = stripped
        self._left = 0
        self._padding = 0
        self._crc = 0
        self._map_leads = False
        self._extension_left = 0
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, int] = {}
        self.content_bytes = 0
        self.trailing_garbage = False

    @property
    def passed(self) -> int:
        """How many bytes of the stream lie behind the reader."""
        return self.bytes_read - (self._end - self._pos)

    def next(self) -> Entry | None:
        """The next entry, or None at the end of the archive; raises LayerError.

        What is left of the previous payload is skipped.
        """
        if self._padding or self._left:
            self._skip_payload()
        before: Extensions | None = None
        # Together, since any number of them may come before one entry.
        self._extension_left = self._limits.max_extension
        while True:
            block = self._block()
            if block is None or block == ZEROS:
                if before is not None:
                    self._fail("the archive ends after an extension header")
                if block is not None:
                    self._check_end()
                return None
            kind = block[156]
            # A record was checked when it was written, and its gzip has a checksum of its own.
            if not self._stripped and not checksum_fits(block):
                self._fail("a header is damaged (its checksum is wrong)", index=self.entries)
            if kind in b"LKxgV":
                before = self._extension(kind, block, before)
            else:
                return self._entry(kind, block, before)

    def chunk(self) -> memoryview:
        """The next piece of the current payload, empty at its end. It is valid until the next call."""
        left = self._left
        if not left:
            return _EMPTY
        pos = self._pos
        there = self._end - pos
        if not there:
            self._fill()
            pos, there = self._pos, self._end - self._pos
            if not there:
                self._fail("the archive ends inside a file")
        take = left if left < there else there
        view = self._view[pos : pos + take]
        self._pos = pos + take
        self._left = left = left - take
        self._crc = crc32(view, self._crc)
        if not left and self._record is not None:
            self._record.write(self._crc.to_bytes(4, "big"))
        return view

    def drain(self) -> None:
        """Reads what follows the end of the archive, to the end of the stream; raises LayerError over the limit."""
        trailing = 0
        while True:
            rest = bytes(self._view[self._pos : self._end])
            self._pos = self._end
            if not rest:
                self._fill()
                if self._pos == self._end:
                    return
                continue
            trailing += len(rest)
            if trailing > self._limits.max_bytes:
                message = f"more than {self._limits.max_bytes} bytes follow the end of the archive"
                self._fail(message, "raise --max-layer-size if you trust the image")
            self.trailing_garbage = self.trailing_garbage or rest.count(0) != len(rest)
            if self._record is not None:
                self._record.write(rest)

    # Headers

    def _entry(self, kind: int, block: bytes, before: Extensions | None) -> Entry:
        index = self.entries
        self.entries = index + 1
        name = self._name = header_name(block)
        if index >= self._limits.max_entries:
            self._fail(
                f"more than {self._limits.max_entries} entries", "raise --max-entries if you trust the image", index
            )
        try:
            owner = self._owners.get(block[100:124]) or self._owner(block[100:124])
            if (time := self._times.get(block[136:148])) is None:
                time = self._time(block[136:148])
            entry = Entry(index, name, kind, *owner, time)
            size = number(block[124:136])
            if before is not None:
                size = self._extend(entry, before, size)
            elif kind == REG and size >= 0:
                # What _typed does with it, in one step: nearly all entries are such files.
                entry.stored = entry.size = size
                self._begin_payload(entry)
                return entry
            self._typed(entry, kind, block, size)
        except (BadField, BadRecord) as error:
            self._fail(str(error), index=index)
        return entry

    def _typed(self, entry: Entry, kind: int, block: bytes, size: int) -> None:
        """Fills in what depends on the type, and sets the payload up."""
        if size < 0:
            self._fail("its size is negative", index=entry.index)
        if kind in (REG, _OLD_REG, _CONTIGUOUS, _SPARSE):
            is_directory = kind == _OLD_REG and entry.name.endswith(b"/")
            entry.type = DIR if is_directory else REG
            if is_directory:
                if self._map_leads or entry.sparse is not None:
                    self._fail("a directory with a sparse map", index=entry.index)
            else:
                entry.stored = size
                if entry.sparse is None and not self._map_leads:
                    entry.size = size
                if kind == _SPARSE:
                    pairs = gnu_map(block, self._block)
                    entry.size = number(block[483:495])
                    entry.sparse = checked_map(pairs, entry.size, size)
                self._begin_payload(entry)
        elif kind in (LNK, SYM):
            if not entry.linkname:
                entry.linkname = text(block[157:257])
            if not entry.linkname or b"\0" in entry.linkname:
                self._fail("the target of the link is empty or holds a NUL byte", index=entry.index)
        elif kind in (CHR, BLK):
            entry.devmajor, entry.devminor = number(block[329:337]), number(block[337:345])
            if not (0 <= entry.devmajor <= _MAX_DEVICE and 0 <= entry.devminor <= _MAX_DEVICE):
                self._fail("the device number is out of range", index=entry.index)
        elif kind == DIR:
            # Images built by other means than Go's (AWS Lambda's) leave out even the dot for the top.
            entry.name = entry.name or b"./"
        elif kind != FIFO:
            self._fail(f"unsupported tar entry type {chr(kind)!r}", index=entry.index)

    def _owner(self, field: bytes) -> tuple[int, int, int]:
        owner = (number(field[:8]) & 0o7777, number(field[8:16]), number(field[16:24]))
        if not (0 <= owner[1] <= _MAX_ID and 0 <= owner[2] <= _MAX_ID):
            raise BadField("its owner or group is out of range")
        if len(self._owners) < 4096:
            self._owners[field] = owner
        return owner

    def _time(self, field: bytes) -> int:
        """In nanoseconds."""
        time = number(field) * 1_000_000_000
        if len(self._times) < 4096:
            self._times[field] = time
        return time

    # Extension headers

    def _extension(self, kind: int, block: bytes, before: Extensions | None) -> Extensions | None:
        try:
            size = number(block[124:136])
        except BadField as error:
            self._fail(str(error), index=self.entries)
        if kind == _VOLUME:
            return before
        if not 0 <= size <= self._limits.max_extension:
            self._fail(f"an extension header of {size} bytes (the limit is {self._limits.max_extension})")
        self._extension_left -= size
        if self._extension_left < 0:
            self._fail(f"extension headers of more than {self._limits.max_extension} bytes before one entry")
        data = self._raw(size)
        if kind == _PAX_GLOBAL:
            return before
        before = before or Extensions()
        if kind == _LONG_NAME:
            before.name = text(data)
        elif kind == _LONG_LINK:
            before.link = text(data)
        else:
            try:
                before.pax = parse(data)
            except BadRecord as error:
                self._fail(str(error), index=self.entries)
        return before

    def _extend(self, entry: Entry, before: Extensions, size: int) -> int:
        """Lets the headers before the entry override its own, PAX over GNU; returns the payload's size."""
        if before.name:
            entry.name = self._name = before.name
        if before.link:
            entry.linkname = before.link
        pax = before.pax
        if pax is None:
            return size
        if pax.path is not None:
            entry.name = self._name = pax.path
        if pax.linkpath is not None:
            entry.linkname = pax.linkpath
        if pax.uid is not None:
            entry.uid = pax.uid
        if pax.gid is not None:
            entry.gid = pax.gid
        if pax.mtime_ns is not None:
            entry.mtime_ns = pax.mtime_ns
        if pax.xattrs:
            entry.xattrs = pax.xattrs
        if pax.size is not None:
            size = pax.size
        if pax.sparse is not None:
            if entry.type not in (REG, _OLD_REG, _CONTIGUOUS):
                self._fail("a sparse map for something other than a regular file", index=entry.index)
            self._sparse_pax(entry, pax.sparse, size)
        return size

    def _sparse_pax(self, entry: Entry, sparse: Sparse, size: int) -> None:
        entry.size = sparse.realsize if sparse.realsize is not None else size
        if sparse.name is not None:
            entry.name = self._name = sparse.name
        if sparse.pairs is not None:
            entry.sparse = checked_map(sparse.pairs, entry.size, size)
        else:
            self._map_leads = True

    # Payload and buffer

    def _begin_payload(self, entry: Entry) -> None:
        if self._map_leads:
            self._map_leads = False
            pairs, length = leading_map(self._block, min(entry.stored, self._limits.max_extension))
            entry.stored -= length
            entry.sparse = checked_map(pairs, entry.size, entry.stored)
        self.content_bytes += entry.size
        if entry.size < 0 or self.content_bytes > self._limits.max_bytes:
            limit = self._limits.max_bytes
            self._fail(f"the layer unpacks to more than {limit} bytes", "raise --max-layer-size if you trust the image")
        self._padding = -entry.stored % BLOCK
        self._crc = 0
        if self._stripped and entry.stored:
            crc = self._take(4) if self._end - self._pos >= 4 else self._raw(4, padded=False)
            entry.crc = int.from_bytes(crc, "big")
        else:
            self._left = entry.stored

    def _skip_payload(self) -> None:
        while self._left:
            self.chunk()
        padding = self._padding
        if padding:
            self._padding = 0
            there = self._end - self._pos
            if there < padding:
                there = self._need(padding)
            if 0 < there < padding:
                self._fail("the archive ends inside the padding of a file")
            if there and self._record is None:
                self._pos += padding
            elif there:
                self._take(padding)

    def _check_end(self) -> None:
        """After one block of zeros: a second one, the end of the stream or garbage, but no more entries."""
        block = self._block() if self._need(BLOCK) >= BLOCK else None
        if block is None or block == ZEROS:
            return
        self.trailing_garbage = True
        if checksum_fits(block):
            self._fail("an entry follows a block of zeros", index=self.entries)
