"""PAX extended headers and sparse maps (POSIX.1-2001; GNU tar's manual, "Storing Sparse Files")."""

from __future__ import annotations

MAX_SEGMENTS = 1 << 16
_MAX_RECORDS = 1 << 14
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
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
    """Parses the records ``LENGTH KEY=VALUE\\n`` of one extended header; raises BadRecord.

    A header before it counts no more: Go, GNU tar and bsdtar keep only the last one before an entry.
    """
    pax = Pax()
    pos = 0
    count = 0
    while pos < len(data):
        space = data.find(b" ", pos, pos + 8)
        length = decimal(data[pos:space], "a record's length") if space > pos else 0
        end = pos + length
        if length < 5 or end > len(data) or data[end - 1] != 10:
            raise BadRecord("its extended header is malformed")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise BadRecord("its extended header is malformed")
        _apply(pax, key, value)
        pos = end
        count += 1
        if count > _MAX_RECORDS:
            raise BadRecord(f"its extended header has more than {_MAX_RECORDS} records")
    if pax.sparse is not None:
        _finish_sparse(pax.sparse)
    return pax


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


def gnu_pairs(field: bytes) -> list[tuple[int, int]]:
    """The pairs of twelve-byte numbers of an old GNU sparse header, up to the first empty one."""
    from msb_pull.layer.tar.fields import number

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
    elif key.startswith(_SPARSE):
        pax.sparse = pax.sparse or Sparse()
        _apply_sparse(pax.sparse, key[len(_SPARSE) :], value)
    elif not value:
        # It also takes back what an earlier record of the same header said.
        if key in _FIELDS:
            setattr(pax, _FIELDS[key], None)
    elif key == b"path":
        pax.path = _no_nul(value)
    elif key == b"linkpath":
        pax.linkpath = _no_nul(value)
    elif key == b"size":
        pax.size = decimal(value, "its size")
    elif key in (b"uid", b"gid"):
        number = decimal(value, "its owner or group")
        if number > _MAX_ID:
            raise BadRecord("its owner or group is out of range")
        setattr(pax, key.decode(), number)
    elif key == b"mtime":
        pax.mtime_ns = _nanoseconds(value)


def _apply_sparse(sparse: Sparse, key: bytes, value: bytes) -> None:
    if key == b"name":
        sparse.name = _no_nul(value)
    elif key in (b"size", b"realsize"):
        sparse.realsize = decimal(value, "its sparse size")
    elif key in (b"major", b"minor"):
        sparse.version[key == b"minor"] = decimal(value, "its sparse version")
    elif key == b"map":
        numbers = [decimal(part, "its sparse map") for part in value.split(b",")] if value else []
        if len(numbers) % 2:
            raise BadRecord("its sparse map is malformed")
        sparse.pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    elif key == b"offset":
        sparse.offsets.append(decimal(value, "its sparse map"))
    elif key == b"numbytes":
        sparse.pairs = sparse.pairs or []
        if len(sparse.offsets) != len(sparse.pairs) + 1:
            raise BadRecord("its sparse map is malformed")
        sparse.pairs.append((sparse.offsets[-1], decimal(value, "its sparse map")))
    if sparse.pairs is not None and len(sparse.pairs) > MAX_SEGMENTS:
        raise BadRecord("its sparse map is too long")


def _finish_sparse(sparse: Sparse) -> None:
    # With half of a version some readers take a file for sparse, and others do not.
    if tuple(sparse.version) not in _SPARSE_VERSIONS:
        raise BadRecord("its sparse format is unknown")
    if sparse.version == [1, 0]:
        if sparse.pairs is not None or sparse.realsize is None:
            raise BadRecord("its sparse map is malformed")
    elif sparse.pairs is None:
        raise BadRecord("its sparse map is missing")


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
