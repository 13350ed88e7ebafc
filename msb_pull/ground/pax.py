"""PAX extended headers and sparse maps (POSIX.1-2001; GNU tar's manual, "Storing Sparse Files")."""

from __future__ import annotations

from msb_pull.ground.tarfields import BLOCK, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_SEGMENTS = 1 << 16
_PAIRS_OF_BLOCK = 21
_MAX_RECORDS = 1 << 14
_XATTR = b"SCHILY.xattr."
SPARSE = b"GNU.sparse."
_MAX_ID = (1 << 32) - 1
_MAX_DIGITS = 20
# The plain records by their keys, and the fields of Pax that hold them.
_FIELDS = {
    b"path": "path",
    b"linkpath": "linkpath",
    b"size": "size",
    b"uid": "uid",
    b"gid": "gid",
    b"mtime": "mtime_ns",
}
_MAP = "its sparse map"
_SPARSE_VERSIONS = frozenset(((None, None), (0, 0), (0, 1), (1, 0)))


class BadRecord(ValueError):
    """An extended header or a sparse map is malformed."""


class Sparse:
    """What the ``GNU.sparse.`` records say; ``pairs`` is None when the map leads the payload (format 1.0)."""

    __slots__ = ("name", "offsets", "pairs", "realsize", "version")

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.realsize: int | None = None
        self.pairs: list[tuple[int, int]] | None = None
        self.offsets: list[int] = []
        self.version: list[int | None] = [None, None]

    def add(self, key: bytes, value: bytes) -> None:
        """Takes one of the records; raises BadRecord."""
        key = key.removeprefix(SPARSE)
        if key == b"name":
            self.name = _no_nul(value)
        elif key in (b"size", b"realsize"):
            self.realsize = decimal(value, "its sparse size")
        elif key in (b"major", b"minor"):
            self.version[key == b"minor"] = decimal(value, "its sparse version")
        elif key == b"map":
            self.pairs = _paired([decimal(part, _MAP) for part in value.split(b",")] if value else [])
        elif key == b"offset":
            self.offsets.append(decimal(value, _MAP))
        elif key == b"numbytes":
            self.pairs = self.pairs or []
            if len(self.offsets) != len(self.pairs) + 1:
                raise BadRecord("its sparse map is malformed")
            self.pairs.append((self.offsets[-1], decimal(value, _MAP)))
        if self.pairs is not None and len(self.pairs) > _MAX_SEGMENTS:
            raise BadRecord("its sparse map is too long")

    def check(self) -> None:
        """Raises BadRecord where the records do not make one of the four ways that there are."""
        # With half of a version some readers take a file for sparse, and others do not.
        if tuple(self.version) not in _SPARSE_VERSIONS:
            raise BadRecord("its sparse format is unknown")
        if self.version == [1, 0]:
            if self.pairs is not None or self.realsize is None:
                raise BadRecord("its sparse map is malformed")
        elif self.pairs is None:
            raise BadRecord("its sparse map is missing")


class Pax:
    """The records that count; None where there is none (an empty value means: as the header says)."""

    __slots__ = ("gid", "linkpath", "mtime_ns", "path", "size", "sparse", "uid", "xattrs")

    def __init__(self) -> None:
        self.path: bytes | None = None
        self.linkpath: bytes | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.size: int | None = None
        self.mtime_ns: int | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: Sparse | None = None


def parse(data: bytes) -> Pax:
    """What one extended header says; raises BadRecord.

    A header before it counts no more: Go, GNU tar and bsdtar keep only the last one before an entry.
    """
    pax = Pax()
    for count, (key, value) in enumerate(records(data)):
        if count >= _MAX_RECORDS:
            raise BadRecord(f"its extended header has more than {_MAX_RECORDS} records")
        _apply(pax, key, value)
    if pax.sparse is not None:
        pax.sparse.check()
    return pax


def records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records ``LENGTH KEY=VALUE\\n`` of one extended header; raises BadRecord.

    No more is copied of ``data`` than a record at a time, since there may be a hundred thousand of them.
    """
    at, stop = 0, len(data)
    while at < stop:
        space = data.find(b" ", at, at + 10)
        end = at + decimal(data[at:space], "a record's length") if space > at else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not (key and equals and space + 2 < end <= stop and data.startswith(b"\n", end - 1)):
            raise BadRecord("its extended header is malformed")
        yield key, value
        at = end


def decimal(value: bytes, what: str) -> int:
    """A non-negative decimal number of sane length; raises BadRecord."""
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise BadRecord(f"{what} is malformed")
    return int(value)


def checked_map(pairs: list[tuple[int, int]], size: int, stored: int) -> tuple[tuple[int, int], ...]:
    """The data segments of a sparse file (offset, length) if they are sorted, apart and inside it; raises BadRecord."""
    end = total = 0
    for offset, length in pairs:
        if offset < end or length < 0 or offset + length > size:
            raise BadRecord("its sparse map overlaps or leaves the file")
        end = offset + length
        total += length
    if total != stored:
        raise BadRecord("its sparse map does not fit the data that follows")
    return tuple(pair for pair in pairs if pair[1])


def gnu_map(header: bytes, block: Callable[[], bytes | None]) -> list[tuple[int, int]]:
    """The map of GNU's own type: in the header, and in the blocks behind it while the one before says so.

    ``block`` reads the next block, None at the end of the archive. Raises BadRecord, BadField.
    """
    pairs = _gnu_pairs(header[386:482])
    more, room = header[482], _MAX_SEGMENTS
    while more:
        following = block()
        if following is None:
            raise BadRecord("the archive ends inside a sparse map")
        pairs += _gnu_pairs(following[:504])
        more = following[504]
        # Counted by blocks: one without a single pair may also say that another one follows.
        room -= _PAIRS_OF_BLOCK
        if room < 0:
            raise BadRecord("its sparse map is too long")
    return pairs


def leading_map(block: Callable[[], bytes | None], limit: int) -> tuple[list[tuple[int, int]], int]:
    """The map of format 1.0 and its size: the payload begins with it, as decimal lines padded to whole blocks.

    ``block`` reads the next block, None at the end of the archive; ``limit`` is how many bytes there may be. Raises
    BadRecord.
    """
    data = bytearray()
    found, wanted = 0, 1
    while found < wanted:
        piece = block() if len(data) + BLOCK <= limit else None
        if piece is None:
            raise BadRecord("its sparse map is truncated or too long")
        data += piece
        if not found and b"\n" in piece:
            count = decimal(bytes(data[: data.index(b"\n")]), _MAP)
            if count > _MAX_SEGMENTS:
                raise BadRecord("its sparse map is too long")
            wanted = 1 + 2 * count
        found += piece.count(b"\n")
    lines = bytes(data).split(b"\n", wanted)[1:wanted]
    return _paired([decimal(line, _MAP) for line in lines]), len(data)


def _paired(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise BadRecord("its sparse map is malformed")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _gnu_pairs(field: bytes) -> list[tuple[int, int]]:
    """Pairs of numbers of twelve bytes, up to the first empty one."""
    pairs = []
    for at in range(0, len(field) - 23, 24):
        if not field[at] or not field[at + 12]:
            break
        pairs.append((number(field[at : at + 12]), number(field[at + 12 : at + 24])))
    return pairs


def _apply(pax: Pax, key: bytes, value: bytes) -> None:
    if key.startswith(_XATTR):
        name = key[len(_XATTR) :]
        if not name or b"\0" in key:
            raise BadRecord("the name of an extended attribute is malformed")
        pax.xattrs = pax.xattrs or {}
        pax.xattrs[name] = value
    elif key.startswith(SPARSE):
        pax.sparse = pax.sparse or Sparse()
        pax.sparse.add(key, value)
    elif not value:
        # It also takes back what an earlier record of the same header said.
        if key in _FIELDS:
            setattr(pax, _FIELDS[key], None)
    elif key in (b"path", b"linkpath"):
        setattr(pax, key.decode(), _no_nul(value))
    elif key == b"size":
        pax.size = decimal(value, "its size")
    elif key in (b"uid", b"gid"):
        number = decimal(value, "its owner or group")
        if number > _MAX_ID:
            raise BadRecord("its owner or group is out of range")
        setattr(pax, key.decode(), number)
    elif key == b"mtime":
        pax.mtime_ns = _nanoseconds(value)


def _no_nul(value: bytes) -> bytes:
    if b"\0" in value:
        raise BadRecord("its name holds a NUL byte")
    return value


def _nanoseconds(value: bytes) -> int:
    """Seconds with a fraction, exact to the nanosecond (a float would lose it)."""
    sign = -1 if value.startswith(b"-") else 1
    whole, _, fraction = value.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or not (not fraction or fraction.isdigit()) or len(whole) > _MAX_DIGITS:
        raise BadRecord("its time is malformed")
    return sign * (int(whole) * 1_000_000_000 + int((fraction + b"000000000")[:9]))
