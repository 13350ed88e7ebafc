"""The tree that the layers of an image make together, from their records and notes alone.

What each layer holds is worked out as its proof does (``layer/proof/model``); here they are only stacked.
Whiteouts hide what lower layers hold, never their siblings in their own layer (image-spec, layer.md).
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.layer.attributes import parse_override_stat
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import expected_tree
from msb_pull.layer.rules import OPAQUE, hidden_by, is_whiteout
from msb_pull.layer.tar.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from msb_pull.layer.proof.node import Node

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "fifo",
}


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One name of the merged tree. ``mtime_ns`` counts from 1970; ``layer`` is a digest.

    ``target`` is what a symlink names, or which path of its layer a hard link shares its file with; the size of a hard
    link is 0. A directory that no layer describes has owner 0 and mode 755.
    """

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes | None
    device: tuple[int, int] | None
    layer: str


class _Place:
    """A name; ``children`` is None for everything but directories."""

    __slots__ = ("children", "file")

    def __init__(self, file: ListedFile | None, children: dict[bytes, _Place] | None) -> None:
        self.file = file
        self.children = children


def merge(layers: Sequence[tuple[str, Path, Path]]) -> list[ListedFile]:
    """The files of all layers, each given as (digest, record, notes) and bottom first, in the order of their paths.

    Raises ContentError for a record or notes that are damaged.
    """
    root = _Place(None, {})
    for digest, record, notes in layers:
        nodes = expected_tree(Record(record), Notes.load(notes))
        first: dict[int, bytes] = {}
        for path, node in nodes.items():
            first.setdefault(id(node), path)
            if is_whiteout(path.rpartition(b"/")[2]):
                _hide(root, path)
        # In the order of their paths parents come first, even where a later entry replaced one.
        for path, node in sorted(nodes.items(), key=lambda item: item[0]):
            if path and not is_whiteout(path.rpartition(b"/")[2]):
                _put(root, _listed(path, node, first[id(node)], digest))
    return list(_walk(root))


def _hide(root: _Place, path: bytes) -> None:
    """Removes what a whiteout names, or all that an opaque directory holds."""
    opaque = path.rpartition(b"/")[2] == OPAQUE
    parent, _, name = path.rpartition(b"/") if opaque else hidden_by(path).rpartition(b"/")
    place: _Place | None = root
    for part in parent.split(b"/") if parent else ():
        place = (place.children or {}).get(part) if place is not None else None
    if place is None or place.children is None:
        return
    if opaque:
        place.children.clear()
    else:
        place.children.pop(name, None)


def _put(root: _Place, file: ListedFile) -> None:
    *parents, name = file.path.split(b"/")
    inside = root
    for part in parents:
        # A layer names every directory before what is in it, or has one made.
        assert inside.children is not None
        inside = inside.children[part]
    assert inside.children is not None
    before = inside.children.get(name)
    if file.kind != "directory":
        inside.children[name] = _Place(file, None)
    elif before is None or before.children is None:
        inside.children[name] = _Place(file, {})
    else:
        before.file = file


def _listed(path: bytes, node: Node, first: bytes, digest: str) -> ListedFile:
    uid, gid, mode = parse_override_stat(node.override)
    kind = _KINDS[stat.S_IFMT(mode or 0)]
    target = node.link if kind == "symlink" else None
    if first != path:
        kind, target = "hardlink", first
    return ListedFile(
        path=path,
        kind=kind,
        mode=(mode or 0) & 0o7777,
        uid=uid or 0,
        gid=gid or 0,
        size=0 if kind == "hardlink" else node.size,
        mtime_ns=node.mtime_ns or 0,
        target=target,
        device=node.device,
        layer=digest,
    )


def _walk(root: _Place) -> Iterator[ListedFile]:
    """Every file below, parents before children; without recursion, since an image chooses the depth."""
    pending = [root]
    while pending:
        place = pending.pop()
        if place.file is not None:
            yield place.file
        if place.children:
            pending += [place.children[name] for name in sorted(place.children, reverse=True)]
