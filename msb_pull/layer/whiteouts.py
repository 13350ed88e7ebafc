"""Whiteouts of one layer. They stay plain empty files for the reader to apply, and spare what came with them.

By the image-spec a whiteout hides only what lower layers hold. A reader of an overlay cannot know that of a name that
stands beside its own whiteout, so the pair is resolved at the end of the layer, as umoci does for overlayfs.
"""

from __future__ import annotations

import os
import stat

from msb_pull.layer.folders import WHITEOUT
from msb_pull.remove import listed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.layer.folders import Folder, Folders

OPAQUE = b".wh..wh..opq"
# AUFS kept books in the top directory of a layer; old images still carry them.
AUFS = b".wh..wh."
_NAMELESS = frozenset((WHITEOUT, WHITEOUT + b".", WHITEOUT + b".."))


def check_whiteout(name: bytes) -> None:
    """Raises ValueError for a whiteout of nothing, of ``.`` or of ``..``."""
    if name in _NAMELESS:
        raise ValueError("a whiteout of nothing")


def is_leftover(path: bytes) -> bool:
    """Whether a path belongs to what AUFS left at the top."""
    top = path.partition(b"/")[0]
    return top.startswith(AUFS) and top != OPAQUE


def resolve_pairs(folders: Folders, marked: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Resolves the whiteouts of names that stand beside them, in the directories ``marked``.

    Beside a file the whiteout goes; beside a directory it becomes that directory's opaque marker. Returns where each
    of them was and is (``b""``: nowhere).
    """
    turned: list[tuple[bytes, bytes]] = []
    for path in marked:
        folder = folders.find(path)
        if folder is None:
            continue
        for name, _ in sorted(listed(folder.descriptor)):
            if name.startswith(WHITEOUT) and name != OPAQUE:
                turned += _resolve_pair(folders, folder.path, name)
    return turned


def _resolve_pair(folders: Folders, parent: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
    folder = folders.reach(parent)
    hidden = name[len(WHITEOUT) :]
    try:
        facts = os.stat(hidden, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return []
    if stat.S_ISDIR(facts.st_mode):
        return [(folder.below(name), _make_opaque(folders, folder, name, hidden))]
    os.unlink(name, dir_fd=folder.descriptor)
    return [(folder.below(name), b"")]


def _make_opaque(folders: Folders, folder: Folder, name: bytes, hidden: bytes) -> bytes:
    held = os.dup(folder.descriptor)
    try:
        inside = folders.reach(folder.below(hidden))
        try:
            os.stat(OPAQUE, dir_fd=inside.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, OPAQUE, src_dir_fd=held, dst_dir_fd=inside.descriptor)
        else:
            os.unlink(name, dir_fd=held)
        return inside.below(OPAQUE)
    finally:
        os.close(held)
