"""The record of a layer: its tar stream without the file payloads, from which the stream can be made again.

``records/<digest>.tar`` is gzip (level 1) over: each header, each padding, each trailing block as it came, and after
the header of an entry with a payload the CRC-32 of that payload, four bytes, big endian. The notes beside it say what
the stream does not: where entries were placed that did not go where they said, what was derived from lower layers.
"""

from __future__ import annotations

import os

from isal import isal_zlib

from msb_pull.ground.errors import ContentError
from msb_pull.layer.limits import Limits

# The child that writes records needs neither typing nor json, and importing them takes long.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from msb_pull.layer.settle.settle import Settled
    from msb_pull.layer.tar.entry import Entry
    from msb_pull.layer.unpack.unpack import UnpackReport

    # Where a payload's checksum begins in the record, and of its entry: index, checksum, size in the stream, segments
    # of a sparse file. A tuple, since a large layer has tens of thousands.
    Payload = tuple[int, int, int, int, tuple[tuple[int, int], ...] | None]

_BATCH = 1024
_LARGE = 1 << 13
_VERSION = 1
_KEYS = {"version", "diff_id", "tar_bytes", "entries", "content_bytes", "chain", "placed", "moved", "derived"}
_KEYS |= {"copied", "unkept", "warnings"}
_UNLIMITED = Limits(max_entries=1 << 62, max_bytes=1 << 62)


class RecordWriter:
    """Writes a record into an open file descriptor, in batches."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parts: list[bytes] = []
        self._deflate = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)

    def write(self, data: bytes) -> None:
        """Appends bytes of the stripped stream."""
        parts = self._parts
        parts.append(data)
        # What follows the end of an archive comes in pieces as large as they were read.
        if len(parts) >= _BATCH or len(data) >= _LARGE:
            self._flush()

    def close(self) -> None:
        """Completes the gzip stream; the descriptor stays open."""
        self._flush()
        _write_all(self._descriptor, self._deflate.flush())

    def _flush(self) -> None:
        _write_all(self._descriptor, self._deflate.compress(b"".join(self._parts)))
        self._parts.clear()


class RecordStream:
    """Reads the stripped stream of a record; raises ContentError when it is damaged."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._file = open(path, "rb", opener=_opened)  # noqa: SIM115 - closed by close
        self._inflate = isal_zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        try:
            while not self._inflate.eof:
                data = self._inflate.unconsumed_tail or self._file.read(1 << 16)
                if not data:
                    break
                found = self._inflate.decompress(data, size)
                if found:
                    return found
        except isal_zlib.error as error:  # type: ignore[misc]
            raise ContentError(f"{self._path}: the record is damaged", cause=str(error)) from None
        if not self._inflate.eof:
            raise ContentError(f"{self._path}: the record is truncated")
        if self._inflate.unused_data or self._file.read(1):
            raise ContentError(f"{self._path}: something follows the record")
        return b""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills ``buffer`` as far as one read goes; 0 at the end."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Record:
    """One record, to be read once: :meth:`entries`, and then ``payloads`` says where each payload belongs.

    Then ``sizes`` are those of sparse files by their entries, ``content`` is that of all files together, ``count`` that
    of the entries, and ``length`` that of the stream.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.payloads: list[Payload] = []
        self.sizes: dict[int, int] = {}
        self.content = 0
        self.count = 0
        self.length = 0

    def entries(self) -> Iterator[Entry]:
        """The entries in order, ``Entry.crc`` set where there is a payload; raises ContentError."""
        # tar needs this module for its type only, and the child that writes a layer never reads a record.
        from msb_pull.layer.tar.tar import TarReader

        stream = RecordStream(self.path)
        payloads = self.payloads
        try:
            reader = TarReader(stream, limits=_UNLIMITED, stripped=True)
            while (entry := reader.next()) is not None:
                if entry.crc is not None:
                    place = reader.passed - _CHECKSUM
                    payloads.append((place, entry.index, entry.crc, entry.stored, entry.sparse))
                    if entry.sparse is not None:
                        self.sizes[entry.index] = entry.size
                yield entry
            # Damage may stand behind the last entry as well.
            reader.drain()
            self.content, self.count = reader.content_bytes, reader.entries
            self.length = reader.bytes_read + sum(payload[3] - _CHECKSUM for payload in payloads)
        finally:
            stream.close()


# The size of a checksum in the place of a payload.
_CHECKSUM = 4


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a record in order, ``Entry.crc`` set where there is a payload; raises ContentError."""
    return Record(path).entries()


class Notes:
    """What is known of a published layer beside its record. Paths are bytes; the file holds them as escaped text."""

    def __init__(
        self,
        *,
        diff_id: str,
        tar_bytes: int,
        entries: int,
        content_bytes: int,
        chain: str,
        placed: dict[int, bytes] | None = None,
        moved: list[tuple[bytes, bytes]] | None = None,
        derived: list[dict[str, Any]] | None = None,
        copied: list[int] | None = None,
        unkept: list[int] | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        self.diff_id = diff_id
        self.tar_bytes = tar_bytes
        self.entries = entries
        self.content_bytes = content_bytes
        self.chain = chain
        self.placed = placed or {}
        self.moved = moved or []
        self.derived = derived or []
        self.copied = copied or []
        self.unkept = unkept or []
        self.warnings = warnings or []

    @classmethod
    def of(cls, report: UnpackReport, settled: Settled, *, diff_id: str, tar_bytes: int, chain: str) -> Notes:
        """The notes of a layer that has just been unpacked and settled on the layers below."""
        return cls(
            diff_id=diff_id,
            tar_bytes=tar_bytes,
            entries=report.entries,
            content_bytes=report.content_bytes,
            chain=chain,
            placed=report.placed,
            moved=settled.moved,
            derived=settled.derived,
            copied=report.copied,
            unkept=report.unkept,
            warnings=report.warnings[:100],
        )

    def save(self, path: Path) -> None:
        """Writes the notes as JSON; raises OSError."""
        import json

        document = {
            "version": _VERSION,
            "diff_id": self.diff_id,
            "tar_bytes": self.tar_bytes,
            "entries": self.entries,
            "content_bytes": self.content_bytes,
            "chain": self.chain,
            "placed": {str(index): os.fsdecode(place) for index, place in self.placed.items()},
            "moved": [[os.fsdecode(old), os.fsdecode(new)] for old, new in self.moved],
            "derived": self.derived,
            "copied": self.copied,
            "unkept": self.unkept,
            "warnings": self.warnings,
        }
        try:
            path.write_text(json.dumps(document) + "\n", encoding="ascii")
        except OSError as error:
            # What fails to be written into an open file does not say which.
            error.filename = os.fspath(path)
            raise

    @classmethod
    def load(cls, path: Path | str) -> Notes:
        """Reads notes back; raises ContentError when the file is not what :meth:`save` writes."""
        import json

        from msb_pull.layer.settle.facts import check_facts

        try:
            with open(path, "rb", opener=_opened) as file:
                text = file.read()
            document = json.loads(text)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            if json.dumps(document).encode("ascii") + b"\n" != text or not document.keys() <= _KEYS:
                raise ValueError("they were altered since they were written")
            return cls(
                diff_id=_typed(document["diff_id"], str),
                tar_bytes=_typed(document["tar_bytes"], int),
                entries=_typed(document["entries"], int),
                content_bytes=_typed(document["content_bytes"], int),
                chain=_typed(document["chain"], str),
                placed={int(index): os.fsencode(place) for index, place in document["placed"].items()},
                moved=[(os.fsencode(old), os.fsencode(new)) for old, new in document["moved"]],
                derived=check_facts(document["derived"]),
                copied=[_typed(index, int) for index in document.get("copied", [])],
                unkept=[_typed(index, int) for index in document.get("unkept", [])],
                warnings=_typed(document["warnings"], list),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ContentError(
                f"{path}: the notes of a layer are damaged",
                cause=repr(error),
                hint="`msb-pull verify --repair` repairs it",
            ) from None


def _opened(path: str, flags: int) -> int:
    """Neither through a symlink, nor waiting for whoever may write to a FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}")
    return value


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
