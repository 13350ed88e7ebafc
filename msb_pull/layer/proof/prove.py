"""The verification of one layer, from its record and its directory alone."""

from __future__ import annotations

import os

from msb_pull.ground.below import open_directory
from msb_pull.ground.errors import ContentError, raise_if_exhausted
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.hashing import Hashing
from msb_pull.layer.notes import Notes, prefixes_moved
from msb_pull.layer.proof.compare import Check, knows_attributes
from msb_pull.layer.proof.contents import Contents
from msb_pull.layer.proof.model import Tree, content_paths
from msb_pull.layer.proof.standing import derived_again, without_means
from msb_pull.layer.proof.task import DERIVED, Damage, Findings, ProofTask
from msb_pull.layer.settle.lowers import MergedView
from msb_pull.layer.tar.record import Record
from msb_pull.layer.tree.holes import same_content
from msb_pull.layer.tree.kept import Kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msb_pull.layer.proof.task import Progress


def prove(task: ProofTask, progress: Progress) -> Findings:
    """Compares, and unless ``task.quick`` makes the layer's stream again.

    Never raises for what is wrong with the layer. Raises PermissionError when the layer or its record is closed to this
    user, LocalError for a limit of the system, and whatever ``progress`` raises.
    """
    found = Findings()
    try:
        _compare(task, found, progress)
    except ContentError as error:
        found.damages.append(Damage(b"", "record", "an intact record", str(error)))
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
            yield Damage(b"", DERIVED, "facts derived from the layers below", str(error))
            continue
        # Damage of the layer below shows here as well; the caller, who sees all layers, decides which one is to blame.
        if again != noted:
            odd = next((fact for fact in again if fact not in noted), {})
            path = os.fsencode(odd.get("path", ""))
            yield Damage(path, DERIVED, "facts derived from the layers below", "different notes")
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
    done = 0

    def take(piece: memoryview) -> None:
        nonlocal done
        hashing.update(piece)
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
    with Hashing(hashlib.new(algorithm), beside=task.beside) as hashing:
        for damage in contents.damages(take):
            # Another size means another content; another time, mode or owner does not mean that.
            if damage.kind != "content" or damage.path not in resized:
                found.damages.append(damage)
        found.diff_id = f"{algorithm}:{hashing.hexdigest()}"
    explained = any(damage.kind in _OF_CONTENT for damage in found.damages)
    if found.diff_id != task.diff_id and not explained and not check.denied:
        found.damages.append(Damage(b"", "stream", task.diff_id, found.diff_id))


# Damage that explains why the stream is another one.
_OF_CONTENT = frozenset(("content", "size", "type", "missing", "overwritten", "unreadable"))
