"""What a layer takes from those below it, worked out anew from its record: the notes are not believed.

The layer itself is looked at as its record says that it was before anything moved, those below as they lie on the disk,
where they are proven themselves.
"""

from __future__ import annotations

import stat

from msb_pull.layer.derive import Wishes, derive_on
from msb_pull.layer.lowers import Inside, MergedView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from msb_pull.layer.derive import Fact
    from msb_pull.layer.expected import Node, Tree


class _Facts:
    """As much of a stat result as the view asks for."""

    __slots__ = ("st_mode",)

    def __init__(self, kind: int) -> None:
        self.st_mode = kind


class _Place(Inside):
    """A directory of the layer as its record says."""

    def __init__(self, nodes: Mapping[bytes, Node], path: bytes) -> None:
        self._nodes = nodes
        self._path = path

    def look(self, name: bytes) -> _Facts | None:
        """Its top is what stands at no name."""
        node = self._nodes.get(self._below(name) if name else self._path)
        return None if node is None else _Facts(node.kind)

    def enter(self, path: bytes) -> _Place | None:
        node = self._nodes.get(path)
        return _Place(self._nodes, path) if node is not None and node.kind == stat.S_IFDIR else None

    def read_link(self, name: bytes) -> bytes:
        return self._nodes[self._below(name)].link

    def _below(self, name: bytes) -> bytes:
        return self._path + b"/" + name if self._path else name


def derived_anew(tree: Tree, lowers: Sequence[str]) -> list[Fact]:
    """The facts that settling has derived for a layer whose tree has no moves applied yet, on these directories.

    ``sha256`` is missing in them. Raises ContentError, OSError.
    """
    implied = tree.implied
    wishes = Wishes(implied, [(path, target) for _, path, target in tree.missing], hidden=None, unclaimed=implied)
    with MergedView(lowers, own=_Place(tree.nodes, b""), implied=wishes.unclaimed) as view:
        return derive_on(view, wishes, lowers, frozenset(tree.converted))
