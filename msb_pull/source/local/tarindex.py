"""Where the members of an archive of images lie in its file: headers are read, contents only when they are asked for.

Not Python's tarfile, which ends silently at a damaged header. Nothing is ever written under a name from the archive:
names are only looked up. Formats: ustar, GNU (long names, base-256 sizes) and PAX (path, linkpath, size), with sparse
files in all of these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.ground.pax import SPARSE, BadRecord, Sparse, checked_map, decimal, gnu_map, leading_map, records
from msb_pull.ground.tarfields import BLOCK, ZEROS, BadField, checksum_fits, header_name, number, text
from msb_pull.source.local.files import Extent, Piece, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.ground.running import Cancel

# An archive of a hundred images has a few thousand members; long names and PAX headers a few hundred bytes.
_MAX_MEMBERS = 200_000
_MAX_EXTENSION = 1 << 20
_MAX_LINKS = 20
_MAX_MAP = 4 << 20
# No layer is larger, and zeros cost nothing to announce.
_MAX_SIZE = 1 << 40
_MAX_SHOWN = 200
_REGULAR, _HARD, _SYMBOLIC, _OTHER = "regular", "hard link", "symlink", "other"
_KINDS = {b"0": _REGULAR, b"\0": _REGULAR, b"7": _REGULAR, b"S": _REGULAR, b"1": _HARD, b"2": _SYMBOLIC}
_FILES = frozenset(kind for kind, meaning in _KINDS.items() if meaning == _REGULAR)
# Links, devices, directories and FIFOs have no content, whatever their size field says.
_WITHOUT_CONTENT = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_EXTENSIONS = frozenset({b"L", b"K", b"x", b"g"})


@dataclass(frozen=True, slots=True)
class Member:
    """One member: what it is, where its content lies, and where it points if it is a link."""

    kind: str
    pieces: tuple[Piece, ...]
    size: int
    target: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a file lies: its whole size, its pieces in order, and where in the archive its stored bytes end."""

    size: int
    pieces: tuple[Piece, ...]
    end: int


@dataclass(slots=True)
class _Extension:
    """What headers before a member say of it; ``sparse`` are records that :func:`read_sparse` understands."""

    path: bytes = b""
    linkpath: bytes = b""
    size: int | None = None
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)


_NOTHING = _Extension()


class TarFiles:
    """The members of an uncompressed archive in an open file, which this closes. See :class:`Files`."""

    def __init__(self, handle: int, label: str, cancel: Cancel) -> None:
        """Reads all headers; raises ContentError for damage, LocalError, Cancelled."""
        self.label = label
        self._handle = handle
        self._length = os.fstat(handle).st_size
        self._members: dict[str, Member] = {}
        self._twice: set[str] = set()
        self._scan(cancel)

    def has(self, name: str) -> bool:
        """See :class:`Files`."""
        return name in self._members

    def open(self, name: str) -> Extent:
        """See :class:`Files`; ``name`` may come from the archive. Links are followed inside the archive only."""
        member = self._follow(name)
        if member.kind != _REGULAR:
            raise ContentError(f"{self.label}: {name} is not a regular file")
        return Extent(os.dup(self._handle), member.pieces, member.size)

    def ending_with(self, suffix: str) -> str | None:
        """A member whose name ends with ``suffix``, for hints."""
        return next((name for name in self._members if name.endswith(suffix)), None)

    def close(self) -> None:
        """Closes the archive."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _follow(self, name: str) -> Member:
        at = name
        for _ in range(_MAX_LINKS):
            place = _inside(at)
            member = self._members.get(place) if place else None
            if place is None or member is None:
                to = "" if at == name else f" (its link leads to {at[:_MAX_SHOWN]})"
                raise ContentError(f"{self.label}: {name[:_MAX_SHOWN]} is not in the archive{to}")
            if place in self._twice:
                raise ContentError(
                    f"{self.label}: {place} appears twice in the archive, so its content is ambiguous",
                    hint="write a new archive instead of appending to this one",
                )
            if member.kind == _HARD:
                at = member.target
            elif member.kind == _SYMBOLIC:
                folder, slash, _ = place.rpartition("/")
                at = member.target if member.target.startswith("/") else folder + slash + member.target
            else:
                return member
        raise ContentError(f"{self.label}: the links of {name} form a loop")

    # Scanning

    def _scan(self, cancel: Cancel) -> None:
        at = 0
        pax = long = _NOTHING
        for _ in range(_MAX_MEMBERS):
            cancel.check()
            header = self._read(at, BLOCK)
            # Some programs leave out the two blocks of zeros at the end.
            if header == ZEROS or (not header and at and pax is long is _NOTHING):
                return
            self._check(header, at)
            kind = header[156:157]
            size = 0 if kind in _WITHOUT_CONTENT else self._size(header, at)
            if pax.size is not None and kind not in _EXTENSIONS | _WITHOUT_CONTENT:
                size = pax.size
            start = at + BLOCK
            if start + size > self._length:
                raise self._damaged(f"cut off: the member at byte {at} has {size} bytes")
            end = start + size
            if kind == b"x":
                # Of several the last counts alone, as in Go; GNU's long names come before what it says.
                pax = self._pax(start, size, at)
            elif kind in (b"L", b"K"):
                name = text(self._extended(start, size, at))
                long = replace(long, path=name) if kind == b"L" else replace(long, linkpath=name)
            elif kind != b"g":
                said = replace(pax, path=pax.path or long.path, linkpath=pax.linkpath or long.linkpath)
                end = self._add(header, kind, said, start, size)
                pax = long = _NOTHING
            at = (end + BLOCK - 1) // BLOCK * BLOCK
        raise ContentError(f"{self.label}: it has more than {_MAX_MEMBERS} members, more than any image archive has")

    def _add(self, header: bytes, kind: bytes, said: _Extension, start: int, size: int) -> int:
        """Notes a member; returns where its content ends."""
        raw = dict(said.sparse).get(SPARSE + b"name") or said.path or header_name(header)
        place = _inside(_text(raw))
        try:
            sparse = read_sparse(header, said.sparse, start, size, self._read) if kind in _FILES else None
        except (BadField, BadRecord) as error:
            raise self._damaged(f"damaged: the sparse member at byte {start - BLOCK}: {error}") from None
        found = sparse or Layout(size, (Piece(0, start, size),), start + size)
        if found.end > self._length:
            raise self._damaged(f"cut off: the member at byte {start - BLOCK} has {size} bytes")
        if place is None or raw.endswith(b"/"):
            # Directories are of no use here, and no lookup can ever reach a name outside.
            return found.end
        if place in self._members:
            self._twice.add(place)
        target = _text(said.linkpath or text(header[157:257]))
        self._members[place] = Member(_KINDS.get(kind, _OTHER), found.pieces, found.size, target)
        return found.end

    def _check(self, header: bytes, at: int) -> None:
        if len(header) < BLOCK:
            raise self._damaged("cut off in a header" if at else "not a tar archive: it is too short")
        if not checksum_fits(header):
            raise self._damaged(f"damaged at byte {at}" if at else "not a tar archive")

    def _size(self, header: bytes, at: int) -> int:
        try:
            size = number(header[124:136])
        except BadField:
            size = -1
        if size < 0:
            raise self._damaged(f"damaged: the member at byte {at} has no valid size")
        return size

    def _extended(self, start: int, size: int, at: int) -> bytes:
        """The content of a header that tells of the member behind it."""
        if size > _MAX_EXTENSION:
            raise self._damaged(f"damaged: the extended header at byte {at} has {size} bytes")
        return self._read(start, size)

    def _pax(self, start: int, size: int, at: int) -> _Extension:
        found = _Extension()
        try:
            # Some writers end it with zeros.
            for key, value in records(self._extended(start, size, at).rstrip(b"\0")):
                if key == b"path":
                    found.path = value
                elif key == b"linkpath":
                    found.linkpath = value
                elif key == b"size":
                    found.size = decimal(value, "its size")
                elif key.startswith(SPARSE):
                    found.sparse.append((key, value))
        except BadRecord:
            raise self._damaged(f"damaged: the extended header at byte {at} is malformed") from None
        return found

    def _read(self, at: int, size: int) -> bytes:
        try:
            return os.pread(self._handle, size, at)
        except OSError as error:
            raise unreadable(error, self.label) from error

    def _damaged(self, why: str) -> ContentError:
        return ContentError(f"{self.label}: the archive is {why}")


def read_sparse(
    header: bytes, said: Sequence[tuple[bytes, bytes]], start: int, stored: int, read: Callable[[int, int], bytes]
) -> Layout | None:
    """The layout of a sparse member whose content begins at ``start`` with ``stored`` bytes, None for an ordinary one.

    ``said`` are the records of its PAX header that tell of sparse files; ``read(at, size)`` reads the archive. Raises
    BadRecord, BadField.

    GNU tar has written sparse files in four ways (its manual, "Storing Sparse Files"): a type of its own with the map
    in the header and blocks behind it, and three versions in PAX headers, the last of which (bsdtar's as well) has the
    map before the content. Docker, podman and bsdtar read all of them.
    """
    at = start

    def block() -> bytes | None:
        nonlocal at
        found = read(at, BLOCK)
        at += BLOCK
        return found if len(found) == BLOCK else None

    if header[156:157] == b"S":
        pairs, size = gnu_map(header, block), number(header[483:495])
        # Its blocks are no part of the size in the header.
        stored += at - start
    elif not said:
        return None
    else:
        sparse = _checked(said)
        pairs = leading_map(block, min(stored, _MAX_MAP))[0] if sparse.pairs is None else sparse.pairs
        size = -1 if sparse.realsize is None else sparse.realsize
    if not 0 <= size <= _MAX_SIZE:
        raise BadRecord("its sparse size is missing or cannot be right")
    end = start + stored
    pieces = []
    for offset, length in checked_map(pairs, size, end - at):
        pieces.append(Piece(offset, at, length))
        at += length
    return Layout(size, tuple(pieces), end)


def _checked(said: Sequence[tuple[bytes, bytes]]) -> Sparse:
    sparse = Sparse()
    for key, value in said:
        sparse.add(key, value)
    if sparse.pairs is None and sparse.version != [1, 0]:
        # A file that is one hole needs no map.
        sparse.pairs = []
    sparse.check()
    return sparse


def _inside(name: str) -> str | None:
    """A name without empty and ``.`` parts, ``..`` resolved; None when it leads out of the archive or to its top."""
    parts: list[str] = []
    if name.startswith("/"):
        return None
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or None


def _text(name: bytes) -> str:
    # As JSON has it, whatever the locale; what is not UTF-8 is kept, but never looked up.
    return name.decode("utf-8", "surrogateescape")
