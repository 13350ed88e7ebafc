"""The tree that the layers of an image make together, from their records and notes alone.

What each layer holds is worked out as its proof does (``layer/proof/model``); here they are only stacked.
Whiteouts hide what lower layers hold, never their siblings in their own layer (image-spec, layer.md).
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.attributes import parse_override_stat
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import expected_tree
from msb_pull.layer.proof.node import Node
from msb_pull.layer.rules import OPAQUE, WHITEOUT, hidden_by, is_whiteout
from msb_pull.layer.tar.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

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


class Name:
    """One name of the merged tree: what stands there, which of its layers says so (counted from the bottom), and the
    first path there of the same file. ``children`` is None for everything but directories."""

    __slots__ = ("children", "first", "layer", "node", "path")

    def __init__(self, path: bytes, node: Node, layer: int, first: bytes) -> None:
        self.path = path
        self.node = node
        self.layer = layer
        self.first = first
        self.children: dict[bytes, Name] | None = {} if node.kind == stat.S_IFDIR else None


def stack(layers: Iterable[Mapping[bytes, Node]]) -> Name:
    """Puts layers on each other, bottom first; returns the top directory.

    A hard link into a lower layer has the node that stands there, and a directory that a layer only implies is what was
    derived for it, or keeps that of the layer below. Raises ContentError where a link leads to nothing.
    """
    root = Name(b"", Node.of_nothing(), 0, b"")
    for number, nodes in enumerate(layers):
        first: dict[int, bytes] = {}
        originals: dict[int, Node] = {}
        hiding = []
        for path, node in nodes.items():
            first.setdefault(id(node), path)
            if node.origin is not None:
                originals[id(node)] = _original(root, path, node.origin)
            if WHITEOUT in path and is_whiteout(path.rpartition(b"/")[2]):
                hiding.append(path)
        # A link may lead to what its own layer hides.
        for path in hiding:
            _hide(root, path)
        # In the order of their paths parents come first, even where a later entry replaced one.
        hidden, inside = frozenset(hiding), root
        for path in sorted(nodes):
            if path not in hidden:
                node = nodes[path]
                parent, _, last = path.rpartition(b"/")
                if parent != inside.path:
                    # A layer names every directory before what is in it, or has one made.
                    found = look(root, parent)
                    assert found is not None
                    inside = found
                at = id(node)
                new = Name(path, originals.get(at, node) if originals else node, number, first[at])
                _put(root, inside, last, new)
    return root


def _original(root: Name, path: bytes, origin: bytes) -> Node:
    found = look(root, origin)
    if found is None or found.children is not None:
        raise ContentError(
            f'hard link "{visible_bytes(path)}": its target "{visible_bytes(origin)}" is in no layer',
            hint="`msb-pull verify --repair` repairs it",
        )
    return found.node


def look(root: Name, path: bytes) -> Name | None:
    """What stands at a path, no symlink followed."""
    name: Name | None = root
    for part in path.split(b"/") if path else ():
        name = (name.children or {}).get(part) if name is not None else None
    return name


def _hide(root: Name, path: bytes) -> None:
    """Removes what a whiteout names, or all that an opaque directory holds."""
    opaque = path.rpartition(b"/")[2] == OPAQUE
    parent, _, name = path.rpartition(b"/") if opaque else hidden_by(path).rpartition(b"/")
    place = look(root, parent)
    if place is None or place.children is None:
        return
    if opaque:
        place.children.clear()
    else:
        place.children.pop(name, None)


def _put(root: Name, inside: Name, last: bytes, new: Name) -> None:
    """Puts a name into a directory."""
    assert inside.children is not None
    if new.children is None:
        inside.children[last] = new
        return
    before = inside.children.get(last) if new.path else root
    if before is None or before.children is None:
        inside.children[last] = new
        return
    before.layer, before.first = new.layer, new.first
    # One that the layer only implies has no time until settling has derived what it is.
    if not new.node.implied or new.node.mtime_ns is not None:
        before.node = new.node


def walk(root: Name) -> Iterator[Name]:
    """Every name, parents before children; without recursion, since an image chooses the depth."""
    pending = [root]
    while pending:
        name = pending.pop()
        yield name
        if name.children:
            pending += [name.children[part] for part in sorted(name.children, reverse=True)]


def merge(layers: Sequence[tuple[str, Path, Path]]) -> list[ListedFile]:
    """The files of all layers, each given as (digest, record, notes) and bottom first, in the order of their paths.

    Raises ContentError for a record or notes that are damaged.
    """
    root = stack(expected_tree(Record(record), Notes.load(notes)) for _, record, notes in layers)
    return [_listed(name, layers[name.layer][0]) for name in walk(root) if name.path]


def _listed(name: Name, digest: str) -> ListedFile:
    node = name.node
    uid, gid, mode = parse_override_stat(node.override)
    kind = _KINDS[stat.S_IFMT(mode or 0)]
    target = node.link if kind == "symlink" else None
    if name.first != name.path:
        kind, target = "hardlink", name.first
    return ListedFile(
        path=name.path,
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
