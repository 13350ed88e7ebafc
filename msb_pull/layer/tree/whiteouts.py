"""Whiteouts of one layer on disk: plain empty files for the reader to apply, which spare entries of the same layer."""

from __future__ import annotations

import os
import stat

from msb_pull.ground.below import ABSENT_OR_TOO_LONG, look
from msb_pull.ground.remove import listed
from msb_pull.layer.rules import OPAQUE, hidden_by, hollow, is_whiteout, turned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from msb_pull.layer.tree.folders import Folder, Folders


def remove_hollow(
    folders: Folders, marked: Iterable[bytes], implied: Collection[bytes], needed: Collection[bytes]
) -> list[bytes]:
    """Removes the directories that only whiteouts imply and that a whiteout or an opaque one of the same layer hides.

    Returns the others that only whiteouts imply, parents first: whether they stay is for the layers below to say.
    ``marked`` are directories with whiteouts, ``implied`` those without an entry, ``needed`` those that something else
    will come into. Raises OSError.
    """

    def names(path: bytes) -> list[bytes]:
        folder = folders.find(path)
        # No longer a directory, so no whiteout implies it.
        return [b"."] if folder is None else [name for name, _ in listed(folder.descriptor)]

    def is_there(path: bytes) -> bool:
        parent, _, name = path.rpartition(b"/")
        folder = folders.find(parent)
        return folder is not None and _kind(folder.descriptor, name) is not None

    gone, left = hollow(marked, implied, needed, names, is_there)
    for path in gone:
        parent, _, name = path.rpartition(b"/")
        folders.remove(folders.reach(parent), name)
    return left


def resolve_pairs(folders: Folders, marked: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Resolves the whiteouts of names that stand beside them, in the directories ``marked``.

    Returns where each of them was and is (``b""``: nowhere).
    """
    found: list[tuple[bytes, bytes]] = []
    for path in marked:
        folder = folders.find(path)
        if folder is None:
            continue
        for name, _ in sorted(listed(folder.descriptor)):
            if is_whiteout(name) and name != OPAQUE:
                found += _resolve_pair(folders, path, name)
    return found


def _resolve_pair(folders: Folders, parent: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
    folder = folders.reach(parent)
    whiteout = folder.below(name)
    kind = _kind(folder.descriptor, hidden_by(name))
    if kind is None:
        return []
    place = turned(whiteout, directory=kind == stat.S_IFDIR)
    if place:
        _make_opaque(folders, folder, name, place.rpartition(b"/")[0])
    else:
        os.unlink(name, dir_fd=folder.descriptor)
    return [(whiteout, place)]


def _make_opaque(folders: Folders, folder: Folder, name: bytes, hidden: bytes) -> None:
    held = os.dup(folder.descriptor)
    try:
        inside = folders.reach(hidden)
        if _kind(inside.descriptor, OPAQUE) is None:
            os.rename(name, OPAQUE, src_dir_fd=held, dst_dir_fd=inside.descriptor)
        else:
            os.unlink(name, dir_fd=held)
    finally:
        os.close(held)


def _kind(directory: int, name: bytes) -> int | None:
    facts = look(name, directory, ABSENT_OR_TOO_LONG)
    return None if facts is None else stat.S_IFMT(facts.st_mode)
