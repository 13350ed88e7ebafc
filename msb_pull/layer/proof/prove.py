"""The verification of one layer, from its record and its directory alone."""

from __future__ import annotations

import os

from msb_pull.ground.below import open_directory
from msb_pull.ground.errors import ContentError, raise_if_exhausted
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.notes import Notes, prefixes_moved
from msb_pull.layer.proof.compare import DERIVED, Check, Damage, knows_attributes
from msb_pull.layer.proof.contents import Contents
from msb_pull.layer.proof.model import Tree, content_paths
from msb_pull.layer.proof.standing import derived_again, without_means
from msb_pull.layer.settle.lowers import MergedView
from msb_pull.layer.tar.record import Record
from msb_pull.layer.tree.holes import same_content
from msb_pull.layer.tree.kept import Kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    # Of how many entries (True) or bytes (False) how many are done.
    Progress = Callable[[int, int, bool], None]


class ProofTask:
    """What to verify: paths of a layer's directory, record and notes, and of what is kept of overwritten payloads, the
    signed diff_id, whether to leave file contents unread (``quick``), and the directories of the layers below, nearest
    first, in each image. Its ``vars`` are plain values that make it again."""

    def __init__(
        self,
        directory: str,
        record: str,
        notes: str,
        diff_id: str,
        quick: bool,
        kept: str = "",
        stacks: Sequence[Sequence[str]] = (),
    ) -> None:
        self.directory = directory
        self.record = record
        self.notes = notes
        self.kept = kept
        self.stacks = stacks
        self.diff_id = diff_id
        self.quick = quick


class Findings:
    """What was found. ``denied`` are the paths that this user may not look into; ``diff_id`` is that of the stream made
    again, "" when none was made. ``writable_by_others`` counts the paths that an earlier version left so."""

    __slots__ = ("bytes", "damages", "denied", "diff_id", "entries", "writable_by_others")

    def __init__(self) -> None:
        self.damages: list[Damage] = []
        self.denied: list[bytes] = []
        self.diff_id = ""
        self.bytes = 0
        self.entries = 0
        self.writable_by_others = 0

    def as_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "damages": [[os.fsdecode(x.path), x.kind, x.expected, x.found] for x in self.damages],
            "denied": [os.fsdecode(path) for path in self.denied],
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Findings:
        """The inverse of :meth:`as_plain`; raises ValueError, KeyError or TypeError for what it does not make."""
        found = cls()
        found.damages = [Damage(os.fsencode(path), *map(str, words)) for path, *words in values["damages"]]
        found.denied = [os.fsencode(path) for path in values["denied"]]
        found.bytes, found.entries = int(values["bytes"]), int(values["entries"])
        found.diff_id = str(values["diff_id"])
        found.writable_by_others = int(values["writable_by_others"])
        return found


def prove(task: ProofTask, progress: Progress) -> Findings:
    """Compares, and unless ``task.quick`` makes the layer's stream again.

    Never raises for what is wrong with the layer. Raises PermissionError when the layer or its record is closed to this
    user, LocalError for a limit of the system, and whatever ``progress`` raises.
    """
    found = Findings()
    try:
        _compare(task, found, progress)
    except ContentError as error:
        found.damages.append(Damage(b"", "record", "a sound record", str(error)))
    except PermissionError:
        raise
    except OSError as error:
        raise_if_exhausted(error)
        name = os.fsencode(error.filename) if isinstance(error.filename, str) else error.filename or b""
        what = f"{os.fsdecode(name)}: {error.strerror}" if name else str(error.strerror)
        found.damages.append(Damage(b"", "unreadable", "a readable layer", what))
    found.damages.sort(key=lambda damage: damage.path)
    return found


def _compare(task: ProofTask, found: Findings, progress: Progress) -> None:
    notes = Notes.load(task.notes)
    found.bytes, found.entries = notes.content_bytes, notes.entries
    total = notes.entries if task.quick else notes.tar_bytes
    # Reading a large record takes a while in which nothing else is shown.
    progress(0, total, task.quick)
    record = Record(task.record)
    tree = Tree.of(record, notes)
    found.damages += _wrong_notes(task, notes, record, tree)
    found.damages += _settled(task, notes, tree)
    nodes = tree.nodes
    root = open_directory(task.directory)
    kept = Kept(task.kept)
    try:

        def seen(count: int) -> None:
            # Progress of a full verification is in bytes, which this has not begun to read.
            progress(min(count, total) if task.quick else 0, total, task.quick)

        check = Check(root, nodes, attributes=knows_attributes(root), progress=seen)
        found.damages += check.tree(content_follows=not task.quick)
        if task.quick:
            lost = len(record.payloads) - len(content_paths(nodes))
            # Without reading them only their number can be checked.
            if len(kept.left) < lost:
                found.damages.append(Damage(b"", "overwritten", f"{lost} files", f"{len(kept.left)} files"))
            progress(total, total, True)
        else:
            _make_again(task, check, record, kept, found, lambda done: progress(done, total, False))
            # Where a hard link became a copy, that holds the payload of an original which may be kept as well.
            if not notes.copied:
                found.damages += (Damage(b"", "overwritten", "nothing", "a file") for _ in kept.superfluous())
        found.writable_by_others = check.writable_by_others
        # A mode that was changed may be what closes a file to its owner.
        damaged = {damage.path for damage in found.damages}
        found.denied = [path for path in dict.fromkeys(check.denied) if path not in damaged]
    finally:
        kept.close()
        os.close(root)


def _settled(task: ProofTask, notes: Notes, tree: Tree) -> Iterator[Damage]:
    """Puts a tree on the layers below, and yields where the notes do not say what these give."""
    noted = [without_means(fact) for fact in notes.derived]
    for lowers in task.stacks:
        try:
            again = derived_again(tree, lowers)
        except (ContentError, OSError) as error:
            raise_if_exhausted(error)
            yield Damage(b"", DERIVED, "what the layers below give", str(error))
            continue
        # Damage of the layer below shows here as well; the caller, who sees all layers, decides which one is to blame.
        if again != noted:
            odd = next((fact for fact in again if fact not in noted), {})
            path = os.fsencode(odd.get("path", ""))
            yield Damage(path, DERIVED, "what the layers below give", "other notes")
    tree.settle(notes.derived)


def _is_original(task: ProofTask, real: bytes, handle: int) -> bool:
    """Whether an open file has the content of what lies at a path of the layers below, whichever those are."""
    for lowers in task.stacks:
        try:
            with MergedView(lowers) as view:
                shown = view.look(real)
                original = None if shown is None else view.open(shown)
        except OSError as error:
            raise_if_exhausted(error)
            return False
        if original is None:
            return False
        try:
            if not same_content(handle, original):
                return False
        finally:
            os.close(original)
    return True


def _wrong_notes(task: ProofTask, notes: Notes, record: Record, tree: Tree) -> Iterator[Damage]:
    """Where the notes do not say what has been worked out from the record, whose entries have been read."""
    if notes.placed != tree.placed:
        index = min(notes.placed.items() ^ tree.placed.items())[0]
        place, noted = (visible_bytes(x.get(index, b"where it says")) for x in (tree.placed, notes.placed))
        yield Damage(tree.placed.get(index, b""), "notes", place, noted)
    if notes.moved != prefixes_moved(notes.derived):
        yield Damage(b"", "notes", "what was derived from the layers below", "other moves")
    for what, right, said in (
        ("diff_id", task.diff_id, notes.diff_id),
        ("entries", record.count, notes.entries),
        ("content bytes", record.content, notes.content_bytes),
        ("bytes of the stream", record.length, notes.tar_bytes),
    ):
        if right != said:
            yield Damage(b"", "notes", f"{what}: {right}", visible_bytes(str(said).encode()))


def _make_again(
    task: ProofTask, check: Check, record: Record, kept: Kept, found: Findings, progress: Callable[[int], None]
) -> None:
    """Reads all files, hashes the stream they make with the record, and says what is wrong with which file."""
    import hashlib

    algorithm = task.diff_id.partition(":")[0]
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
    contents = Contents(
        check,
        record,
        kept,
        leave=lambda path: path in gone or path.startswith(closed),
        is_original=lambda real, handle: _is_original(task, real, handle),
    )
    for damage in contents.damages(take):
        # Another size means another content; another time, mode or owner does not mean that.
        if damage.kind != "content" or damage.path not in resized:
            found.damages.append(damage)
    found.diff_id = f"{algorithm}:{hasher.hexdigest()}"
    explained = any(damage.kind in _OF_CONTENT for damage in found.damages)
    if found.diff_id != task.diff_id and not explained and not check.denied:
        found.damages.append(Damage(b"", "stream", task.diff_id, found.diff_id))


# Damage that explains why the stream is another one.
_OF_CONTENT = frozenset(("content", "size", "type", "missing", "overwritten", "unreadable"))
