"""The directories of one layer: reached without ever following a symlink, kept open while files are put into them.

Every descriptor was opened from that of its parent with O_NOFOLLOW. A symlink of the layer that stands in for a
directory is resolved here, against the layer's own root, as a chroot would (containerd's RootPath).
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import sys

from msb_pull.ground.below import create_file, look, open_directory
from msb_pull.ground.remove import listed, remove_tree
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.attributes import IMPLIED, IMPLIED_MODE, OVERRIDE_STAT, set_attribute
from msb_pull.layer.limits import MAX_NOTED, NOTE
from msb_pull.layer.rules import BadPath, join, resolve
from msb_pull.layer.tree.kept import Keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_OPEN = 128
_MAX_ALIASES = 4096


class Folder:
    """An open directory. ``mtime_ns`` is what it gets when it is closed, since every new child changes its time."""

    __slots__ = ("descriptor", "mtime_ns", "path", "spellings")

    def __init__(self, path: bytes, descriptor: int, mtime_ns: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.mtime_ns = mtime_ns
        self.spellings: list[bytes] = []

    def below(self, name: bytes) -> bytes:
        """The path of a child."""
        return join(self.path, name)


class Folders:
    """Finds and makes directories below ``root``, a descriptor that stays open.

    ``known`` maps parent paths as the archive spells them to open folders; only spellings that no symlink takes part
    in. ``implied`` holds the directories that were made without an entry of their own, ``b""`` being the top.
    """

    def __init__(
        self, root: int, *, xattrs: bool, exact_modes: bool, warn: Callable[[str], None], top_mtime_ns: int = 0
    ) -> None:
        self.top = Folder(b"", root, top_mtime_ns)
        self.known: dict[bytes, Folder] = {b"": self.top}
        self.implied: dict[bytes, None] = {b"": None}
        self._implied_room = MAX_NOTED
        self.replaced = 0
        self.keeper = Keeper(root)
        self._warn = warn
        self._xattrs = xattrs
        self._exact_modes = exact_modes
        self._open: dict[bytes, Folder] = {b"": self.top}
        self._aliases: dict[bytes, bytes] = {}
        self._folds_names = _folds_names(root)
        self._max_open = _max_open()

    def reach(self, path: bytes, *, replace: bool = True) -> Folder:
        """The directory that a clean ``path`` leads to; what is missing on the way is made. Raises BadPath, OSError.

        A file in the way gives way to a directory; unless ``replace``, NotADirectoryError is raised instead.
        """
        folder = self._open.get(path) or self._open.get(self._aliases.get(path, path))
        if folder is not None:
            return folder
        if path not in self._aliases and (folder := self.find(path)) is not None:
            return folder
        real = self._aliases.get(path)
        if real is None:
            real = self.resolve(path)
            if real != path and len(self._aliases) < _MAX_ALIASES:
                self._aliases[path] = real
        return self.make(real, replace=replace)

    def find(self, path: bytes) -> Folder | None:
        """The directory that is there by its real path, None if there is none; raises OSError."""
        try:
            return self._descend(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None

    def resolve(self, path: bytes) -> bytes:
        """Where ``path`` leads when symlinks of the layer are followed (:func:`rules.resolve`); raises BadPath."""
        return resolve(path, self._look)

    def adopt(self, folder: Folder, name: bytes, mtime_ns: int) -> Folder:
        """Opens a directory that was just made or found in ``folder``; it gets ``mtime_ns`` in the end."""
        path = folder.below(name)
        descriptor = open_directory(name, folder.descriptor)
        return self._remember(Folder(path, descriptor, mtime_ns))

    def spell(self, spelling: bytes, folder: Folder) -> None:
        """Lets ``known`` lead from a parent path as the archive has it to its folder."""
        if spelling not in self.known:
            self.known[spelling] = folder
            folder.spellings.append(spelling)

    def remove(self, folder: Folder, name: bytes) -> None:
        """Removes what stands in the way of a new entry; raises OSError, BadPath for a name that only looks equal."""
        if self._folds_names:
            self._check_spelling(folder, name)
        self.replaced += 1
        facts = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
        if not stat.S_ISDIR(facts.st_mode):
            self.keeper.discard(folder.descriptor, name)
            if stat.S_ISLNK(facts.st_mode):
                self._aliases.clear()
            return
        self.release(folder.below(name))
        remove_tree(name, folder.descriptor, discard=self.keeper.discard)

    def release(self, path: bytes) -> None:
        """Forgets a directory, which is about to go or to move, and all below it."""
        inside = path + b"/"
        for known in [x for x in self._open.values() if x.path == path or x.path.startswith(inside)]:
            self._close(known)
        self._aliases.clear()

    def close(self) -> None:
        """Gives every open directory its time, and closes all but the root."""
        for folder in list(self._open.values())[1:]:
            self._close(folder)
        os.utime(self.top.descriptor, ns=(self.top.mtime_ns, self.top.mtime_ns))

    def abandon(self) -> None:
        """Closes all but the root, and leaves their times."""
        for folder in list(self._open.values())[1:]:
            os.close(folder.descriptor)
        self._open = {b"": self.top}
        self.known = {b"": self.top}

    def still_implied(self) -> list[bytes]:
        """The implied directories that are there in the end, parents first."""
        if self.replaced:
            return [path for path in self.implied if self.find(path) is not None]
        return list(self.implied)

    def _look(self, path: bytes) -> bytes | bool | None:
        parent, _, name = path.rpartition(b"/")
        folder = self._descend(parent)
        facts = look(name, folder.descriptor)
        if facts is None:
            return None
        if stat.S_ISLNK(facts.st_mode):
            return os.readlink(name, dir_fd=folder.descriptor)
        return stat.S_ISDIR(facts.st_mode)

    def _nearest(self, path: bytes) -> tuple[Folder, list[bytes]]:
        """The nearest open directory on the way to ``path``, and the names from there, the last one first."""
        pending = []
        while (folder := self._open.get(path)) is None:
            path, _, part = path.rpartition(b"/")
            pending.append(part)
        return folder, pending

    def _descend(self, path: bytes) -> Folder:
        """Opens ``path`` from its nearest open ancestor; raises OSError unless it is directories all the way."""
        folder, pending = self._nearest(path)
        while pending:
            part = pending.pop()
            if self._folds_names:
                self._check_spelling(folder, part)
            descriptor = open_directory(part, folder.descriptor)
            mtime_ns = os.fstat(descriptor).st_mtime_ns
            folder = self._remember(Folder(folder.below(part), descriptor, mtime_ns))
        return folder

    def make(self, path: bytes, *, replace: bool = True) -> Folder:
        """The directory at a real path, with what is missing on the way; ``replace`` as for :meth:`reach`."""
        folder, pending = self._nearest(path)
        while pending:
            part = pending.pop()
            try:
                folder = self._descend(folder.below(part))
            except FileNotFoundError:
                folder = self._make(folder, part)
            except NotADirectoryError:
                if not replace:
                    raise
                # As umoci does: what needs a directory here gets one, whatever stood there.
                self._warn(f'"{visible_bytes(folder.below(part))}" was a file and became a directory')
                self.remove(folder, part)
                folder = self._make(folder, part)
                # The file replaced the lower directory, whose attributes no longer apply.
                del self.implied[folder.path]
        return folder

    def _make(self, folder: Folder, name: bytes) -> Folder:
        # One entry may imply a thousand directories, each reported with its whole path.
        self._implied_room -= len(folder.path) + len(name) + NOTE
        if self._implied_room < 0:
            raise BadPath("more directories without an entry of their own than a layer may have")
        os.mkdir(name, IMPLIED_MODE, dir_fd=folder.descriptor)
        made = self.adopt(folder, name, 0)
        if not self._exact_modes:
            os.fchmod(made.descriptor, IMPLIED_MODE)
        if self._xattrs:
            set_attribute(made.descriptor, OVERRIDE_STAT, IMPLIED)
        self.implied[made.path] = None
        return made

    def _remember(self, folder: Folder) -> Folder:
        if len(self._open) >= self._max_open:
            # The oldest ones: archives go through a tree depth first.
            for old in list(self._open.values())[1 : 1 + self._max_open // 4]:
                self._close(old)
        self._open[folder.path] = folder
        return folder

    def _close(self, folder: Folder) -> None:
        os.utime(folder.descriptor, ns=(folder.mtime_ns, folder.mtime_ns))
        os.close(folder.descriptor)
        folder.descriptor = -1
        del self._open[folder.path]
        for spelling in folder.spellings:
            del self.known[spelling]

    def _check_spelling(self, folder: Folder, name: bytes) -> None:
        """On a file system that folds names, checks that the entry at ``name`` has exactly that name."""
        names = [other for other, _ in listed(folder.descriptor)]
        if name in names:
            return
        facts = look(name, folder.descriptor)
        if facts is None:
            return
        for other in names:
            if os.stat(other, dir_fd=folder.descriptor, follow_symlinks=False).st_ino == facts.st_ino:
                raise BadPath(
                    f'the file system takes it to be "{visible_bytes(folder.below(other))}"; '
                    "this image needs a case-sensitive volume"
                )


def _max_open() -> int:
    """How many directories may be open, leaving room for other files even under a low limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_OPEN if soft == resource.RLIM_INFINITY else max(8, min(_MAX_OPEN, soft // 4))


def _folds_names(root: int) -> bool:
    """Whether the file system treats different names as equal (case, or on macOS Unicode forms)."""
    if sys.platform == "darwin":
        return True
    os.close(create_file(b".Probe", root))
    try:
        return look(b".pROBE", root) is not None
    finally:
        os.unlink(b".Probe", dir_fd=root)
