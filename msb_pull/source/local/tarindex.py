"""Where the members of an archive of images lie in its file: headers are read, contents only when they are asked for.

Not Python's tarfile, which ends silently at a damaged header. Nothing is ever written under a name from the archive:
names are only looked up. Formats: ustar, GNU (long names, base-256 sizes) and PAX (path, linkpath, size), with sparse
files in all of these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.errors import Cancelled, ContentError
from msb_pull.source.local.files import Extent, Piece, unreadable
from msb_pull.source.local.sparse import PREFIX, BadMap, Sparse, number_field, octal, read_sparse

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

_BLOCK = 512
# An archive of a hundred images has a few thousand members; long names and PAX headers a few hundred bytes.
_MAX_MEMBERS = 200_000
_MAX_EXTENSION = 1 << 20
_MAX_LINKS = 20
_MAX_SHOWN = 200
_REGULAR, _HARD, _SYMBOLIC, _OTHER = "regular", "hard link", "symlink", "other"
_KINDS = {b"0": _REGULAR, b"\0": _REGULAR, b"7": _REGULAR, b"S": _REGULAR, b"1": _HARD, b"2": _SYMBOLIC}
_FILES = frozenset(kind for kind, meaning in _KINDS.items() if meaning == _REGULAR)
# Links, devices, directories and FIFOs have no content, whatever their size field says.
_WITHOUT_CONTENT = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_EXTENSIONS = frozenset({b"L", b"K", b"x", b"g"})
_ZEROS = bytes(_BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """One member: what it is, where its content lies, and where it points if it is a link."""

    kind: str
    pieces: tuple[Piece, ...]
    size: int
    target: str


class TarFiles:
    """The members of an uncompressed archive in an open file, which this closes. See :class:`Files`."""

    def __init__(self, handle: int, label: str, cancel: threading.Event) -> None:
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
        """A member whose name ends so, for hints."""
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

    def _scan(self, cancel: threading.Event) -> None:
        at = 0
        pax: dict[str, bytes] = {}
        long: dict[str, bytes] = {}
        for _ in range(_MAX_MEMBERS):
            if cancel.is_set():
                raise Cancelled("interrupted")
            header = self._read(at, _BLOCK)
            # Some programs leave out the two blocks of zeros at the end.
            if header == _ZEROS or (not header and at and not (pax or long)):
                return
            self._check(header, at)
            kind = header[156:157]
            pax_size = pax.get("size") if kind not in _EXTENSIONS else None
            size = self._number(pax_size, header, at) if kind not in _WITHOUT_CONTENT else 0
            start = at + _BLOCK
            if start + size > self._length:
                raise self._damaged(f"cut off: the member at byte {at} has {size} bytes")
            end = start + size
            if kind == b"x":
                # Of several the last counts alone, as in Go; GNU's long names come before what it says.
                pax = self._extension(kind, start, size, at)
            elif kind in (b"L", b"K"):
                long |= self._extension(kind, start, size, at)
            elif kind != b"g":
                end = self._add(header, kind, pax | long, start, size)
                pax, long = {}, {}
            at = (end + _BLOCK - 1) // _BLOCK * _BLOCK
        raise ContentError(f"{self.label}: it has more than {_MAX_MEMBERS} members, more than any image archive has")

    def _add(self, header: bytes, kind: bytes, extension: dict[str, bytes], start: int, size: int) -> int:
        """Notes a member; returns where its content ends."""
        raw = extension.get("sparse.name") or extension.get("path") or _name(header)
        place = _inside(_text(raw))
        try:
            sparse = read_sparse(header, extension, start, size, self._read) if kind in _FILES else None
        except BadMap as error:
            raise self._damaged(f"damaged: the sparse member at byte {start - _BLOCK} {error}") from None
        found = sparse or Sparse(size, (Piece(0, start, size),), start + size)
        if found.end > self._length:
            raise self._damaged(f"cut off: the member at byte {start - _BLOCK} has {size} bytes")
        if place is None or raw.endswith(b"/"):
            # Directories are of no use here, and no lookup can ever reach a name outside.
            return found.end
        if place in self._members:
            self._twice.add(place)
        target = _text(extension.get("linkpath") or header[157:257].partition(b"\0")[0])
        self._members[place] = Member(_KINDS.get(kind, _OTHER), found.pieces, found.size, target)
        return found.end

    def _check(self, header: bytes, at: int) -> None:
        if len(header) < _BLOCK:
            raise self._damaged("cut off in a header" if at else "not a tar archive: it is too short")
        stored = header[148:156].strip(b" \0")
        # Some old programs summed signed bytes.
        unsigned = sum(header) - sum(header[148:156]) + 8 * 32
        signed = unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if octal(stored) not in (unsigned, signed):
            raise self._damaged(f"damaged at byte {at}" if at else "not a tar archive")

    def _number(self, pax: bytes | None, header: bytes, at: int) -> int:
        field = header[124:136]
        if pax is not None:
            value = int(pax) if pax.isdigit() and len(pax) < 20 else None
        else:
            value = number_field(field)
        if value is None:
            raise self._damaged(f"damaged: the member at byte {at} has no valid size")
        return value

    def _extension(self, kind: bytes, start: int, size: int, at: int) -> dict[str, bytes]:
        """What a long name or a PAX header says of the member that follows."""
        if size > _MAX_EXTENSION:
            raise self._damaged(f"damaged: the extended header at byte {at} has {size} bytes")
        data = self._read(start, size)
        if kind == b"L":
            return {"path": data.partition(b"\0")[0]}
        if kind == b"K":
            return {"linkpath": data.partition(b"\0")[0]}
        found: dict[str, bytes] = {}
        pairs: list[bytes] = []
        try:
            for key, value in pax_records(data):
                if key in (b"path", b"linkpath", b"size"):
                    found[key.decode()] = value
                elif key in (PREFIX + b"offset", PREFIX + b"numbytes"):
                    # The first version of sparse files repeats these two, which the second joins by commas.
                    pairs.append(value)
                elif key.startswith(PREFIX):
                    found[f"sparse.{_text(key.removeprefix(PREFIX))}"] = value
        except ValueError:
            raise self._damaged(f"damaged: the extended header at byte {at} is malformed") from None
        return found | ({"sparse.map": b",".join(pairs)} if pairs else {})

    def _read(self, at: int, size: int) -> bytes:
        try:
            return os.pread(self._handle, size, at)
        except OSError as error:
            raise unreadable(error, self.label) from error

    def _damaged(self, why: str) -> ContentError:
        return ContentError(f"{self.label}: the archive is {why}")


def pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records ``LENGTH KEY=VALUE\\n`` of a PAX header, which zeros may follow; raises ValueError.

    No more is copied of ``data`` than a record at a time, since there may be a hundred thousand of them.
    """
    at, stop = 0, len(data.rstrip(b"\0"))
    while at < stop:
        space = data.find(b" ", at, at + 10)
        digits = data[at:space] if space > at else b""
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1 : end].partition(b"=")
        if not space + 2 < end <= stop or not equals or not value.endswith(b"\n"):
            raise ValueError("a record is malformed")
        yield key, value[:-1]
        at = end


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
    # As JSON has it, whatever the locale; what is not UTF-8 is kept, and looked up by nobody.
    return name.decode("utf-8", "surrogateescape")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
