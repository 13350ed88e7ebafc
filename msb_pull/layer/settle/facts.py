"""Whether facts read back have the form that :mod:`.derive` gives them: whoever applies them relies on it."""

from __future__ import annotations

import os
from binascii import a2b_base64

from msb_pull.layer.rules import MAX_LEVELS, places_after
from msb_pull.layer.tree.attributes import parse_override_stat

# Importing typing takes longer than verifying a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

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
# No file system has later times, nor could any function be told of them.
_MAX_TIME_NS = 1 << 90


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
    """As :func:`msb_pull.layer.tar.names.clean` leaves it; not looked at name by name, since many may be deep."""
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
