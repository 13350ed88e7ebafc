"""Settles a layer on those below it.

Some facts of a layer stand only in lower layers: what a parent directory looks like that the tar does not mention,
where a parent leads that is a symlink there, and what a hard link to a lower file holds. In an overlay the upper copy
of a directory hides the lower one's metadata, so the facts are copied up, as an overlay file system would.
"""

from __future__ import annotations

import base64
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.below import create_file, look, open_directory
from msb_pull.ground.errors import ContentError
from msb_pull.ground.remove import listed
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.attributes import OVERRIDE_STAT, disk_mode, parse_override_stat, set_attribute, user_attributes
from msb_pull.layer.notes import hollow_after, moves_of
from msb_pull.layer.rules import AUFS, BadPath, is_leftover
from msb_pull.layer.settle.derive import Wishes, ancestry, attributes_of, derive
from msb_pull.layer.settle.lowers import MergedView
from msb_pull.layer.tree.folders import Folder, Folders
from msb_pull.layer.tree.holes import TooMuch, copy_bytes
from msb_pull.layer.tree.links import REFUSED
from msb_pull.layer.tree.whiteouts import remove_hollow, resolve_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from msb_pull.layer.report import UnpackReport
    from msb_pull.layer.settle.derive import Fact

_UNLIMITED = 1 << 62
# No entry of a layer can have this name: all that begins so is AUFS's and left out.
_ASIDE = AUFS + b"aside"


class Settled(NamedTuple):
    """What was ``derived`` from the layers below; ``warnings`` name what gave way when contents were moved."""

    derived: list[Fact]
    warnings: Sequence[str] = ()


def settle(staging: Path, report: UnpackReport, lowers: Sequence[Path], *, max_bytes: int = _UNLIMITED) -> Settled:
    """Settles what lies in ``staging`` on ``lowers`` (layer directories, nearest first, settled themselves).

    Copies of what lies below may take what ``max_bytes`` leaves beside the layer's own content. Raises ContentError
    when they take more, or when a hard link's target is in no layer, OSError.
    """
    links = [(path, target) for _, path, target in report.missing_links]
    converted = [new.rpartition(b"/")[0] for _, new in report.turned if new]
    wishes = Wishes(report.implied, links, hollow=report.hollow, converted=converted)
    facts = derive(staging, wishes, lowers)
    warnings: list[str] = []
    root = open_directory(staging)
    try:
        with MergedView(lowers) as view:
            _Applier(root, view, warnings, max_bytes - report.content_bytes).apply(facts, report.hollow)
    except BadPath as error:
        raise ContentError(f"the layer cannot be applied to those below it: {error}") from None
    finally:
        os.close(root)
    return Settled(facts, warnings)


class _Applier:
    """Writes derived facts into a staging tree; the times of directories it writes into stay as they were.

    ``room`` is how many bytes copies may take.
    """

    def __init__(self, root: int, view: MergedView, warnings: list[str], room: int) -> None:
        self._view = view
        self._warnings = warnings
        self._room = room
        self._xattrs = any(name == OVERRIDE_STAT for name, _ in user_attributes(root))
        self._folders = Folders(
            root, xattrs=self._xattrs, exact_modes=False, warn=warnings.append, top_mtime_ns=os.fstat(root).st_mtime_ns
        )
        # Where the last copy of each lower file lies.
        self._copies: dict[str, bytes] = {}

    def apply(self, facts: Sequence[Fact], hollow: Sequence[bytes]) -> None:
        """Every move before the first fact of a directory, which a later move may make or fill; raises OSError.

        ``hollow`` are the directories that only whiteouts imply.
        """
        try:
            claims = {fact["path"]: self._claim(fact["from"]) for fact in facts if fact["kind"] == "claimed"}
            for fact in facts:
                if fact["kind"] == "dropped":
                    self._drop(os.fsencode(fact["path"]))
            moves = moves_of(facts)
            touched = self._move(moves)
            if moves:
                needed = {os.fsencode(x["path"]).rpartition(b"/")[0] for x in facts if x["kind"] == "link"}
                left = hollow_after(facts, hollow)
                remove_hollow(self._folders, left, left, needed)
            # Where moves lead to one that has a fact already, the last one counts.
            dressed = {fact["path"]: fact for fact in facts if fact["kind"] == "directory"}
            for path, fact in dressed.items():
                self._dress(os.fsencode(path), fact)
            for fact in facts:
                path = os.fsencode(fact["path"])
                if fact["kind"] == "claimed":
                    self._dress(path, claims[fact["path"]])
                elif fact["kind"] == "link":
                    self._copy(path, fact)
                    touched[path.rpartition(b"/")[0]] = None
            resolve_pairs(self._folders, touched)
            self._folders.close()
        finally:
            self._folders.abandon()

    def _claim(self, path: str) -> Fact:
        """How a directory of the layer looks that is about to move."""
        folder = self._folders.find(os.fsencode(path))
        assert folder is not None
        override, xattrs = attributes_of(folder.descriptor)
        mode = stat.S_IMODE(os.fstat(folder.descriptor).st_mode)
        return {"override": override, "xattrs": xattrs, "mtime_ns": folder.mtime_ns, "mode": mode}

    def _drop(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        holder = self._folders.find(parent)
        assert holder is not None
        self._folders.remove(holder, name)

    def _dress(self, path: bytes, fact: Fact) -> None:
        folder = self._folders.find(path)
        if folder is None:
            return
        folder.mtime_ns = fact["mtime_ns"]
        if "mode" in fact:
            os.fchmod(folder.descriptor, fact["mode"])
        self._set_attributes(folder.descriptor, fact)

    def _set_attributes(self, target: int, fact: Fact) -> None:
        if self._xattrs:
            set_attribute(target, OVERRIDE_STAT, fact["override"].encode("ascii"))
            for name, value in fact["xattrs"].items():
                set_attribute(target, os.fsencode(name), base64.b64decode(value))

    def _move(self, moves: dict[bytes, bytes]) -> dict[bytes, None]:
        """Moves the contents of directories; returns those where a whiteout may now stand beside what it names.

        All go aside first, the deepest first: then each is where it was, and none lies where another one goes.
        """
        touched: dict[bytes, None] = {}
        if not moves:
            return touched
        folders = self._folders
        os.mkdir(_ASIDE, 0o700, dir_fd=folders.top.descriptor)
        aside = {old: _ASIDE + b"/%d" % number for number, old in enumerate(moves)}
        for old in sorted(moves, key=lambda path: -path.count(b"/")):
            parent, _, name = old.rpartition(b"/")
            folders.release(old)
            holder = folders.find(parent)
            assert holder is not None
            os.rename(name, aside[old], src_dir_fd=holder.descriptor, dst_dir_fd=folders.top.descriptor)
        for old, new in moves.items():
            folders.make(new)
            touched |= dict.fromkeys((b"", *ancestry(new), *self._merge(aside[old], new)))
        folders.remove(folders.top, _ASIDE)
        return touched

    def _merge(self, source: bytes, target: bytes) -> list[bytes]:
        """Moves the entries of one directory into another, folder into folder; what stands there already stays.

        Archives are mostly in the order of names, so what is there mostly came from the later entry.
        """
        touched = []
        pending = [b""]
        while pending:
            below = pending.pop()
            touched.append(target + below)
            old, new = self._held(source + below), self._held((target + below).strip(b"/"))
            try:
                for name, _ in sorted(listed(old)):
                    if not target and not below and is_leftover(name):
                        continue
                    if self._move_entry(old, new, name):
                        pending.append(below + b"/" + name)
            finally:
                os.close(old)
                os.close(new)
        return [path.strip(b"/") for path in touched]

    def _held(self, path: bytes) -> int:
        folder = self._folders.find(path)
        assert folder is not None
        return os.dup(folder.descriptor)

    def _move_entry(self, old: int, new: int, name: bytes) -> bool:
        """True for two directories, whose contents are to be merged."""
        there = look(name, new)
        if there is None:
            os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)
            return False
        here = os.stat(name, dir_fd=old, follow_symlinks=False)
        if stat.S_ISDIR(there.st_mode) != stat.S_ISDIR(here.st_mode):
            raise ContentError(f'"{visible_bytes(name)}" is a directory and a file, once through a symlink below')
        if stat.S_ISDIR(here.st_mode):
            return True
        self._warnings.append(f'"{visible_bytes(name)}" appears twice, once through a symlink of a lower layer')
        return False

    def _copy(self, path: bytes, fact: Fact) -> None:
        shown = self._view.look(os.fsencode(fact["real"]))
        parent, _, name = path.rpartition(b"/")
        folder = self._folders.find(parent)
        if shown is None or folder is None:
            raise ContentError(f'hard link "{visible_bytes(path)}": its place is gone')
        if self._is_taken(folder, name):
            return
        if self._link_to_copy(folder, name, fact):
            return
        if "symlink" in fact:
            os.symlink(os.fsencode(fact["symlink"]), name, dir_fd=folder.descriptor)
        else:
            source = self._view.open(shown)
            try:
                self._copy_file(source, folder.descriptor, name, fact)
            except TooMuch:
                what = "the copies of what lies below take more than a layer is allowed"
                hint = "if you trust the image, allow more with --max-layer-size"
                raise ContentError(f'hard link "{visible_bytes(path)}": {what}', hint=hint) from None
            finally:
                os.close(source)
        when = (fact["mtime_ns"], fact["mtime_ns"])
        os.utime(name, ns=when, dir_fd=folder.descriptor, follow_symlinks=False)
        self._copies[fact["real"]] = path

    def _link_to_copy(self, folder: Folder, name: bytes, fact: Fact) -> bool:
        """Whether a hard link to an earlier copy of the same file could be made."""
        parent, _, copy = self._copies.get(fact["real"], b"").rpartition(b"/")
        if not copy:
            return False
        held = os.dup(folder.descriptor)
        try:
            beside = self._folders.find(parent)
            assert beside is not None
            os.link(copy, name, src_dir_fd=beside.descriptor, dst_dir_fd=held, follow_symlinks=False)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            fact["copied"] = True
            return False
        finally:
            os.close(held)
        return True

    def _is_taken(self, folder: Folder, name: bytes) -> bool:
        """Whether what moved, or another link that moved, stands where a link is to be; it stays."""
        there = look(name, folder.descriptor)
        if there is None:
            return False
        if stat.S_ISDIR(there.st_mode):
            raise ContentError(f'"{visible_bytes(name)}" is a directory and a file, once through a symlink below')
        self._warnings.append(f'"{visible_bytes(name)}" appears twice, once through a symlink of a lower layer')
        return True

    def _copy_file(self, source: int, directory: int, name: bytes, fact: Fact) -> None:
        copy = create_file(name, directory)
        try:
            mode = parse_override_stat(fact["override"].encode("ascii"))[2]
            os.fchmod(copy, disk_mode(stat.S_IFREG, mode or 0))
            self._set_attributes(copy, fact)
            self._room -= copy_bytes(source, copy, self._room)
        finally:
            os.close(copy)
