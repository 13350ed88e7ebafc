"""Settles a layer on those below it.

Some facts of a layer stand only in lower layers: what a parent directory looks like that the tar does not mention,
where a parent leads that is a symlink there, and what a hard link to a lower file holds. In an overlay the upper copy
of a directory hides the lower one's metadata, so the facts are copied up, as an overlay file system would.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Any

from msb_pull.errors import ContentError
from msb_pull.layer.attributes import OVERRIDE_STAT, override_stat
from msb_pull.layer.copying import copy_contents
from msb_pull.layer.limits import printable
from msb_pull.layer.lowers import LowerView, Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from msb_pull.layer.unpack import UnpackReport

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT = override_stat(stat.S_IFDIR, 0o755, 0, 0).decode("ascii")

Fact = dict[str, Any]


class Settled:
    """What was derived from the layers below: ``derived`` as plain JSON values, ``moved`` path prefixes (from, to)."""

    __slots__ = ("derived",)

    def __init__(self, derived: list[Fact]) -> None:
        self.derived = derived

    @property
    def moved(self) -> list[tuple[bytes, bytes]]:
        """The directories whose contents went where a symlink below leads."""
        return [
            (os.fsencode(fact["path"]), os.fsencode(fact["to"])) for fact in self.derived if fact["kind"] == "moved"
        ]


def settle(staging: Path, report: UnpackReport, lowers: Sequence[Path]) -> Settled:
    """Settles what lies in ``staging`` on ``lowers`` (layer directories, nearest first).

    Raises ContentError when a hard link's target is in no layer, OSError.
    """
    links = [(path, target) for _, path, target in report.missing_links]
    with LowerView(lowers) as view:
        facts = _derive(view, report.implied, links)
        root = os.open(staging, _OPEN_DIR)
        try:
            _Applier(root, view).apply(facts)
        finally:
            os.close(root)
    return Settled(facts)


def derive_again(facts: Sequence[Fact], lowers: Sequence[Path]) -> list[Fact]:
    """What :func:`settle` would have derived for the same layer on other ``lowers``; raises like it.

    If it differs from ``facts``, the layer as it lies in the store does not belong on top of those.
    """
    implied = [os.fsencode(fact["asked"]) for fact in facts if "asked" in fact]
    links = [(os.fsencode(fact["asked_path"]), os.fsencode(fact["from"])) for fact in facts if fact["kind"] == "link"]
    with LowerView(lowers) as view:
        return _derive(view, implied, links)


def _derive(view: LowerView, implied: Iterable[bytes], links: Iterable[tuple[bytes, bytes]]) -> list[Fact]:
    facts: list[Fact] = []
    moved: list[tuple[bytes, bytes]] = []
    known: set[bytes] = set()
    for asked in implied:
        path = _moved(asked, moved)
        shown = view.look(path)
        target = view.resolve(path) if shown is not None and shown.is_symlink else None
        if target is not None and target != path:
            moved.append((path, target))
            names = {"asked": os.fsdecode(asked), "path": os.fsdecode(path), "to": os.fsdecode(target)}
            facts.append({"kind": "moved", **names})
            facts.extend(_directory(view, parent) for parent in _ancestry(target) if parent not in known)
            known.update(_ancestry(target))
        elif path not in known:
            known.add(path)
            facts.append({**_directory(view, path), "asked": os.fsdecode(asked)})
    facts.extend(_link(view, asked, _moved(asked, moved), target) for asked, target in links)
    return facts


def _directory(view: LowerView, path: bytes) -> Fact:
    fact: Fact = {"kind": "directory", "path": os.fsdecode(path), "override": _DEFAULT, "mtime_ns": 0, "xattrs": {}}
    shown = view.look(path)
    if shown is None or not shown.is_directory:
        return fact
    source = view.open(shown)
    try:
        fact["mtime_ns"] = os.fstat(source).st_mtime_ns
        fact["override"], fact["xattrs"] = _attributes(source)
    finally:
        os.close(source)
    return fact


def _attributes(source: int) -> tuple[str, dict[str, str]]:
    override, others = _DEFAULT, {}
    for name in sorted(_list_attributes(source)):
        value = os.getxattr(source, name)
        if name == OVERRIDE_STAT.decode("ascii"):
            override = value.decode("ascii", "backslashreplace")
        elif name.startswith("user."):
            others[name] = base64.b64encode(value).decode("ascii")
    return override, others


def _list_attributes(source: int) -> list[str]:
    try:
        return os.listxattr(source)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        return []


def _link(view: LowerView, asked: bytes, path: bytes, target: bytes) -> Fact:
    parent, _, name = target.rpartition(b"/")
    real = view.resolve(parent) if parent else b""
    shown = None if real is None else view.look(real + b"/" + name if real else name)
    if shown is None or shown.is_directory:
        raise ContentError(f'hard link "{printable(asked)}": its target "{printable(target)}" is in no layer')
    fact: Fact = {
        "kind": "link",
        "asked_path": os.fsdecode(asked),
        "path": os.fsdecode(path),
        "from": os.fsdecode(target),
        "real": os.fsdecode(shown.path),
        "mtime_ns": shown.facts.st_mtime_ns,
    }
    if shown.is_symlink:
        fact["symlink"] = os.fsdecode(view.read_link(shown))
        return fact
    source = view.open(shown)
    try:
        fact["override"], fact["xattrs"] = _attributes(source)
        with os.fdopen(os.dup(source), "rb") as content:
            fact["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
    finally:
        os.close(source)
    return fact


def _moved(path: bytes, moved: Sequence[tuple[bytes, bytes]]) -> bytes:
    for old, new in moved:
        if path == old or path.startswith(old + b"/"):
            path = (new + path[len(old) :]).strip(b"/")
    return path


def _ancestry(path: bytes) -> list[bytes]:
    """The path and all above it but the root, the highest first."""
    parts = path.split(b"/") if path else []
    return [b"/".join(parts[: count + 1]) for count in range(len(parts))]


class _Applier:
    """Writes derived facts into a staging tree; the times of directories it writes into stay as they were."""

    def __init__(self, root: int, view: LowerView) -> None:
        self._root = root
        self._view = view

    def apply(self, facts: Sequence[Fact]) -> None:
        times: list[tuple[bytes, int]] = []
        made: set[bytes] = set()
        for fact in facts:
            path = os.fsencode(fact["path"])
            if fact["kind"] == "moved":
                self._move(path, os.fsencode(fact["to"]), made)
            elif fact["kind"] == "link":
                self._copy(path, self._view.look(os.fsencode(fact["real"])), fact)
            elif "asked" in fact or path in made:
                self._dress(path, fact)
                times.append((path, fact["mtime_ns"]))
        for path, when in times:
            directory = self._open(path)
            try:
                os.utime(directory, ns=(when, when))
            finally:
                os.close(directory)

    def _open(self, path: bytes, made: set[bytes] | None = None) -> int:
        """Opens a directory of the staging tree without following anything; with ``made`` what is missing is made."""
        current = os.dup(self._root)
        at = b""
        for part in path.split(b"/") if path else ():
            at = at + b"/" + part if at else part
            try:
                if made is not None:
                    made.update(_make(current, part, at))
                following = os.open(part, _OPEN_DIR, dir_fd=current)
            finally:
                os.close(current)
            current = following
        return current

    def _dress(self, path: bytes, fact: Fact) -> None:
        directory = self._open(path)
        try:
            if any(name == OVERRIDE_STAT.decode() for name in _list_attributes(directory)):
                os.setxattr(directory, OVERRIDE_STAT, fact["override"].encode("ascii"))
                for name, value in fact["xattrs"].items():
                    os.setxattr(directory, name, base64.b64decode(value))
        finally:
            os.close(directory)

    def _move(self, old: bytes, new: bytes, made: set[bytes]) -> None:
        parent, _, name = old.rpartition(b"/")
        holder = self._open(parent)
        try:
            before = os.fstat(holder).st_mtime_ns
            source = os.open(name, _OPEN_DIR, dir_fd=holder)
            target = self._open(new, made)
            try:
                _merge(source, target)
            finally:
                os.close(source)
                os.close(target)
            os.rmdir(name, dir_fd=holder)
            os.utime(holder, ns=(before, before))
        finally:
            os.close(holder)

    def _copy(self, path: bytes, shown: Shown | None, fact: Fact) -> None:
        assert shown is not None
        parent, _, name = path.rpartition(b"/")
        directory = self._open(parent)
        try:
            before = os.fstat(directory).st_mtime_ns
            if "symlink" in fact:
                os.symlink(os.fsencode(fact["symlink"]), name, dir_fd=directory)
            else:
                source, copy = self._view.open(shown), os.open(name, _CREATE, 0o600, dir_fd=directory)
                try:
                    copy_contents(source, copy)
                finally:
                    os.close(source)
                    os.close(copy)
            when = (fact["mtime_ns"], fact["mtime_ns"])
            os.utime(name, ns=when, dir_fd=directory, follow_symlinks=False)
            os.utime(directory, ns=(before, before))
        finally:
            os.close(directory)


def _make(directory: int, part: bytes, path: bytes) -> Iterable[bytes]:
    """Makes a directory as an implied one; yields its path if it was not there."""
    try:
        os.mkdir(part, 0o755, dir_fd=directory)
    except FileExistsError:
        return ()
    made = os.open(part, _OPEN_DIR, dir_fd=directory)
    try:
        os.fchmod(made, 0o755)
        if _list_attributes(directory):
            os.setxattr(made, OVERRIDE_STAT, _DEFAULT.encode("ascii"))
    finally:
        os.close(made)
    return (path,)


def _merge(source: int, target: int) -> None:
    """Moves the entries of one directory into another, folder into folder; what is moved wins."""
    before = os.fstat(target).st_mtime_ns
    for name in [os.fsencode(name) for name in os.listdir(source)]:
        try:
            there = os.stat(name, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
            continue
        here = os.stat(name, dir_fd=source, follow_symlinks=False)
        if not (stat.S_ISDIR(there.st_mode) and stat.S_ISDIR(here.st_mode)):
            if stat.S_ISDIR(there.st_mode) or stat.S_ISDIR(here.st_mode):
                raise ContentError(f'"{printable(name)}" is a directory and a file, once through a symlink below')
            os.replace(name, name, src_dir_fd=source, dst_dir_fd=target)
            continue
        inner_source, inner_target = os.open(name, _OPEN_DIR, dir_fd=source), os.open(name, _OPEN_DIR, dir_fd=target)
        try:
            _merge(inner_source, inner_target)
        finally:
            os.close(inner_source)
            os.close(inner_target)
        os.rmdir(name, dir_fd=source)
    os.utime(target, ns=(before, before))
