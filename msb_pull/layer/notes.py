"""The notes of a layer: what the stream of its record does not say, as JSON beside it.

Where entries were placed that did not go where they said, what was derived from lower layers, and what the file system
refused.
"""

from __future__ import annotations

import os
from binascii import a2b_base64

from msb_pull.ground.below import opener
from msb_pull.ground.errors import ContentError
from msb_pull.layer.attributes import parse_override_stat
from msb_pull.layer.noted import VERSION
from msb_pull.layer.rules import MAX_LEVELS, places_after

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from msb_pull.layer.report import UnpackReport

_KEYS = {"version", "diff_id", "tar_bytes", "entries", "content_bytes", "chain", "placed", "moved", "derived"}
_KEYS |= {"copied", "unkept", "warnings"}
_MAX_WARNINGS = 100
# The paths that a fact of each kind names, and of them those that may be the top.
_PATHS = {
    "directory": ("path",),
    "dropped": ("path",),
    "moved": ("asked", "path", "to"),
    "merged": ("asked", "path"),
    "claimed": ("path", "from"),
    "link": ("asked_path", "path", "from", "real"),
}
_TOPS = {"directory": ("path",), "moved": ("to",), "merged": ("path",), "claimed": ("path",)}
# No file system or system call takes later times.
_MAX_TIME_NS = 1 << 90


class Notes:
    """What is known of a published layer beside its record. Paths are bytes; the file holds them as escaped text."""

    def __init__(
        self,
        *,
        diff_id: str,
        tar_bytes: int,
        entries: int,
        content_bytes: int,
        chain: str,
        placed: dict[int, bytes] | None = None,
        moved: list[tuple[bytes, bytes]] | None = None,
        derived: list[dict[str, Any]] | None = None,
        copied: list[int] | None = None,
        unkept: list[int] | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        self.diff_id = diff_id
        self.tar_bytes = tar_bytes
        self.entries = entries
        self.content_bytes = content_bytes
        self.chain = chain
        self.placed = placed or {}
        self.moved = moved or []
        self.derived = derived or []
        self.copied = copied or []
        self.unkept = unkept or []
        self.warnings = warnings or []

    @classmethod
    def of(
        cls, report: UnpackReport, derived: list[dict[str, Any]], *, diff_id: str, tar_bytes: int, chain: str
    ) -> Notes:
        """The notes of a layer that has just been unpacked, and for which ``derived`` came from the layers below."""
        return cls(
            diff_id=diff_id,
            tar_bytes=tar_bytes,
            entries=report.entries,
            content_bytes=report.content_bytes,
            chain=chain,
            placed=report.placed,
            moved=prefixes_moved(derived),
            derived=derived,
            copied=report.copied,
            unkept=report.unkept,
            warnings=report.warnings[:_MAX_WARNINGS],
        )

    def save(self, path: Path) -> None:
        """Writes the notes as JSON; raises OSError."""
        import json

        document = {
            "version": VERSION,
            **vars(self),
            "placed": {str(index): os.fsdecode(place) for index, place in self.placed.items()},
            "moved": [[os.fsdecode(old), os.fsdecode(new)] for old, new in self.moved],
        }
        try:
            path.write_text(json.dumps(document) + "\n", encoding="ascii")
        except OSError as error:
            # An error while writing does not name the file.
            error.filename = os.fspath(path)
            raise

    @classmethod
    def load(cls, path: Path | str) -> Notes:
        """Reads notes back; raises ContentError when the file is not what :meth:`save` writes."""
        import json

        try:
            with open(path, "rb", opener=opener) as file:
                text = file.read()
            document = json.loads(text)
            if document["version"] != VERSION:
                raise ValueError(f"version {document['version']}")
            if json.dumps(document).encode("ascii") + b"\n" != text or not document.keys() <= _KEYS:
                raise ValueError("they were altered since they were written")
            return cls(
                diff_id=_typed(document["diff_id"], str),
                tar_bytes=_typed(document["tar_bytes"], int),
                entries=_typed(document["entries"], int),
                content_bytes=_typed(document["content_bytes"], int),
                chain=_typed(document["chain"], str),
                placed={int(index): os.fsencode(place) for index, place in document["placed"].items()},
                moved=[(os.fsencode(old), os.fsencode(new)) for old, new in document["moved"]],
                derived=check_facts(document["derived"]),
                copied=[_typed(index, int) for index in document.get("copied", [])],
                unkept=[_typed(index, int) for index in document.get("unkept", [])],
                warnings=_typed(document["warnings"], list),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ContentError(
                f"{path}: the notes of a layer are damaged",
                cause=repr(error),
                hint="`msb-pull verify --repair` repairs it",
            ) from None


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}")
    return value


# Facts, as msb_pull.layer.settle.derive makes them; code that applies them relies on their form.


def check_facts(facts: Any) -> list[dict[str, Any]]:
    """Returns them; raises ValueError, TypeError, KeyError, AttributeError for what nothing has derived."""
    if not isinstance(facts, list):
        raise TypeError("facts are a list")
    for fact in facts:
        kind = fact["kind"]
        for name in _PATHS[kind]:
            path = os.fsencode(fact[name])
            if not (_is_clean(path) if path else name in _TOPS.get(kind, ())):
                raise ValueError(f"{name!r} is no path of a layer")
        if kind == "directory":
            _check_inode(fact)
        elif kind == "link":
            _check_link(fact)
    return facts


def moves_of(facts: Iterable[dict[str, Any]]) -> dict[bytes, bytes]:
    """Where the contents of directories go, by the paths that the layer gave these."""
    return {os.fsencode(fact["asked"]): os.fsencode(fact["to"]) for fact in facts if fact["kind"] == "moved"}


def prefixes_moved(facts: Iterable[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
    """Paths where the layers below have symlinks, and where the contents that were to go there went instead."""
    return [(os.fsencode(fact["path"]), os.fsencode(fact["to"])) for fact in facts if fact["kind"] == "moved"]


def hollow_after(facts: Sequence[dict[str, Any]], hollow: Iterable[bytes]) -> dict[bytes, None]:
    """Where the directories that only whiteouts imply are once contents have moved, and those made for what moved.

    The latter hold nothing but whiteouts either, where no more has come into them. A directory that an entry describes
    is none of them, also where the entry has moved there.
    """
    made = (os.fsencode(fact["path"]) for fact in facts if fact.get("made"))
    described = {os.fsencode(fact["path"]) for fact in facts if fact["kind"] == "claimed"}
    places = places_after(moves_of(facts), hollow) | dict.fromkeys(made)
    return {place: None for place in places if place not in described}


def _is_clean(path: bytes) -> bool:
    """As :func:`msb_pull.layer.rules.clean` leaves it; not looked at name by name, since many may be deep."""
    inside = b"/" + path + b"/"
    return path.count(b"/") < MAX_LEVELS and not any(odd in inside for odd in (b"\0", b"//", b"/./", b"/../"))


def _check_link(fact: dict[str, Any]) -> None:
    if "symlink" in fact:
        os.fsencode(fact["symlink"])
        _check_time(fact)
        return
    _check_inode(fact)
    if not isinstance(fact["size"], int) or fact["size"] < 0:
        raise ValueError("a size that no file has")


def _check_inode(fact: dict[str, Any]) -> None:
    _check_time(fact)
    if None in parse_override_stat(fact["override"].encode("ascii")):
        raise ValueError("an owner or a mode is missing")
    for name, value in fact["xattrs"].items():
        os.fsencode(name)
        a2b_base64(value)


def _check_time(fact: dict[str, Any]) -> None:
    if not isinstance(fact["mtime_ns"], int) or abs(fact["mtime_ns"]) > _MAX_TIME_NS:
        raise ValueError("a time that no file has")
