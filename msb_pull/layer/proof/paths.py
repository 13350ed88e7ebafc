"""What stands at each path of a layer, kept in order as the tree writer keeps its directory."""

from __future__ import annotations

import stat

from msb_pull.layer.node import Node

# Importing typing takes longer than verifying a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Paths:
    """Nodes by their paths, ``b""`` the top. Only :meth:`put` sees to it that parents are directories.

    Whoever changes ``nodes`` itself may exchange one node for another, and no more.
    """

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {b"": Node.of_nothing()}
        # What lies in each directory. Most layers never ask, and keeping it would cost each of their entries.
        self._inside: dict[bytes, dict[bytes, None]] | None = None

    @property
    def implied(self) -> list[bytes]:
        """The directories without an entry."""
        return [path for path, node in self.nodes.items() if node.implied]

    def inside(self, path: bytes) -> Iterable[bytes]:
        """The paths of what lies in a directory."""
        if self._inside is None:
            self._inside = {}
            for known in self.nodes:
                if known:
                    self._inside.setdefault(known.rpartition(b"/")[0], {})[known] = None
        return self._inside.get(path, ())

    def below(self, path: bytes) -> list[bytes]:
        """All paths below a directory, parents first."""
        found = list(self.inside(path))
        for below in found:
            found += self.inside(below)
        return found

    def has_parent(self, path: bytes) -> bool:
        """Whether there is a directory that ``path`` would lie in."""
        parent = self.nodes.get(path.rpartition(b"/")[0])
        return parent is not None and parent.kind == stat.S_IFDIR

    def put(self, path: bytes, node: Node) -> None:
        """What stood there goes, and what stands in the way of its parents."""
        nodes = self.nodes
        parent = nodes.get(path.rpartition(b"/")[0])
        if parent is None or parent.kind != stat.S_IFDIR:
            self.make_parents(path)
        if path in nodes:
            self.drop(path)
        self.set(path, node)

    def set(self, path: bytes, node: Node) -> None:
        """Puts a node where its parent is known to be a directory, and where nothing lies below."""
        self.nodes[path] = node
        if self._inside is not None:
            self._inside.setdefault(path.rpartition(b"/")[0], {})[path] = None

    def drop(self, path: bytes) -> None:
        """Takes away what stands at a path, if anything does, with all below."""
        node = self.nodes.get(path)
        if node is None:
            return
        if node.kind == stat.S_IFDIR:
            for below in self.below(path):
                del self.nodes[below]
                self._forget(below)
        del self.nodes[path]
        self._forget(path)

    def make_parents(self, path: bytes) -> None:
        """Makes directories of all that ``path`` lies in."""
        parent = path.rpartition(b"/")[0]
        missing = []
        while (node := self.nodes.get(parent)) is None or node.kind != stat.S_IFDIR:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for parent in reversed(missing):
            made = Node.of_nothing()
            # A file that stood there has replaced what lies below, so nothing there says how this directory looks.
            made.implied = parent not in self.nodes
            self.drop(parent)
            self.set(parent, made)

    def _forget(self, path: bytes) -> None:
        if self._inside is not None:
            self._inside.pop(path, None)
            self._inside.get(path.rpartition(b"/")[0], {}).pop(path, None)
