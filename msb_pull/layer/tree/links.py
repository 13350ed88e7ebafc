"""Hard links of one layer: made at once where the target is there, else when it has come, else left for settling."""

from __future__ import annotations

import errno
import os
import stat

from msb_pull.ground.below import create_file, look, open_file
from msb_pull.layer.attributes import disk_mode, set_attribute, user_attributes
from msb_pull.layer.limits import LayerError
from msb_pull.layer.rules import BadPath, is_whiteout, join, make_waiting
from msb_pull.layer.tree.holes import TooMuch, copy_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from msb_pull.layer.tree.folders import Folder, Folders

# Other devices, too many links, file systems or policies without hard links: then a copy does.
REFUSED = frozenset((errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))
COPIES = "copies of files that cannot be hard-linked exceed the layer's size limit"


class _Link:
    __slots__ = ("folder", "index", "name", "shown", "target")

    def __init__(self, index: int, shown: bytes, folder: bytes, name: bytes, target: bytes) -> None:
        self.index = index
        self.shown = shown
        self.folder = folder
        self.name = name
        self.target = target

    @property
    def path(self) -> bytes:
        return join(self.folder, self.name)

    def refuse(self, what: str) -> LayerError:
        return LayerError(self.index, self.shown, what)


class Links:
    """``missing`` holds, after :meth:`finish`, what has no target in this layer: (entry index, path, target).

    ``copied`` holds the entry indexes of those that the file system refused, and that are copies; ``room`` is how many
    bytes these may take.
    """

    def __init__(self, folders: Folders, room: int) -> None:
        self.room = room
        self.missing: list[tuple[int, bytes, bytes]] = []
        self.copied: list[int] = []
        self._folders = folders
        self._waiting: dict[bytes, _Link] = {}

    def add(self, index: int, shown: bytes, folder: Folder, name: bytes, target: bytes) -> None:
        """Makes a link at ``name`` in ``folder`` to the clean path ``target``; raises LayerError, OSError.

        ``shown`` is the entry's name for messages.
        """
        link = _Link(index, shown, folder.path, name, target)
        if not target:
            raise link.refuse("a hard link to a directory")
        if is_whiteout(target.rpartition(b"/")[2]):
            raise link.refuse("a hard link to a whiteout")
        if not self._make(link):
            # A later entry of that name wins over this one, an earlier one does not.
            self._clear(link)
            self._waiting.pop(link.path, None)
            self._waiting[link.path] = link

    def finish(self) -> None:
        """Makes the links whose targets came later, in whatever order; notes those without any."""
        pending = [link for link in self._waiting.values() if not self._taken(link)]
        left = make_waiting(pending, lambda link: link.path, self._leads_to, self._make)
        self.missing = sorted((link.index, link.path, link.target) for link in left)

    def look_up(self, path: bytes) -> tuple[Folder, bytes, os.stat_result] | None:
        """What stands at a clean path, symlinks followed on the way but not at its end; None for nothing."""
        parent, _, name = path.rpartition(b"/")
        folder = self._folders.find(parent) or self._folders.find(self._folders.resolve(parent))
        if folder is None:
            return None
        facts = look(name, folder.descriptor)
        return None if facts is None else (folder, name, facts)

    def _leads_to(self, link: _Link) -> bytes:
        parent, _, name = link.target.rpartition(b"/")
        if self._folders.find(parent) is not None:
            return link.target
        try:
            return join(self._folders.resolve(parent), name)
        except BadPath as error:
            raise link.refuse(f"its link target: {error}") from None

    def _make(self, link: _Link) -> bool:
        """False when the target is not there."""
        try:
            found = self.look_up(link.target)
        except BadPath as error:
            raise link.refuse(f"its link target: {error}") from None
        if found is None:
            return False
        source, source_name, facts = found
        if stat.S_ISDIR(facts.st_mode):
            raise link.refuse("a hard link to a directory")
        # Finding the one directory may close the other.
        held = os.dup(source.descriptor)
        try:
            return self._place(held, source_name, facts, link)
        finally:
            os.close(held)

    def _place(self, source: int, name: bytes, facts: os.stat_result, link: _Link) -> bool:
        try:
            folder = self._folders.reach(link.folder)
        except BadPath as error:
            raise link.refuse(str(error)) from None
        try:
            self._link(source, name, folder.descriptor, link)
        except FileExistsError:
            there = os.stat(link.name, dir_fd=folder.descriptor, follow_symlinks=False)
            if (there.st_dev, there.st_ino) == (facts.st_dev, facts.st_ino):
                return True
            self._remove(folder, link)
            try:
                self._link(source, name, folder.descriptor, link)
            except FileNotFoundError:
                # The target stood below what had to give way.
                return False
        return True

    def _link(self, source: int, target: bytes, directory: int, link: _Link) -> None:
        try:
            # With directory descriptors Python would follow a symlink at the end.
            os.link(target, link.name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            self._folders.keeper.filled()
            try:
                self.room -= _copy_entry(source, target, directory, link.name, self.room)
            except TooMuch:
                raise link.refuse(COPIES) from None
            self.copied.append(link.index)

    def _taken(self, link: _Link) -> bool:
        folder = self._folders.find(link.folder)
        return folder is None or look(link.name, folder.descriptor) is not None

    def _clear(self, link: _Link) -> None:
        folder = self._folders.reach(link.folder)
        if look(link.name, folder.descriptor) is not None:
            self._remove(folder, link)

    def _remove(self, folder: Folder, link: _Link) -> None:
        try:
            self._folders.remove(folder, link.name)
        except BadPath as error:
            raise link.refuse(str(error)) from None


def _copy_entry(source: int, name: bytes, directory: int, new: bytes, room: int) -> int:
    """Copies what stands at ``name`` in an open directory, never following it; ``new`` must be free.

    Returns how many bytes were copied; raises TooMuch before they are more than ``room``, OSError.
    """
    facts = os.stat(name, dir_fd=source, follow_symlinks=False)
    when = (facts.st_mtime_ns, facts.st_mtime_ns)
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), new, dir_fd=directory)
        os.utime(new, ns=when, dir_fd=directory, follow_symlinks=False)
        return 0
    original = open_file(name, source)
    try:
        copy = create_file(new, directory)
        try:
            # Only as much of the mode as gets onto the disk.
            os.fchmod(copy, disk_mode(stat.S_IFREG, facts.st_mode))
            for attribute, value in user_attributes(original):
                set_attribute(copy, attribute, value)
            done = copy_bytes(original, copy, room)
            os.utime(copy, ns=when)
            return done
        finally:
            os.close(copy)
    finally:
        os.close(original)
