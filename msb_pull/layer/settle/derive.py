"""What a layer takes from those below it, worked out without writing anything.

Facts are plain JSON values; names in them are decoded with surrogate escapes. Their kinds:

- ``directory``: ``path`` had no entry (or was made for something moved, ``made``), and gets ``override``, ``xattrs``
  (base64) and ``mtime_ns``; ``asked`` is the path before anything moved, ``hidden`` says that the layer itself hides
  what lies below
- ``dropped``: nothing but whiteouts implied the directory ``path``, and there is none below; this comes before moves
- ``moved``: ``asked`` had no entry, and ``path``, where it would go, is a symlink below, so its contents belong to
  ``to``
- ``merged``: ``asked`` had no entry, but moved to ``path``, which has one
- ``claimed``: ``path`` had no entry, but the directory that was at ``from``, which has one, moved to it
- ``link``: a hard link at ``path`` (``asked_path`` before the moves) to ``from``, found at ``real`` in a lower layer;
  with ``symlink``, or ``size``, ``sha256``, ``override``, ``xattrs``, and ``mtime_ns``; ``copied`` where it could not
  be linked to the first copy of the same file
"""

from __future__ import annotations

import os
import stat
from binascii import b2a_base64

from msb_pull.ground.errors import ContentError
from msb_pull.layer.attributes import (
    IMPLIED,
    OVERRIDE_STAT,
    override_stat,
    parse_override_stat,
    plain_override,
    user_attributes,
)
from msb_pull.layer.limits import MAX_NOTED, NOTE
from msb_pull.layer.rules import OPAQUE, Moves, join
from msb_pull.layer.settle.links import targets
from msb_pull.layer.settle.lowers import MergedView, Shown
from msb_pull.layer.tree.holes import sha256_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any

    Fact = dict[str, Any]

# libkrun reads no more of an override_stat; a longer one in a layer that others made would be lost anyway.
MAX_OVERRIDE = 32


class Wishes:
    """What a layer asks of those below: ``implied`` directories (without an entry), the ``hollow`` ones among them
    (which only whiteouts imply), and ``links`` (path, target).

    ``converted`` are directories whose own whiteout came along, so they take nothing from the layers below.
    """

    def __init__(
        self,
        implied: Iterable[bytes],
        links: Iterable[tuple[bytes, bytes]],
        *,
        hollow: Iterable[bytes],
        converted: Iterable[bytes],
    ) -> None:
        self.implied = frozenset(implied)
        self.links = list(links)
        self.hollow = frozenset(hollow)
        self.converted = frozenset(converted)


def derive(own: Path, wishes: Wishes, lowers: Sequence[Path]) -> list[Fact]:
    """The facts for the layer in the directory ``own`` on ``lowers`` (nearest first).

    Raises ContentError when a hard link's target is in no layer, OSError.
    """
    with MergedView(lowers, own=own, implied=wishes.implied) as view:
        return derive_on(view, wishes, lowers, hashed=True)


def derive_on(view: MergedView, wishes: Wishes, lowers: Sequence[Path | str], *, hashed: bool = False) -> list[Fact]:
    """The same for a view of the layer on ``lowers``; files are read only if they are to be ``hashed``."""
    work = _Derivation(view, wishes)
    work.directories()
    if wishes.links:
        # A whiteout of this layer does not count: a rename is recorded as a link to a name that it removes.
        with MergedView(lowers) as below:
            known: dict[bytes, Fact] = {}
            shown_at = targets(wishes.links, below, view, work.place_of)
            for (asked, target), shown in zip(wishes.links, shown_at, strict=True):
                if shown.path not in known:
                    # Many links may lead to one file, which is large.
                    known[shown.path] = _facts_of_file(below, shown, hashed=hashed)
                names = {"asked_path": asked, "path": work.place_of(asked), "from": target, "real": shown.path}
                decoded = {key: os.fsdecode(path) for key, path in names.items()}
                fact = known[shown.path]
                work.note(decoded["real"], fact.get("symlink", ""), *fact.get("xattrs", {}).values())
                work.facts.append({"kind": "link", **decoded, **fact})
    return work.facts


class _Derivation:
    def __init__(self, view: MergedView, wishes: Wishes) -> None:
        self.facts: list[Fact] = []
        self._moves = Moves()
        self._moved: list[bytes] = []
        self._view = view
        self._wishes = wishes
        self._known: set[bytes] = set()
        self._room = MAX_NOTED

    def note(self, *said: str) -> None:
        """Counts what a fact says that the layer did not have to say; raises ContentError when it is too much."""
        self._room -= sum(map(len, said)) + NOTE
        if self._room < 0:
            raise ContentError("too much of the layer depends on those below it")

    def place_of(self, path: bytes) -> bytes:
        """Where something of the layer goes."""
        place = self._moves.of(path)
        # A directory that receives a link holds more than whiteouts, so it was not dropped.
        assert place is not None
        return place

    def directories(self) -> None:
        # Parents first: where one has moved, its children are looked for at its new place.
        for asked in sorted(self._wishes.implied):
            path = self._moves.of(asked)
            if path is None:
                continue
            if asked in self._wishes.converted or self._view.own_hides(asked):
                if not self._dropped(asked, path, None):
                    self._add(path, None, asked=asked, hidden=True)
            elif self._claimed(path):
                self.facts.append({"kind": "merged", "path": os.fsdecode(path), "asked": os.fsdecode(asked)})
            else:
                self._directory(asked, path)
        # After the last move: any of them may put a marker, or a directory that has an entry, above what came before.
        self._hide()
        self._claims()

    def _directory(self, asked: bytes, path: bytes) -> None:
        shown = self._view.look(path)
        # The layer was made where this is a symlink (/lib to usr/lib, say), and its files were written through it.
        target = self._view.resolve(path) if shown is not None and shown.is_symlink else None
        if target is None or target == path:
            if not self._dropped(asked, path, shown):
                self._add(path, shown, asked=asked)
            return
        if self._dropped(asked, target, self._view.look(target)):
            return
        # In an overlay a directory at ``path`` would hide the symlink, and with it all that is reached through it.
        self._moves.move(asked, target)
        self._moved.append(asked)
        names = {"asked": os.fsdecode(asked), "path": os.fsdecode(path), "to": os.fsdecode(target)}
        self.note(*names.values())
        self.facts.append({"kind": "moved", **names})
        for parent in ancestry(target):
            if parent not in self._known and not self._claimed(parent) and parent not in self._wishes.implied:
                self._add(parent, self._view.look(parent), made=True)

    def _dropped(self, asked: bytes, path: bytes, shown: Shown | None) -> bool:
        """Whether a directory that only whiteouts imply goes, since ``path``, where it would be, shows none."""
        if asked not in self._wishes.hollow:
            return False
        # What only this layer shows there is the directory in question itself.
        if shown is not None and shown.is_directory and (shown.layer != -1 or path not in self._wishes.implied):
            return False
        self._moves.move(asked, None)
        self.facts.append({"kind": "dropped", "path": os.fsdecode(asked)})
        return True

    def _claimed(self, path: bytes) -> bool:
        """Whether the layer has an entry of its own for a directory."""
        return path not in self._wishes.implied and self._view.own_has(path)

    def _hide(self) -> None:
        """Below an opaque directory nothing of the lower layers shows, also where its marker has moved to."""
        # The view finds markers where the layer's archive put them; a directory that moved took its own elsewhere.
        opaque = {self._moves.of(asked) for asked in self._moved if self._view.own_hides(join(asked, OPAQUE))}
        for fact in self.facts if opaque else ():
            if fact["kind"] == "directory":
                parent = os.fsencode(fact["path"]).rpartition(b"/")[0]
                # The marker says nothing of its own directory, which looks as the layer below has it: hence the parent.
                if fact["path"] and not opaque.isdisjoint((b"", *ancestry(parent))):
                    fact.update(_facts_of_directory(self._view, None))

    def _claims(self) -> None:
        """What an entry says counts for more than what is derived, also where its directory has moved to."""
        dressed = {fact["path"] for fact in self.facts if fact["kind"] == "directory"}
        claims: dict[str, str] = {}
        seen: set[bytes] = set()
        for asked in self._moved:
            if asked in seen:
                continue
            for own in self._view.own_directories(asked):
                seen.add(own)
                place = None if own in self._wishes.implied else self._moves.of(own)
                if place is not None and (path := os.fsdecode(place)) in dressed:
                    claims[path] = os.fsdecode(own)
        self.facts = [fact for fact in self.facts if fact["kind"] != "directory" or fact["path"] not in claims]
        self.facts += [{"kind": "claimed", "path": path, "from": own} for path, own in sorted(claims.items())]

    def _add(self, path: bytes, shown: Shown | None, *, asked: bytes | None = None, **more: bool) -> None:
        # Several moves may lead below one parent.
        if path in self._known and asked is None:
            return
        self._known.add(path)
        fact: Fact = {"kind": "directory", "path": os.fsdecode(path), **more}
        # A short symlink may lead to a thousand directories.
        self.note(fact["path"])
        if asked is not None:
            fact["asked"] = os.fsdecode(asked)
        fact.update(_facts_of_directory(self._view, shown))
        self.facts.append(fact)


def _facts_of_directory(view: MergedView, shown: Shown | None) -> Fact:
    if shown is None or not shown.is_directory or shown.layer == -1:
        return {"override": IMPLIED.decode("ascii"), "mtime_ns": 0, "xattrs": {}}
    source = view.open(shown)
    try:
        override, xattrs = attributes_of(source)
        return {"override": override, "mtime_ns": os.fstat(source).st_mtime_ns, "xattrs": xattrs}
    finally:
        os.close(source)


def attributes_of(source: int) -> tuple[str, dict[str, str]]:
    """The override_stat of an open file and its other ``user.`` attributes; what it lacks is taken from the disk."""
    facts = os.fstat(source)
    override = override_stat(stat.S_IFMT(facts.st_mode), facts.st_mode & 0o777, 0, 0)
    others = {}
    for name, value in user_attributes(source):
        if name != OVERRIDE_STAT:
            others[os.fsdecode(name)] = b2a_base64(value, newline=False).decode("ascii")
        elif len(value) <= MAX_OVERRIDE and _is_complete(value):
            # What a view for podman adds says nothing new.
            override = plain_override(value)
    return override.decode("ascii"), others


def _is_complete(value: bytes) -> bool:
    try:
        return None not in parse_override_stat(value)
    except ValueError:
        return False


def _facts_of_file(view: MergedView, shown: Shown, *, hashed: bool) -> Fact:
    fact: Fact = {"mtime_ns": shown.facts.st_mtime_ns}
    if shown.is_symlink:
        fact["symlink"] = os.fsdecode(view.read_link(shown))
        return fact
    source = view.open(shown)
    try:
        fact["override"], fact["xattrs"] = attributes_of(source)
        fact["size"] = os.fstat(source).st_size
        if hashed:
            fact["sha256"] = sha256_of(source)
    finally:
        os.close(source)
    return fact


def ancestry(path: bytes) -> list[bytes]:
    """The path and all above it but the root, the highest first."""
    parts = path.split(b"/") if path else []
    return [b"/".join(parts[: count + 1]) for count in range(len(parts))]
