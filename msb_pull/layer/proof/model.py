"""What a layer's directory must look like, worked out from its record and notes without looking at the directory."""

from __future__ import annotations

import os
import stat

from msb_pull.ground.errors import ContentError
from msb_pull.layer.notes import hollow_after, moves_of
from msb_pull.layer.proof.node import Node, NodeIndex
from msb_pull.layer.rules import (
    AUFS,
    OPAQUE,
    PLINKS,
    WHITEOUT,
    clean,
    hidden_by,
    hollow,
    is_leftover,
    is_plink,
    is_whiteout,
    join,
    make_waiting,
    resolve,
    turned,
)
from msb_pull.layer.tar.entry import DIR, LNK, REG, SYM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from msb_pull.layer.notes import Notes
    from msb_pull.layer.tar.entry import Entry
    from msb_pull.layer.tar.record import Record


_MENDED = "`msb-pull verify --repair` repairs it"


def expected_tree(record: Record, notes: Notes) -> dict[bytes, Node]:
    """Every path below the layer's directory (``b""`` is its top) with what must stand there.

    The record is read. The rules are those of the tree writer (:mod:`msb_pull.layer.rules`): the last entry of a name
    wins, directories keep what they hold, a whiteout yields to what came in the same layer. Raises ContentError.
    """
    tree = Tree.of(record, notes)
    tree.settle(notes.derived)
    return tree.nodes


def content_paths(nodes: Mapping[bytes, Node]) -> dict[int, bytes]:
    """Where the payload of each entry lies, by the entry's index."""
    return {node.index: path for path, node in nodes.items() if node.index >= 0}


class Tree:
    """The tree of one layer: :meth:`add` its entries, :meth:`finish`, and :meth:`settle` it on those below.

    After :meth:`finish`, ``placed`` says where entries lie that lie elsewhere than they say, ``missing`` which hard
    links (entry index, path, target) lead to lower layers, ``converted`` in which directories a whiteout of theirs is
    now the opaque marker, and ``hollow`` which directories only whiteouts imply. Of the notes only what the file system
    did not take is believed.
    """

    def __init__(self, record: Path | str, notes: Notes) -> None:
        self._record = record
        self.paths = NodeIndex()
        self.nodes = self.paths.nodes
        self.placed: dict[int, bytes] = {}
        self.missing: list[tuple[int, bytes, bytes]] = []
        self.converted: set[bytes] = set()
        self.hollow: list[bytes] = []
        self._copied = frozenset(notes.copied)
        self._unkept = frozenset(notes.unkept)
        self._said: dict[tuple[int, int, int, int], tuple[int, bytes]] = {}
        self._links: dict[bytes, tuple[bytes, int]] = {}
        self._plinks: dict[bytes, int] = {}
        self._whiteouts: list[bytes] = []

    @classmethod
    def of(cls, record: Record, notes: Notes) -> Tree:
        """The finished tree of a record, which is read; raises ContentError for one of which no layer was made."""
        tree = cls(record.path, notes)
        try:
            for entry in record.entries():
                tree.add(entry)
            tree.finish()
        except ValueError as error:
            raise ContentError(f"{record.path}: the record is damaged", cause=str(error), hint=_MENDED) from None
        return tree

    def add(self, entry: Entry) -> None:
        """The next entry of the record; raises ValueError for one of which no layer could have been made."""
        said = clean(entry.name)
        # Hardly any name asks for a closer look.
        if said.startswith(AUFS) and is_leftover(said):
            # A file there lies where it says until the layer is complete, for hard links to lead to it.
            if is_plink(said) and entry.type == REG:
                self.paths.put(said, self._node(entry))
                self._plinks[said] = entry.index
            return
        above = self.nodes.get(said.rpartition(b"/")[0])
        # Nearly all name their directory before.
        plain = above is not None and above.kind == stat.S_IFDIR
        path = said if plain else self._real(said)
        if WHITEOUT in path and is_whiteout(path.rpartition(b"/")[2]):
            self._whiteout(path, said, entry)
            return
        if path != said:
            self.placed[entry.index] = path
        if entry.type == DIR:
            self._directory(path, entry)
        elif entry.type == LNK:
            self._hard_link(path, entry)
        else:
            node = Node.of_symlink(entry) if entry.type == SYM else self._node(entry)
            if plain and path not in self.nodes:
                self.paths.set(path, node)
            else:
                self.paths.put(path, node)

    def finish(self) -> None:
        """The end of the layer: links whose targets came later, and whiteouts beside what they name."""
        # Links first: whether a whiteout turns depends on what stands beside it in the end.
        waiting = [link for link in self._links.items() if link[0] not in self.nodes and self.paths.has_parent(link[0])]
        left = make_waiting(
            waiting,
            lambda link: link[0],
            lambda link: self._real(link[1][0]),
            lambda link: self._link(link[0], self._real(link[1][0]), link[1][1]),
        )
        self.missing = sorted((index, path, target) for path, (target, index) in left)
        marked = {path.rpartition(b"/")[0] for path in self._whiteouts if path in self.nodes}
        if any(path and self.nodes[path].implied for path in marked):
            self.hollow = self._drop_hollow(marked, frozenset(self.paths.implied), [x[1] for x in self.missing])
        for path in self._whiteouts:
            if self._turn(path):
                self.converted.add(hidden_by(path))
        # The links that lead into it have been made.
        self.paths.drop(PLINKS)

    def settle(self, facts: Sequence[dict[str, Any]]) -> None:
        """Applies what was derived from the layers below; raises ContentError for what cannot have been."""
        try:
            self._apply(facts)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"{self._record}: the record or the notes of a layer are damaged"
            raise ContentError(what, cause=repr(error), hint=_MENDED) from None

    # Entries

    def _real(self, path: bytes) -> bytes:
        """Where a path is: symlinks of this layer on the way to its last name are followed."""
        parent, _, name = path.rpartition(b"/")
        there = self.nodes.get(parent)
        if there is not None and there.kind == stat.S_IFDIR:
            return path
        return join(resolve(parent, self._look), name)

    def _look(self, path: bytes) -> bytes | bool | None:
        node = self.nodes.get(path)
        if node is None:
            return None
        return node.link if node.kind == stat.S_IFLNK else node.kind == stat.S_IFDIR

    def _node(self, entry: Entry) -> Node:
        node = Node.of_entry(entry, self._said)
        if self._unkept:
            node.partial = entry.index in self._unkept
        return node

    def _directory(self, path: bytes, entry: Entry) -> None:
        node = self._node(entry)
        there = self.nodes.get(path)
        if there is None or there.kind != stat.S_IFDIR:
            self.paths.put(path, node)
        else:
            self.nodes[path] = node

    def _hard_link(self, path: bytes, entry: Entry) -> None:
        said = clean(entry.linkname)
        target = self._real(said)
        if said in self._plinks:
            self.placed.setdefault(self._plinks[said], path)
        if (target != path or target not in self.nodes) and not self._link(path, target, entry.index):
            # A later entry of that name wins over a link that waits for its target, an earlier one does not.
            self.paths.make_parents(path)
            self.paths.drop(path)
            self._links.pop(path, None)
            self._links[path] = said, entry.index

    def _link(self, path: bytes, target: bytes, index: int) -> bool:
        node = self.nodes.get(target)
        # What stands below the link's own name goes when the link comes.
        if node is None or node.kind == stat.S_IFDIR or target.startswith(path + b"/"):
            return False
        if self.nodes.get(path) is not node:
            self.paths.put(path, node.duplicate() if index in self._copied else node)
        return True

    def _whiteout(self, path: bytes, said: bytes, entry: Entry) -> None:
        above = path.rpartition(b"/")[0]
        while (node := self.nodes.get(above)) is None:
            above = above.rpartition(b"/")[0]
        if node.kind != stat.S_IFDIR:
            # A file hides nothing below it.
            return
        if path != said:
            self.placed[entry.index] = path
        if is_leftover(path):
            return
        self.paths.put(path, Node.of_whiteout(entry))
        self._whiteouts.append(path)

    # The end of the layer

    def _drop_hollow(self, marked: Iterable[bytes], implied: Collection[bytes], links: Iterable[bytes]) -> list[bytes]:
        """Drops directories that only whiteouts imply and the layer hides; returns the others. ``links`` will come."""
        needed = {path.rpartition(b"/")[0] for path in links}
        gone, left = hollow(marked, implied, needed, self._names, self.nodes.__contains__)
        for path in gone:
            self.paths.drop(path)
        return left

    def _names(self, path: bytes) -> list[bytes]:
        node = self.nodes.get(path)
        if node is None or node.kind != stat.S_IFDIR:
            # No longer a directory, so no whiteout implies it.
            return [b"."]
        return [inside.rpartition(b"/")[2] for inside in self.paths.inside(path)]

    def _turn(self, path: bytes) -> bool:
        """Whether a whiteout has become the opaque marker of a directory beside it."""
        marker, node = self.nodes.get(path), self.nodes.get(hidden_by(path))
        if path.endswith(b"/" + OPAQUE) or path == OPAQUE or marker is None or node is None:
            return False
        self.paths.drop(path)
        place = turned(path, directory=node.kind == stat.S_IFDIR)
        if place and place not in self.nodes:
            self.paths.set(place, marker)
        return bool(place)

    # Settling

    def _apply(self, facts: Sequence[dict[str, Any]]) -> None:
        # Looked up before anything moves and set after all that does: an entry counts for more than what is derived.
        claims = {}
        for fact in facts:
            if fact["kind"] == "claimed":
                claims[os.fsencode(fact["path"])] = node = self.nodes[os.fsencode(fact["from"])]
                if node.kind != stat.S_IFDIR:
                    raise ValueError("something other than a directory stands for one")
            elif fact["kind"] == "dropped":
                self.paths.drop(os.fsencode(fact["path"]))
        if moves := moves_of(facts):
            self._move(moves)
            left = hollow_after(facts, self.hollow)
            self._drop_hollow(left, left, {os.fsencode(x["path"]) for x in facts if x["kind"] == "link"})
        for path, node in claims.items():
            self.paths.set(path, node)
        self._derived(facts)
        self._originals()

    def _move(self, moves: dict[bytes, bytes]) -> None:
        """Moves the contents of directories into others; what stands there already stays, as settling has it."""
        # All go aside first, the deepest first: then none lies where another one goes.
        aside: dict[bytes, list[tuple[bytes, Node]]] = {}
        for old in sorted(moves, key=lambda path: -path.count(b"/")):
            aside[old] = [(path[len(old) + 1 :], self.nodes[path]) for path in self.paths.below(old)]
            self.paths.drop(old)
        for old, new in moves.items():
            self.paths.make_parents(new + b"/")
            for below, node in aside[old]:
                place = join(new, below)
                if place not in self.nodes and self.paths.has_parent(place) and not is_leftover(place):
                    self.paths.set(place, node)

    def _derived(self, facts: Sequence[dict[str, Any]]) -> None:
        copies: dict[str, Node] = {}
        for fact in facts:
            path = os.fsencode(fact["path"])
            if fact["kind"] == "directory":
                node = self.nodes.get(path)
                if node is not None and node.kind == stat.S_IFDIR:
                    node.dress(fact)
            elif fact["kind"] == "link" and path not in self.nodes:
                copy = None if fact.get("copied") else copies.get(fact["real"])
                if copy is None:
                    copies[fact["real"]] = copy = Node.of_fact(fact)
                self.paths.put(path, copy)
        if any(fact["kind"] in ("moved", "link") for fact in facts):
            for path in [x for x in self.nodes if WHITEOUT in x and is_whiteout(x.rpartition(b"/")[2])]:
                self._turn(path)

    def _originals(self) -> None:
        """Where the original of a copy is gone, the copy holds the payload."""
        if not self._copied:
            return
        held = {node.index for node in self.nodes.values()}
        for node in self.nodes.values():
            if node.copy >= 0 and node.copy not in held:
                held.add(node.copy)
                node.index, node.copy = node.copy, -1
