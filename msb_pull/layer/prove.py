"""The verification of one layer, from its record and its directory alone."""

from __future__ import annotations

import os

from msb_pull.errors import ContentError
from msb_pull.layer.check import Check, Damage, knows_attributes
from msb_pull.layer.expected import tree_of
from msb_pull.layer.kept import Kept
from msb_pull.layer.limits import printable
from msb_pull.layer.record import Notes, Record

# Importing typing takes longer than verifying a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    # Of how many entries (True) or bytes (False) how many are done.
    Progress = Callable[[int, int, bool], None]


class LayerTask:
    """What to verify: paths of a layer's directory, record and notes, and of what is kept of overwritten payloads, the
    signed diff_id, and whether to read files."""

    __slots__ = ("diff_id", "directory", "kept", "notes", "quick", "record")

    def __init__(self, directory: str, record: str, notes: str, diff_id: str, quick: bool, kept: str = "") -> None:
        self.directory = directory
        self.record = record
        self.notes = notes
        self.kept = kept
        self.diff_id = diff_id
        self.quick = quick


class Findings:
    """What was found. ``denied`` are the paths that this user may not look into; ``diff_id`` is that of the stream made
    again, "" when none was made."""

    __slots__ = ("bytes", "damages", "denied", "diff_id", "entries")

    def __init__(self) -> None:
        self.damages: list[Damage] = []
        self.denied: list[bytes] = []
        self.diff_id = ""
        self.bytes = 0
        self.entries = 0

    def as_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "damages": [[os.fsdecode(x.path), x.kind, x.expected, x.found] for x in self.damages],
            "denied": [os.fsdecode(path) for path in self.denied],
            "diff_id": self.diff_id,
            "bytes": self.bytes,
            "entries": self.entries,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Findings:
        """The inverse of :meth:`as_plain`; raises ValueError, KeyError or TypeError for what it does not make."""
        found = cls()
        found.damages = [Damage(os.fsencode(path), *map(str, words)) for path, *words in values["damages"]]
        found.denied = [os.fsencode(path) for path in values["denied"]]
        found.bytes, found.entries = int(values["bytes"]), int(values["entries"])
        found.diff_id = str(values["diff_id"])
        return found


def prove(task: LayerTask, progress: Progress) -> Findings:
    """Compares, and unless ``task.quick`` makes the layer's stream again.

    Never raises for what is wrong with the layer. Raises PermissionError when the layer or its record is closed to this
    user, and whatever ``progress`` raises.
    """
    found = Findings()
    try:
        _compare(task, found, progress)
    except ContentError as error:
        found.damages.append(Damage(b"", "record", "a sound record", str(error)))
    except PermissionError:
        raise
    except OSError as error:
        name = os.fsencode(error.filename) if isinstance(error.filename, str) else error.filename or b""
        what = f"{os.fsdecode(name)}: {error.strerror}" if name else str(error.strerror)
        found.damages.append(Damage(b"", "unreadable", "a readable layer", what))
    found.damages.sort(key=lambda damage: damage.path)
    return found


def _compare(task: LayerTask, found: Findings, progress: Progress) -> None:
    notes = Notes.load(task.notes)
    found.bytes, found.entries = notes.content_bytes, notes.entries
    total = notes.entries if task.quick else notes.tar_bytes
    # Reading a large record takes a while in which nothing else is shown.
    progress(0, total, task.quick)
    record = Record(task.record)
    nodes, lost = tree_of(record.entries(), notes)
    found.damages += _wrong_notes(task, notes, record)
    root = os.open(task.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    kept = Kept(task.kept)
    try:

        def seen(count: int) -> None:
            # Progress of a full verification is in bytes, which this has not begun to read.
            progress(min(count, total) if task.quick else 0, total, task.quick)

        check = Check(root, nodes, attributes=knows_attributes(root), progress=seen)
        found.damages += check.tree(content_follows=not task.quick)
        if task.quick:
            if len(kept.left) < lost:
                found.damages.append(Damage(b"", "overwritten", f"{lost} files", f"{len(kept.left)} files"))
            progress(total, total, True)
        else:
            _make_again(check, record, task.diff_id, kept, found, lambda done: progress(done, total, False))
            if not notes.copied:
                found.damages += (Damage(b"", "overwritten", "nothing", "a file") for _ in kept.superfluous())
        # A mode that was changed may be what closes a file to its owner.
        damaged = {damage.path for damage in found.damages}
        found.denied = [path for path in dict.fromkeys(check.denied) if path not in damaged]
    finally:
        kept.close()
        os.close(root)


def _wrong_notes(task: LayerTask, notes: Notes, record: Record) -> Iterator[Damage]:
    """Where the notes do not say what has been worked out from the record, whose entries have been read."""
    for what, right, noted in (
        ("diff_id", task.diff_id, notes.diff_id),
        ("entries", record.count, notes.entries),
        ("content bytes", record.content, notes.content_bytes),
        ("bytes of the stream", record.length, notes.tar_bytes),
    ):
        if right != noted:
            yield Damage(b"", "notes", f"{what}: {right}", printable(str(noted).encode()))


def _make_again(
    check: Check, record: Record, diff_id: str, kept: Kept, found: Findings, progress: Callable[[int], None]
) -> None:
    """Reads all files, hashes the stream they make with the record, and says what is wrong with which file."""
    import hashlib

    algorithm = diff_id.partition(":")[0]
    hasher = hashlib.new(algorithm)
    done = 0

    def take(piece: memoryview) -> None:
        nonlocal done
        hasher.update(piece)
        done += len(piece)
        progress(done)

    resized = {damage.path for damage in found.damages if damage.kind == "size"}
    gone = {damage.path for damage in found.damages if damage.kind in ("type", "missing")}
    closed = tuple(path + b"/" for path in check.denied)
    for damage in check.content(record, kept, lambda path: path in gone or path.startswith(closed), take):
        # Another size means another content; another time, mode or owner says nothing of it.
        if damage.kind != "content" or damage.path not in resized:
            found.damages.append(damage)
    found.diff_id = f"{algorithm}:{hasher.hexdigest()}"
    explained = any(damage.kind in _OF_CONTENT for damage in found.damages)
    if found.diff_id != diff_id and not explained and not check.denied:
        found.damages.append(Damage(b"", "stream", diff_id, found.diff_id))


# What makes another stream, so that nothing need be said of that.
_OF_CONTENT = frozenset(("content", "size", "type", "missing", "overwritten", "unreadable"))
