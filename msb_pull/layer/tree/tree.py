"""Writes the entries of one layer below one directory, and nowhere else.

Every operation names one component below the open descriptor of a directory (:mod:`.folders`); nothing is
ever followed, and paths are never compared as strings to decide what is inside. The way of a plain file, of which
layers have tens of thousands, is kept short: create, set the attribute, write, set the time, close.
"""

from __future__ import annotations

import os
import stat
import sys
from os import close, open, utime, write  # the way of a plain file looks them up faster so

from msb_pull.ground.below import CREATE
from msb_pull.layer.attributes import (
    DISK_MODES,
    IMPLIED_MODE,
    MAX_TIME_NS,
    OVERRIDE_STAT,
    clamp_time,
    disk_mode,
    override_stat,
    set_attribute,
)
from msb_pull.layer.limits import LayerError
from msb_pull.layer.rules import PLINKS, BadPath, check_whiteout, clean, is_leftover, is_plink, is_whiteout
from msb_pull.layer.tar.entry import BLK, CHR, DIR, FIFO, LNK, REG, SYM
from msb_pull.layer.tree.dress import Dress, Warnings, clear_attributes, prepare_top
from msb_pull.layer.tree.folders import Folder, Folders
from msb_pull.layer.tree.holes import write_segments
from msb_pull.layer.tree.links import Links
from msb_pull.layer.tree.whiteouts import remove_hollow, resolve_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Protocol

    from msb_pull.layer.tar.entry import Entry

    class Filler(Protocol):
        """Fills new files while others are made."""

        def takes(self, entry: Entry) -> bool:
            """Whether it can do all that a file needs."""

        def take(self, target: int, entry: Entry, value: bytes) -> None:
            """Has an open file get its override_stat, content and time, and closed; raises OSError, LayerError."""

        def wait(self) -> None:
            """Returns once all of that is done; raises OSError."""


_KINDS = {CHR: stat.S_IFCHR, BLK: stat.S_IFBLK, FIFO: stat.S_IFIFO}
_S_IFREG = stat.S_IFREG
_DOT = ord(".")
_MAX_DEVICE = (1 << 32) - 1


class TreeWriter:
    """One layer's tree below ``root``, an open descriptor of an empty directory without other writers.

    ``exact_modes`` says that the process's umask clears no bit that gets onto the disk, so that new files need no
    chmod; copies of what cannot be linked may take ``max_copied`` bytes. Without ``xattrs`` nothing is kept of
    owners and modes but what the disk shows. ``filler`` does to plain files what comes after their creation.

    After :meth:`finish`, ``placed`` says where entries went that did not go where they said, ``turned`` where whiteouts
    did, ``links.missing`` which hard links wait for a lower layer, ``implied`` which directories had no entry, and
    ``hollow`` those of them that only whiteouts imply.
    """

    def __init__(
        self,
        root: int,
        *,
        xattrs: bool = True,
        exact_modes: bool = False,
        max_copied: int = 1 << 62,
        filler: Filler | None = None,
    ) -> None:
        self.placed: dict[int, bytes] = {}
        self.turned: list[tuple[bytes, bytes]] = []
        self.implied: list[bytes] = []
        self.hollow: list[bytes] = []
        self.warnings = Warnings()
        self.dress = Dress(self.warnings)
        self._xattrs = xattrs
        self._exact_modes = exact_modes
        os.fchmod(root, IMPLIED_MODE)
        if xattrs:
            prepare_top(root)
        self._folders = Folders(root, xattrs=xattrs, exact_modes=exact_modes, warn=self.warnings.add)
        self.links = Links(self._folders, max_copied)
        self._known = self._folders.known
        self._filler = filler
        if filler is not None:
            self._folders.keeper.filled = filler.wait
        self._marked: dict[bytes, None] = {}
        self._plinks: dict[bytes, int] = {}
        self._values = self.dress.values

    def add(self, entry: Entry, chunk: Callable[[], memoryview]) -> None:
        """Writes one entry; ``chunk`` gives its payload piece by piece. Raises LayerError, OSError."""
        if entry.type == REG:
            parent, _, name = entry.name.rpartition(b"/")
            folder = self._known.get(parent)
            # A dot may begin "..", or the name of a whiteout.
            if folder is not None and name and name[0] != _DOT:
                self._file(folder, name, entry, _S_IFREG, chunk)
                return
        try:
            self._add(entry, clean(entry.name), chunk)
        except ValueError as error:
            self._refuse(entry, str(error))

    def finish(self) -> None:
        """Makes the links whose targets came later, resolves whiteouts, gives directories their times."""
        if self._filler is not None:
            self._filler.wait()
        self.links.finish()
        needed = {path.rpartition(b"/")[0] for _, path, _ in self.links.missing}
        self.hollow = remove_hollow(self._folders, self._marked, self._folders.implied, needed)
        self.turned = resolve_pairs(self._folders, self._marked)
        if self._plinks:
            self._folders.remove(self._folders.top, PLINKS)
        self.implied = self._folders.still_implied()
        self._folders.close()

    def close(self) -> None:
        """Closes every descriptor but the root's; without :meth:`finish` before it, the tree is not complete."""
        self._folders.abandon()

    # Entries

    def _add(self, entry: Entry, path: bytes, chunk: Callable[[], memoryview]) -> None:
        parent, _, name = path.rpartition(b"/")
        kind = entry.type
        if is_whiteout(name) or is_leftover(path):
            self._marker(entry, path, name, chunk)
        elif kind == DIR:
            self._directory(entry, path)
        elif not name:
            self._refuse(entry, "the root of the layer can only be a directory")
        elif kind == REG:
            folder = self._parent(entry, path)
            spelling, _, last = entry.name.rpartition(b"/")
            # In "a/.." it is not the parent that stands before the slash.
            if folder.path == parent and last == name:
                self._folders.spell(spelling, folder)
            self._file(folder, name, entry, _S_IFREG, chunk)
        elif kind == SYM:
            self._symlink(self._parent(entry, path), name, entry)
        elif kind == LNK:
            self._hard_link(entry, path, name)
        else:
            self._special(entry, path, name)

    def _file(
        self, folder: Folder, name: bytes, entry: Entry, kind: int, chunk: Callable[[], memoryview] | None
    ) -> None:
        mode = entry.mode & DISK_MODES | 0o600
        value = b""
        if self._xattrs:
            key = (kind, entry.mode, entry.uid, entry.gid)
            value = self._values.get(key) or self.dress.value(key, entry)
        try:
            target = open(name, CREATE, mode, dir_fd=folder.descriptor)
        except FileExistsError:
            self._replace(folder, name, entry)
            target = open(name, CREATE, mode, dir_fd=folder.descriptor)
        except ValueError:
            self._refuse(entry, "the name holds a NUL byte")
        if self._filler is not None and chunk is not None and self._filler.takes(entry):
            self._filler.take(target, entry, value)
            return
        try:
            if not self._exact_modes:
                os.fchmod(target, mode)
            if value:
                set_attribute(target, OVERRIDE_STAT, value)
                if entry.xattrs:
                    self.dress.keep(target, entry)
            if chunk is not None:
                if entry.sparse is not None:
                    write_segments(target, entry, chunk)
                elif left := entry.stored:
                    while left:
                        piece = chunk()
                        left -= len(piece)
                        while (count := write(target, piece)) < len(piece):
                            piece = piece[count:]
            when = entry.mtime_ns
            if not 0 <= when <= MAX_TIME_NS:
                when = clamp_time(when)
            utime(target, ns=(when, when))
        finally:
            close(target)

    def _directory(self, entry: Entry, path: bytes) -> None:
        mode = disk_mode(stat.S_IFDIR, entry.mode)
        fresh = False
        folder = self._folders.top
        if path:
            folder, fresh = self._make_directory(entry, path, mode)
        if not fresh or not self._exact_modes:
            os.fchmod(folder.descriptor, mode)
        self._folders.implied.pop(folder.path, None)
        if self._xattrs:
            if not fresh:
                clear_attributes(folder.descriptor)
            key = (stat.S_IFDIR, entry.mode, entry.uid, entry.gid)
            set_attribute(folder.descriptor, OVERRIDE_STAT, self._values.get(key) or self.dress.value(key, entry))
            if entry.xattrs:
                self.dress.keep(folder.descriptor, entry)
        folder.mtime_ns = clamp_time(entry.mtime_ns)

    def _make_directory(self, entry: Entry, path: bytes, mode: int) -> tuple[Folder, bool]:
        """The open directory, and whether it is new."""
        parent = self._parent(entry, path)
        name = path.rpartition(b"/")[2]
        fresh = True
        try:
            os.mkdir(name, mode, dir_fd=parent.descriptor)
        except FileExistsError:
            there = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
            fresh = not stat.S_ISDIR(there.st_mode)
            if fresh:
                self._replace(parent, name, entry)
                os.mkdir(name, mode, dir_fd=parent.descriptor)
        real = parent.below(name)
        folder = self._folders.find(real) if not fresh else self._folders.adopt(parent, name, 0)
        assert folder is not None
        if real == path:
            self._folders.spell(path, folder)
        return folder, fresh

    def _symlink(self, folder: Folder, name: bytes, entry: Entry) -> None:
        target = entry.linkname
        if not target or b"\0" in target:
            self._refuse(entry, "the target of the symlink is empty or holds a NUL byte")
        try:
            os.symlink(target, name, dir_fd=folder.descriptor)
        except FileExistsError:
            self._replace(folder, name, entry)
            os.symlink(target, name, dir_fd=folder.descriptor)
        when = clamp_time(entry.mtime_ns)
        if sys.platform == "darwin" and self._xattrs:
            link = open(name, os.O_RDONLY | os.O_SYMLINK, dir_fd=folder.descriptor)
            try:
                set_attribute(link, OVERRIDE_STAT, override_stat(stat.S_IFLNK, entry.mode, entry.uid, entry.gid))
            finally:
                close(link)
        utime(name, ns=(when, when), dir_fd=folder.descriptor, follow_symlinks=False)

    def _hard_link(self, entry: Entry, path: bytes, name: bytes) -> None:
        try:
            target = clean(entry.linkname)
        except ValueError as error:
            self._refuse(entry, f"its link target: {error}")
        folder = self._parent(entry, path)
        if target == path and self.links.look_up(path) is not None:
            return
        self.links.add(entry.index, entry.name, folder, name, target)
        if target in self._plinks:
            self.placed.setdefault(self._plinks[target], self.placed.get(entry.index, path))

    def _special(self, entry: Entry, path: bytes, name: bytes) -> None:
        """Devices and FIFOs become empty files: only those can hold the attribute, and no reader can hang on them."""
        if entry.type in (CHR, BLK):
            if not (0 <= entry.devmajor <= _MAX_DEVICE and 0 <= entry.devminor <= _MAX_DEVICE):
                self._refuse(entry, "the device number is out of range")
            if entry.type == CHR and entry.devmajor == entry.devminor == 0:
                self.warnings.once("a character device 0:0 is kept as a device, not treated as a whiteout")
        self._file(self._parent(entry, path), name, entry, _KINDS[entry.type], None)

    def _marker(self, entry: Entry, path: bytes, name: bytes, chunk: Callable[[], memoryview]) -> None:
        """A whiteout, an opaque marker or what AUFS left at the top."""
        if is_leftover(path):
            if is_plink(path) and entry.type == REG:
                self._file(self._plink_folder(), name, entry, _S_IFREG, chunk)
                self._plinks[path] = entry.index
            else:
                self._folders.keeper.write(entry, chunk)
            return
        check_whiteout(name)
        try:
            folder = self._parent(entry, path, replace=False)
        except NotADirectoryError:
            # A file hides nothing below it.
            self._folders.keeper.write(entry, chunk)
            return
        if not folder.path and is_leftover(name):
            # A symlink led to the top, where only AUFS has such names.
            self._folders.keeper.write(entry, chunk)
            return
        entry.xattrs = None
        if entry.size and entry.type == REG:
            self.warnings.once("the content of a whiteout is ignored")
            self._folders.keeper.write(entry, chunk)
        self._file(folder, name, entry, _S_IFREG, None)
        self._marked[folder.path] = None

    def _plink_folder(self) -> Folder:
        folder = self._folders.find(PLINKS)
        if folder is None:
            os.mkdir(PLINKS, 0o700, dir_fd=self._folders.top.descriptor)
            folder = self._folders.adopt(self._folders.top, PLINKS, 0)
        return folder

    def _parent(self, entry: Entry, path: bytes, *, replace: bool = True) -> Folder:
        """The directory an entry goes into; raises as :meth:`Folders.reach` does."""
        parent, _, name = path.rpartition(b"/")
        folder = self._folders.reach(parent, replace=replace)
        if folder.path != parent:
            self.placed[entry.index] = folder.below(name)
        return folder

    def _replace(self, folder: Folder, name: bytes, entry: Entry) -> None:
        try:
            self._folders.remove(folder, name)
        except BadPath as error:
            self._refuse(entry, str(error))

    def _refuse(self, entry: Entry, what: str) -> NoReturn:
        raise LayerError(entry.index, entry.name, what) from None
