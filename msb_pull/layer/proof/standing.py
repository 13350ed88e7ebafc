"""What a layer takes from those below it, worked out again from its record: the notes are not trusted.

The layer itself is looked at as its record says that it was before anything moved, those below as they lie on the disk,
where they are proven themselves.
"""

from __future__ import annotations

import stat

from msb_pull.layer.proof.model import Tree
from msb_pull.layer.rules import join
from msb_pull.layer.settle.derive import Wishes, derive_on
from msb_pull.layer.settle.directories import Inside
from msb_pull.layer.settle.lowers import MergedView
from msb_pull.layer.tar.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from msb_pull.layer.notes import Notes
    from msb_pull.layer.proof.node import NodeIndex
    from msb_pull.layer.settle.derive import Fact


class _Facts:
    """As much of a stat result as the view asks for."""

    __slots__ = ("st_mode",)

    def __init__(self, kind: int) -> None:
        self.st_mode = kind


class _Place(Inside):
    """A directory of the layer as its record says."""

    def __init__(self, paths: NodeIndex, path: bytes) -> None:
        self._paths = paths
        self._nodes = paths.nodes
        self._path = path

    def look(self, name: bytes) -> _Facts | None:
        """Its top is what stands at no name."""
        node = self._nodes.get(self._below(name) if name else self._path)
        return None if node is None else _Facts(node.kind)

    def enter(self, path: bytes) -> _Place | None:
        node = self._nodes.get(path)
        return _Place(self._paths, path) if node is not None and node.kind == stat.S_IFDIR else None

    def read_link(self, name: bytes) -> bytes:
        return self._nodes[self._below(name)].link

    def directories(self) -> Iterator[bytes]:
        for path in self._paths.inside(self._path):
            if self._nodes[path].kind == stat.S_IFDIR:
                yield path.rpartition(b"/")[2]

    def _below(self, name: bytes) -> bytes:
        return join(self._path, name)


def derived_again(tree: Tree, lowers: Sequence[Path | str], *, hashed: bool = False) -> list[Fact]:
    """The facts that settling has derived for a layer whose tree is not settled yet, on these directories.

    ``sha256`` is missing in them unless they are ``hashed``. Raises ContentError, OSError.
    """
    links = [(path, target) for _, path, target in tree.missing]
    wishes = Wishes(tree.paths.implied, links, hollow=tree.hollow, converted=tree.converted)
    with MergedView(lowers, own=_Place(tree.paths, b""), implied=wishes.implied) as view:
        return derive_on(view, wishes, lowers, hashed=hashed)


def without_means(fact: Any) -> Any:
    """A fact less what the disk alone can say: the hash of a copy, and that no hard link could be had."""
    return {key: fact[key] for key in fact if key not in ("sha256", "copied")} if isinstance(fact, dict) else fact


def belongs_on(record: Path, notes: Notes, lowers: Sequence[Path | str]) -> bool:
    """Whether a layer that was settled elsewhere shows on these directories what it would if settled on them.

    If not, an image would show the metadata, or even the files, of another one. Raises ContentError when a hard link's
    target is in no layer, or the record is damaged; OSError.
    """
    again = derived_again(Tree.of(Record(record), notes), lowers, hashed=True)
    return again == [{key: fact[key] for key in fact if key != "copied"} for fact in notes.derived]
