"""What a verification is asked, and what it answers: all that the parent of a process that verifies has to load."""

from __future__ import annotations

import os

# Importing typing takes longer than verifying a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    # Of how many entries (True) or bytes (False) how many are done.
    Progress = Callable[[int, int, bool], None]

# The kind of damage that may be that of a layer below.
DERIVED = "derived"


class Damage:
    """One difference. ``path`` is relative to the layer's directory; ``kind`` is one word, the rest is for people."""

    __slots__ = ("expected", "found", "kind", "path")

    def __init__(self, path: bytes, kind: str, expected: str, found: str) -> None:
        self.path = path
        self.kind = kind
        self.expected = expected
        self.found = found

    def __repr__(self) -> str:
        return f"Damage({self.path!r}, {self.kind!r}, {self.expected!r}, {self.found!r})"


class ProofTask:
    """What to verify: paths of a layer's directory, record and notes, and of what is kept of overwritten payloads, the
    signed diff_id, whether to leave file contents unread (``quick``), the directories of the layers below, nearest
    first, in each image, and whether there is a processor to hash on ``beside``. Its ``vars`` are plain values that
    make it again."""

    def __init__(
        self,
        directory: str,
        record: str,
        notes: str,
        diff_id: str,
        quick: bool,
        kept: str = "",
        stacks: Sequence[Sequence[str]] = (),
        beside: bool = False,
    ) -> None:
        self.directory = directory
        self.record = record
        self.notes = notes
        self.kept = kept
        self.stacks = stacks
        self.diff_id = diff_id
        self.quick = quick
        self.beside = beside


class Findings:
    """What was found. ``denied`` are the paths that this user may not look into; ``diff_id`` is that of the stream made
    again, "" when none was made. ``writable_by_others`` counts the paths that an earlier version left so."""

    __slots__ = ("bytes", "damages", "denied", "diff_id", "entries", "writable_by_others")

    def __init__(self) -> None:
        self.damages: list[Damage] = []
        self.denied: list[bytes] = []
        self.diff_id = ""
        self.bytes = 0
        self.entries = 0
        self.writable_by_others = 0

    def as_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "damages": [[os.fsdecode(x.path), x.kind, x.expected, x.found] for x in self.damages],
            "denied": [os.fsdecode(path) for path in self.denied],
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Findings:
        """The inverse of :meth:`as_plain`; raises ValueError, KeyError or TypeError for what it does not make."""
        found = cls()
        found.damages = [Damage(os.fsencode(path), *map(str, words)) for path, *words in values["damages"]]
        found.denied = [os.fsencode(path) for path in values["denied"]]
        found.bytes, found.entries = int(values["bytes"]), int(values["entries"])
        found.diff_id = str(values["diff_id"])
        found.writable_by_others = int(values["writable_by_others"])
        return found
