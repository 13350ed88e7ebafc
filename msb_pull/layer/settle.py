"""Settles a layer on those below it.

Some facts of a layer stand only in lower layers: what a parent directory looks like that the tar does not mention,
where a parent leads that is a symlink there, and what a hard link to a lower file holds. In an overlay the upper copy
of a directory hides the lower one's metadata, so the facts are copied up, as an overlay file system would.
"""

from __future__ import annotations

import base64
import os
import stat
from typing import TYPE_CHECKING

from msb_pull.errors import ContentError
from msb_pull.layer.attributes import OVERRIDE_STAT, disk_mode, parse_override_stat
from msb_pull.layer.copying import CREATE, copy_bytes
from msb_pull.layer.derive import Wishes, ancestry, derive
from msb_pull.layer.folders import OPEN_DIRECTORY, BadPath, Folder, Folders
from msb_pull.layer.limits import printable
from msb_pull.layer.lowers import MergedView
from msb_pull.layer.whiteouts import is_leftover, resolve_pairs
from msb_pull.layer.xattrs import set_attribute, user_attributes
from msb_pull.remove import listed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from msb_pull.layer.derive import Fact
    from msb_pull.layer.unpack import UnpackReport

# No entry of a layer can have this name: all that begins so is AUFS's and left out.
_ASIDE = b".wh..wh.aside"


class Settled:
    """What was derived from the layers below: ``derived`` as plain JSON values, ``moved`` path prefixes (from, to).

    ``warnings`` name what had to give way when contents were moved.
    """

    __slots__ = ("derived", "warnings")

    def __init__(self, derived: list[Fact], warnings: Sequence[str] = ()) -> None:
        self.derived = derived
        self.warnings = list(warnings)

    @property
    def moved(self) -> list[tuple[bytes, bytes]]:
        """The directories whose contents went where a symlink below leads."""
        return [
            (os.fsencode(fact["path"]), os.fsencode(fact["to"])) for fact in self.derived if fact["kind"] == "moved"
        ]


def settle(staging: Path, report: UnpackReport, lowers: Sequence[Path]) -> Settled:
    """Settles what lies in ``staging`` on ``lowers`` (layer directories, nearest first, settled themselves).

    Raises ContentError when a hard link's target is in no layer, OSError.
    """
    links = [(path, target) for _, path, target in report.missing_links]
    wishes = Wishes(report.implied, links, hidden=None, unclaimed=report.implied)
    converted = frozenset(new.rpartition(b"/")[0] for _, new in report.turned if new)
    facts = derive(staging, wishes, lowers, converted)
    warnings: list[str] = []
    root = os.open(staging, OPEN_DIRECTORY)
    try:
        with MergedView(lowers) as view:
            _Applier(root, view, warnings).apply(facts)
    except BadPath as error:
        raise ContentError(f"the layer cannot be put on those below it: {error}") from None
    finally:
        os.close(root)
    return Settled(facts, warnings)


def derive_again(facts: Sequence[Fact], layer: Path, lowers: Sequence[Path]) -> list[Fact]:
    """What :func:`settle` would have derived for the same layer on other ``lowers``; writes nothing, raises like it.

    ``facts`` is what it derived, ``layer`` the directory that was settled with them. If the result is not equal to
    ``facts``, the layer as it lies there does not belong on top of those: an image would show the metadata, or even
    the files, of another one.
    """
    return derive(layer, Wishes.of_facts(facts), lowers, frozenset())


class _Applier:
    """Writes derived facts into a staging tree; the times of directories it writes into stay as they were."""

    def __init__(self, root: int, view: MergedView, warnings: list[str]) -> None:
        self._view = view
        self._warnings = warnings
        self._xattrs = any(name == OVERRIDE_STAT for name, _ in user_attributes(root))
        self._folders = Folders(
            root,
            xattrs=self._xattrs,
            exact_modes=False,
            warn=warnings.append,
            top_mtime_ns=os.fstat(root).st_mtime_ns,
        )

    def apply(self, facts: Sequence[Fact]) -> None:
        try:
            # Every move before the first fact of a directory, which a later move may make or fill.
            for fact in facts:
                if fact["kind"] == "moved":
                    self._move(os.fsencode(fact["path"]), os.fsencode(fact["to"]))
            beside: dict[bytes, None] = {}
            for fact in facts:
                path = os.fsencode(fact["path"])
                if fact["kind"] == "directory":
                    self._dress(path, fact)
                elif fact["kind"] == "link":
                    self._copy(path, fact)
                    beside[path.rpartition(b"/")[0]] = None
            resolve_pairs(self._folders, beside)
            self._folders.close()
        finally:
            self._folders.abandon()

    def _dress(self, path: bytes, fact: Fact) -> None:
        folder = self._folders.find(path)
        if folder is None:
            return
        folder.mtime_ns = fact["mtime_ns"]
        if self._xattrs:
            set_attribute(folder.descriptor, OVERRIDE_STAT, fact["override"].encode("ascii"))
            for name, value in fact["xattrs"].items():
                set_attribute(folder.descriptor, os.fsencode(name), base64.b64decode(value))

    def _move(self, old: bytes, new: bytes) -> None:
        folders = self._folders
        parent, _, name = old.rpartition(b"/")
        holder = folders.find(parent)
        if holder is None:
            raise ContentError(f'"{printable(old)}" leads into itself through a symlink below')
        # Aside first: the place it moves to may lie above it.
        folders.release(old)
        os.rename(name, _ASIDE, src_dir_fd=holder.descriptor, dst_dir_fd=folders.top.descriptor)
        folders.make(new)
        touched = self._merge(_ASIDE, new)
        folders.remove(folders.top, _ASIDE)
        resolve_pairs(folders, [b"", *ancestry(new), *touched])

    def _merge(self, source: bytes, target: bytes) -> list[bytes]:
        """Moves the entries of one directory into another, folder into folder; what stands there already stays.

        Archives are mostly in the order of names, and so it is there mostly since the later entry.
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
        try:
            there = os.stat(name, dir_fd=new, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)
            return False
        here = os.stat(name, dir_fd=old, follow_symlinks=False)
        if stat.S_ISDIR(there.st_mode) != stat.S_ISDIR(here.st_mode):
            raise ContentError(f'"{printable(name)}" is a directory and a file, once through a symlink below')
        if stat.S_ISDIR(here.st_mode):
            return True
        self._warnings.append(f'"{printable(name)}" came twice, once through a symlink below')
        return False

    def _copy(self, path: bytes, fact: Fact) -> None:
        shown = self._view.look(os.fsencode(fact["real"]))
        parent, _, name = path.rpartition(b"/")
        folder = self._folders.find(parent)
        if shown is None or folder is None:
            raise ContentError(f'hard link "{printable(path)}": its place is gone')
        if self._is_taken(folder, name):
            return
        if "symlink" in fact:
            os.symlink(os.fsencode(fact["symlink"]), name, dir_fd=folder.descriptor)
        else:
            source = self._view.open(shown)
            try:
                self._copy_file(source, folder.descriptor, name, fact)
            finally:
                os.close(source)
        when = (fact["mtime_ns"], fact["mtime_ns"])
        os.utime(name, ns=when, dir_fd=folder.descriptor, follow_symlinks=False)

    def _is_taken(self, folder: Folder, name: bytes) -> bool:
        """Whether what moved, or another link that moved, stands where a link is to be; it stays."""
        try:
            there = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(there.st_mode):
            raise ContentError(f'"{printable(name)}" is a directory and a file, once through a symlink below')
        self._warnings.append(f'"{printable(name)}" came twice, once through a symlink below')
        return True

    def _copy_file(self, source: int, directory: int, name: bytes, fact: Fact) -> None:
        copy = os.open(name, CREATE, 0o600, dir_fd=directory)
        try:
            mode = parse_override_stat(fact["override"].encode("ascii"))[2]
            os.fchmod(copy, disk_mode(stat.S_IFREG, mode or 0))
            if self._xattrs:
                set_attribute(copy, OVERRIDE_STAT, fact["override"].encode("ascii"))
                for attribute, value in fact["xattrs"].items():
                    set_attribute(copy, os.fsencode(attribute), base64.b64decode(value))
            copy_bytes(source, copy)
        finally:
            os.close(copy)
