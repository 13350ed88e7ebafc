"""The tar reader alone, and a whole layer on disk.

Byte 0 says how the stream comes and whether checksums are put right first, since no mutation would hit them; the rest
is the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from pathlib import Path

from msb_pull.ground.errors import ContentError
from msb_pull.ground.limits import Limits
from msb_pull.ground.tarfields import BadField, number
from msb_pull.layer.limits import LayerError
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.prove import prove
from msb_pull.layer.proof.task import ProofTask
from msb_pull.layer.report import UnpackOptions
from msb_pull.layer.settle.settle import settle
from msb_pull.layer.tar import blocks
from msb_pull.layer.tar.entry import DIR, LNK, REG, SYM, Entry
from msb_pull.layer.tar.tar import TarReader
from msb_pull.layer.tree.kept import keep_aside
from msb_pull.layer.unpack.unpack import unpack
from tests.support.archive import derived

REPAIR, SMALL_BUFFER, PIECES = 1, 2, 4
_BLOCK = 512
_PATTERN = (1, 511, 512, 513, 3, 1024, 7)
_LIMITS = {"max_bytes": 1 << 22, "max_entries": 200, "max_extension": 1 << 16}


class Pieces:
    """A stream that gives as little per read as a pipe may."""

    def __init__(self, data: bytes, *, whole: bool) -> None:
        self._data = memoryview(data)
        self._whole = whole
        self._turn = 0

    def read(self, size: int, /) -> memoryview:
        if not self._whole:
            size = min(size, _PATTERN[self._turn % len(_PATTERN)])
        self._turn += 1
        piece, self._data = self._data[:size], self._data[size:]
        return piece


class Sink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data


class Outcome:
    """What one reading gave."""

    def __init__(self) -> None:
        self.entries: list[tuple] = []
        self.headers: list[bytes] = []
        self.payloads: list[bytes] = []
        self.record = b""
        self.error: str | None = None

    def facts(self) -> tuple:
        return self.entries, self.payloads, self.record, self.error


def tar(data: bytes) -> None:
    """What the reader accepts it can make again, it reads it as tarfile does, and pieces do not matter."""
    flags, stream = arrange(data)
    with buffer_of(1024 if flags & SMALL_BUFFER else blocks.BUFFER):
        found = read(stream, whole=not flags & PIECES)
        other = read(stream, whole=bool(flags & PIECES))
    assert found.facts()[:2] == other.facts()[:2], "pieces of another size give other entries"
    assert found.error == other.error, f"{found.error} or {other.error}, as the pieces go"
    if found.error is not None:
        return
    assert found.record == other.record
    again(found, stream)
    same_as_tarfile(found, stream)


def layer(data: bytes) -> None:
    """A layer on disk is what its record says, and gives its stream back."""
    _, stream = arrange(data)
    with tempfile.TemporaryDirectory(dir=memory()) as name:
        folder = Path(name)
        (folder / "tree").mkdir(mode=0o700)
        (folder / "beside").write_bytes(b"beside")
        root = os.open(folder / "tree", os.O_RDONLY | os.O_DIRECTORY)
        try:
            _one_layer(folder, root, stream)
        finally:
            os.close(root)
            assert set(os.listdir(folder)) <= {"beside", "record", "notes", "tree", "kept"}
            assert (folder / "beside").read_bytes() == b"beside"


def _one_layer(folder: Path, root: int, stream: bytes) -> None:
    record = folder / "record"
    try:
        with record.open("wb") as out:
            options = UnpackOptions(max_entries=200, max_bytes=1 << 22, xattrs=has_attributes(folder))
            report = unpack(Pieces(stream, whole=True), root, out.fileno(), options)
        settled = settle(folder / "tree", report, [])
    except ContentError as error:
        assert str(error).isprintable(), repr(str(error))
        return
    keep_aside(folder / "tree", folder / "kept")
    diff_id = "sha256:" + hashlib.sha256(stream).hexdigest()
    notes = folder / "notes"
    Notes.of(report, settled.derived, diff_id=diff_id, tar_bytes=len(stream), chain="").save(notes)
    task = ProofTask(str(folder / "tree"), str(record), str(notes), diff_id, False, str(folder / "kept"))
    found = prove(task, lambda done, total, entries: None)
    assert not found.damages, found.damages
    assert found.diff_id == diff_id, "another stream came back"
    assert derived(record, []) == settled.derived


def has_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.probe", b"")
    except OSError:
        return False
    return True


def memory() -> str | None:
    """Where files cost least."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def arrange(data: bytes) -> tuple[int, bytes]:
    """The flags, and the stream with its checksums put right if they say so."""
    flags = data[0] if data else 0
    stream = bytearray(data[1:])
    if flags & REPAIR:
        repair(stream)
    return flags, bytes(stream)


def repair(stream: bytearray) -> None:
    at = 0
    while at + _BLOCK <= len(stream):
        block = stream[at : at + _BLOCK]
        if any(block):
            stream[at + 148 : at + 156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
            if block[156:157] in b"\x0007SLKxg":
                at += payload(block[124:136])
        at += _BLOCK


def payload(field: bytes) -> int:
    digits = bytes(field).strip(b" \0")
    if not digits.isdigit() or set(digits) & set(b"89"):
        return 0
    return -(-int(digits, 8) // _BLOCK) * _BLOCK


@contextlib.contextmanager
def buffer_of(size: int):
    """Lets the reads of the reader end where it hurts."""
    before = blocks.BUFFER
    blocks.BUFFER = size
    try:
        yield
    finally:
        blocks.BUFFER = before


def read(stream: bytes, *, whole: bool) -> Outcome:
    found = Outcome()
    sink = Sink()
    reader = TarReader(Pieces(stream, whole=whole), limits=Limits(**_LIMITS), record=sink)
    try:
        while True:
            before = len(sink.data)
            entry = reader.next()
            if entry is None:
                break
            found.headers.append(bytes(sink.data[before:]))
            found.entries.append(tuple(getattr(entry, slot) for slot in entry.__slots__))
            parts = []
            while piece := reader.chunk():
                parts.append(bytes(piece))
            found.payloads.append(b"".join(parts))
            assert len(found.payloads[-1]) == entry.stored
            check(entry)
        reader.drain()
        assert reader.bytes_read == len(stream)
        assert reader.entries == len(found.entries)
    except LayerError as error:
        assert str(error).isprintable(), repr(str(error))
        found.error = str(error)
    found.record = bytes(sink.data)
    return found


def check(entry) -> None:
    """The limits that an entry promises to keep."""
    assert 0 <= entry.mode <= 0o7777
    assert 0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32
    assert 0 <= entry.size <= _LIMITS["max_bytes"]
    assert entry.type in b"0123456"
    assert b"\0" not in entry.name and b"\0" not in entry.linkname
    if entry.type in (LNK, SYM):
        assert entry.linkname
    if entry.sparse is None:
        assert entry.stored == entry.size
        return
    end = 0
    for offset, length in entry.sparse:
        assert length > 0 and offset >= end
        end = offset + length
    assert end <= entry.size
    assert sum(length for _, length in entry.sparse) == entry.stored


def again(found: Outcome, stream: bytes) -> None:
    """The stripped stream and the payloads make the stream."""
    sink = Sink()
    reader = TarReader(Pieces(found.record, whole=True), limits=Limits(), record=sink, stripped=True)
    made = bytearray()
    for facts, content in zip(found.entries, found.payloads, strict=True):
        entry = reader.next()
        assert entry is not None
        there = tuple(getattr(entry, slot) for slot in entry.__slots__ if slot != "crc")
        assert there == tuple(x for slot, x in zip(entry.__slots__, facts, strict=True) if slot != "crc")
        made += sink.data[: len(sink.data) - 4 * (entry.crc is not None)]
        sink.data.clear()
        if entry.crc is not None:
            assert entry.crc == zlib.crc32(content)
            made += content
    assert reader.next() is None
    reader.drain()
    made += sink.data
    assert bytes(made) == stream, "another stream came back"


def same_as_tarfile(found: Outcome, stream: bytes) -> None:
    """Names, types, sizes, targets and contents are those that Python reads, but for :func:`known_difference`."""
    if known_difference(found):
        return
    ours = []
    for facts, content in zip(found.entries, found.payloads, strict=True):
        entry = dict(zip(Entry.__slots__, facts, strict=True))
        kind, name = entry["type"], entry["name"]
        # tarfile takes slashes away from the ends of directories, and of all that PAX says.
        name = name.rstrip(b"/")
        target = entry["linkname"].rstrip(b"/") if kind in (LNK, SYM) else b""
        ours.append((name, kind, entry["size"], target, spread(entry, content) if kind == REG else b""))
    theirs = []
    with tarfile.open(fileobj=io.BytesIO(stream), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            name = member.name.encode("utf-8", "surrogateescape").rstrip(b"/")
            kind = REG if member.isreg() else member.type[0]
            target = member.linkname.encode("utf-8", "surrogateescape").rstrip(b"/") if kind in (LNK, SYM) else b""
            size = member.size if kind == REG else 0
            file = archive.extractfile(member) if kind == REG else None
            theirs.append((name, kind, size, target, file.read() if file else b""))
    assert ours == theirs, f"ours {ours}\ntheirs {theirs}"


def spread(entry, content: bytes) -> bytes:
    if entry["sparse"] is None:
        return content
    whole = bytearray(entry["size"])
    at = 0
    for offset, length in entry["sparse"]:
        whole[offset : offset + length] = content[at : at + length]
        at += length
    return bytes(whole)


def known_difference(found: Outcome) -> str | None:
    """Why tarfile may read something else, if there is a reason: where archives are ambiguous, Go's reader is right."""
    if not found.entries:
        return "no entry: it calls the archive empty or damaged"
    padding = 0
    for record, facts in zip(found.headers, found.entries, strict=True):
        headers = _headers(record[padding:])
        reason = _known_difference(headers)
        if len(headers) > 1 and headers[-1][0] == 0 and facts[Entry.__slots__.index("type")] == DIR:
            reason = "it tells old directories by the slash in their own header only"
        if reason is not None:
            return reason
        padding = -facts[Entry.__slots__.index("stored")] % _BLOCK
    checksums = 4 * sum(map(bool, found.payloads))
    if padding and len(found.record) == sum(map(len, found.headers)) + checksums:
        return "it wants the padding of the last file"
    return None


def _known_difference(headers: list[tuple[int, bytes, bytes]]) -> str | None:
    kinds = [kind for kind, _, _ in headers]
    for kind, block, data in headers:
        try:
            theirs = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return "it refuses numbers of another form, also in fields that do not count"
        if theirs.size != number(block[124:136]):
            return "it ends a number at a NUL before its digits"
        if kind == ord("S") and any(_other_number(field) for field in _sparse_fields(block, data)):
            return "it reads the numbers of a sparse map in another way"
        if kind == ord("g") and data:
            return "it applies global records, which containers do without"
        if kind in b"LK" and (not data[:1].strip(b"\0") or b"\0" not in data):
            return "it takes an empty long name for a name, and the block of one without a NUL"
        if kind == ord("V"):
            return "it takes the label of a volume for a file"
        if block[345] and (block[257:263] != b"ustar\0" or block[508:512] == b"tar\0"):
            return "it takes for a prefix what only POSIX has there"
        if kind == ord("x") and any(b"=\n" in data or word in data for word in (b"hdrcharset=", b"=\n")):
            return "it takes an empty value for a value"
    if kinds.count(ord("x")) > 1 or (ord("x") in kinds and {*b"LK"} & {*kinds}):
        return "among several headers of one entry, it takes the first; PAX comes first, and the last one"
    return None


def _sparse_fields(block: bytes, more: bytes) -> list[bytes]:
    fields = [block[at : at + 12] for at in (*range(386, 482, 12), 483)]
    starts = range(0, len(more), _BLOCK)
    return fields + [more[start + at : start + at + 12] for start in starts for at in range(0, 504, 12)]


def _other_number(field: bytes) -> bool:
    try:
        return tarfile.nti(field) != number(field)
    except (tarfile.HeaderError, BadField):
        return True


def _headers(record: bytes) -> list[tuple[int, bytes, bytes]]:
    """The headers of one entry: type, block, content."""
    found = []
    at = 0
    while True:
        block = record[at : at + _BLOCK]
        at += _BLOCK
        size = number(block[124:136]) if block[156] in b"LKxg" else 0
        if block[156] not in b"LKxgV":
            return [*found, (block[156], block, record[at:])]
        found.append((block[156], block, record[at : at + size]))
        at += -(-size // _BLOCK) * _BLOCK
