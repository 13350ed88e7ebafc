"""The tree that the layers of an image make together, from their records alone.

Whiteouts hide what lower layers hold, never what stands beside them in their own layer (image-spec, layer.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.layer import record
from msb_pull.layer.tar import BLK, CHR, DIR, FIFO, LNK, REG, SYM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from msb_pull.layer.entry import Entry

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_KINDS = {REG: "file", LNK: "hardlink", SYM: "symlink", CHR: "char", BLK: "block", DIR: "directory", FIFO: "fifo"}


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One name of the merged tree. ``mtime_ns`` counts from 1970; ``target`` is what a link names; ``layer`` a digest.

    A directory that no layer describes has owner 0 and mode 755.
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


class _Node:
    """A name; ``children`` is None for everything but directories."""

    __slots__ = ("children", "file")

    def __init__(self, file: ListedFile | None, children: dict[bytes, _Node] | None) -> None:
        self.file = file
        self.children = children


def merge(layers: Sequence[tuple[str, Path, Path]]) -> list[ListedFile]:
    """The files of all layers, each given as (digest, record, notes) and bottom first, in the order of their paths.

    Raises ContentError for a record or notes that are damaged.
    """
    root = _Node(None, {})
    for digest, record_path, notes_path in layers:
        notes = record.Notes.load(notes_path)
        found = [(notes.path_of(entry), entry) for entry in record.entries(record_path)]
        for path, _ in found:
            _hide(root, path)
        for path, entry in found:
            if path and not path.rpartition(b"/")[2].startswith(_WHITEOUT):
                _place(root, _listed(path, entry, digest), digest)
    return list(_walk(root))


def _hide(root: _Node, path: bytes) -> None:
    """Takes away what a whiteout names; every other path changes nothing."""
    parent, _, name = path.rpartition(b"/")
    if not name.startswith(_WHITEOUT):
        return
    node = _find(root, parent)
    if node is None or node.children is None:
        return
    if name == _OPAQUE:
        node.children.clear()
    else:
        node.children.pop(name.removeprefix(_WHITEOUT), None)


def _find(root: _Node, path: bytes) -> _Node | None:
    node: _Node | None = root
    for part in path.split(b"/") if path else ():
        if node is None or node.children is None:
            return None
        node = node.children.get(part)
    return node


def _place(root: _Node, file: ListedFile, digest: str) -> None:
    node, done = root, b""
    *parents, name = file.path.split(b"/")
    for part in parents:
        done = done + b"/" + part if done else part
        assert node.children is not None
        below = node.children.get(part)
        if below is None or below.children is None:
            below = node.children[part] = _Node(
                ListedFile(done, "directory", 0o755, 0, 0, 0, 0, None, None, digest), {}
            )
        node = below
    assert node.children is not None
    before = node.children.get(name)
    if file.kind != "directory":
        node.children[name] = _Node(file, None)
    elif before is None or before.children is None:
        node.children[name] = _Node(file, {})
    else:
        before.file = file


def _listed(path: bytes, entry: Entry, digest: str) -> ListedFile:
    return ListedFile(
        path=path,
        kind=_KINDS.get(entry.type, "file"),
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size if entry.type == REG else 0,
        mtime_ns=entry.mtime_ns,
        target=entry.linkname if entry.type in (LNK, SYM) else None,
        device=(entry.devmajor, entry.devminor) if entry.type in (CHR, BLK) else None,
        layer=digest,
    )


def _walk(root: _Node) -> Iterator[ListedFile]:
    """Every file below, parents before children; without recursion, since an image chooses the depth."""
    pending = [root]
    while pending:
        node = pending.pop()
        if node.file is not None:
            yield node.file
        if node.children:
            pending += [node.children[name] for name in sorted(node.children, reverse=True)]
