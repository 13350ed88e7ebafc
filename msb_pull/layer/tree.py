"""Writes the entries of one layer below one directory, and nowhere else.

Every operation goes through a directory descriptor that was reached component by component without following
symlinks; a symlink of the layer that stands in for a directory is resolved here, against the layer's own root, as a
chroot would. Paths are never compared or joined as strings to decide what is inside.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NoReturn

from msb_pull.layer.attributes import OVERRIDE_STAT, disk_mode, kept_attributes, override_stat
from msb_pull.layer.limits import LayerError, printable
from msb_pull.layer.names import clean
from msb_pull.layer.tar import BLK, CHR, DIR, FIFO, LNK, REG, SYM
from msb_pull.remove import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.layer.tar import Entry

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {REG: stat.S_IFREG, DIR: stat.S_IFDIR, CHR: stat.S_IFCHR, BLK: stat.S_IFBLK, FIFO: stat.S_IFIFO}
_WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_PLINKS = b".wh..wh.plnk"
_MAX_HOPS = 40
_MAX_OPEN = 256
_MAX_TIME = (1 << 63) - 1
_IMPLIED = override_stat(stat.S_IFDIR, 0o755, 0, 0)
_LINK_REFUSED = frozenset((errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS))


class TreeWriter:
    """One layer's tree below ``root``, an open descriptor of an empty directory that nobody else writes to.

    ``exact_modes`` says that the process's umask is 0, so that what is created needs no chmod. Without ``xattrs``
    nothing is kept of owners and modes but what the disk shows.
    """

    def __init__(self, root: int, *, xattrs: bool = True, exact_modes: bool = False) -> None:
        self.placed: dict[int, bytes] = {}
        self.implied: dict[bytes, None] = {b"": None}
        self.missing_links: list[tuple[int, bytes, bytes]] = []
        self.warnings: list[str] = []
        self._root = root
        self._xattrs = xattrs
        self._exact_modes = exact_modes
        self._open: dict[bytes, int] = {}
        self._times: dict[bytes, int] = {}
        self._queue: list[Entry] = []
        self._whiteouts: list[tuple[bytes, bytes]] = []
        self._plinks = False
        self._values: dict[tuple[int, int, int, int], bytes] = {}
        if xattrs:
            os.setxattr(root, OVERRIDE_STAT, _IMPLIED)

    def add(self, entry: Entry, chunk: Callable[[], memoryview]) -> None:
        """Writes one entry; ``chunk`` gives its payload piece by piece. Raises LayerError, OSError."""
        try:
            path = clean(entry.name)
        except ValueError as error:
            raise LayerError(entry.index, entry.name, str(error)) from None
        parent, _, name = path.rpartition(b"/")
        if name.startswith(_WHITEOUT) or path.startswith(_AUFS):
            self._marker(entry, path, parent, name, chunk)
            return
        kind = entry.type
        if kind == REG:
            if not name:
                self._refuse(entry, "the root of the layer can only be a directory")
            directory = self._parent(entry, path, parent)
            self._file(directory, name, entry, stat.S_IFREG, chunk)
        elif kind == DIR:
            self._directory(entry, path, parent, name)
        elif not name:
            self._refuse(entry, "the root of the layer can only be a directory")
        elif kind == SYM:
            self._symlink(self._parent(entry, path, parent), name, entry)
        elif kind == LNK:
            if not self._link(entry, path, parent, name):
                self._queue.append(entry)
        else:
            self._file(self._parent(entry, path, parent), name, entry, _KINDS[kind], None)

    def finish(self) -> None:
        """Makes the links whose targets came later, applies the whiteout rules, sets the times of directories."""
        self._settle_links()
        self._settle_whiteouts()
        if self._plinks:
            self._remove(self._root, _PLINKS, _PLINKS)
        for path in sorted(self._times):
            when = self._times[path]
            os.utime(self._find(path), ns=(when, when))
        self.close()

    def close(self) -> None:
        """Closes every descriptor but the root's."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    # Entries

    def _file(
        self, directory: int, name: bytes, entry: Entry, kind: int, chunk: Callable[[], memoryview] | None
    ) -> None:
        mode = disk_mode(stat.S_IFREG, entry.mode)
        try:
            target = os.open(name, _CREATE, mode, dir_fd=directory)
        except FileExistsError:
            self._remove(directory, name, self._path_of(entry))
            target = os.open(name, _CREATE, mode, dir_fd=directory)
        try:
            if not self._exact_modes:
                os.fchmod(target, mode)
            if self._xattrs:
                os.setxattr(target, OVERRIDE_STAT, self._value(kind, entry))
                if entry.xattrs:
                    self._keep_attributes(target, entry)
            if chunk is not None:
                if entry.sparse is not None:
                    _write_sparse(target, entry, chunk)
                else:
                    while piece := chunk():
                        while (written := os.write(target, piece)) < len(piece):
                            piece = piece[written:]
            when = _clamp(entry.mtime_ns)
            os.utime(target, ns=(when, when))
        finally:
            os.close(target)

    def _directory(self, entry: Entry, path: bytes, parent: bytes, name: bytes) -> None:
        mode = disk_mode(stat.S_IFDIR, entry.mode)
        if not name:
            target, real = self._root, b""
            os.fchmod(target, mode)
            self._clear_attributes(target)
        else:
            directory = self._parent(entry, path, parent)
            real = self.placed.get(entry.index, path)
            target = self._make_directory(directory, name, real, mode)
        if self._xattrs:
            os.setxattr(target, OVERRIDE_STAT, self._value(stat.S_IFDIR, entry))
            if entry.xattrs:
                self._keep_attributes(target, entry)
        self._times[real] = _clamp(entry.mtime_ns)
        self.implied.pop(real, None)

    def _make_directory(self, directory: int, name: bytes, path: bytes, mode: int) -> int:
        fresh = True
        try:
            os.mkdir(name, mode, dir_fd=directory)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                fresh = False
            else:
                self._remove(directory, name, path)
                os.mkdir(name, mode, dir_fd=directory)
        target = self._open.get(path)
        if target is None:
            target = self._remember(path, os.open(name, _OPEN_DIR, dir_fd=directory))
        if not fresh or not self._exact_modes:
            os.fchmod(target, mode)
        if not fresh:
            self._clear_attributes(target)
        return target

    def _symlink(self, directory: int, name: bytes, entry: Entry) -> None:
        try:
            os.symlink(entry.linkname, name, dir_fd=directory)
        except FileExistsError:
            self._remove(directory, name, self._path_of(entry))
            os.symlink(entry.linkname, name, dir_fd=directory)
        when = _clamp(entry.mtime_ns)
        os.utime(name, ns=(when, when), dir_fd=directory, follow_symlinks=False)

    def _link(self, entry: Entry, path: bytes, parent: bytes, name: bytes) -> bool:
        """Makes a hard link; False when its target is not (yet) in this layer."""
        try:
            target = clean(entry.linkname)
        except ValueError as error:
            self._refuse(entry, f"its link target: {error}")
        if not target:
            self._refuse(entry, "a hard link to a directory")
        found = self._look_up(target)
        if found is None:
            return False
        source, target_name, facts = found
        if stat.S_ISDIR(facts.st_mode):
            self._refuse(entry, "a hard link to a directory")
        directory = self._parent(entry, path, parent)
        try:
            self._hard_link(source, target_name, directory, name)
        except FileExistsError:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if (there.st_dev, there.st_ino) == (facts.st_dev, facts.st_ino):
                return True
            self._remove(directory, name, self._path_of(entry))
            # The removal may have closed the descriptors that led here, or taken the target with it.
            found = self._look_up(target)
            if found is None:
                return False
            self._hard_link(found[0], found[1], self._parent(entry, path, parent), name)
        finally:
            os.close(source)
        return True

    def _hard_link(self, source: int, target: bytes, directory: int, name: bytes) -> None:
        try:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _LINK_REFUSED:
                raise
            _copy(source, target, directory, name)

    def _marker(self, entry: Entry, path: bytes, parent: bytes, name: bytes, chunk: Callable[[], memoryview]) -> None:
        """A whiteout, an opaque marker or what AUFS left at the top."""
        if path.startswith(_AUFS) and not path.startswith(OPAQUE):
            if path.partition(b"/")[0] == _PLINKS and parent and entry.type == REG:
                self._plinks = True
                self._file(self._parent(entry, path, parent), name, entry, stat.S_IFREG, chunk)
            return
        if name in (_WHITEOUT, _WHITEOUT + b".", _WHITEOUT + b".."):
            self._refuse(entry, "a whiteout of nothing")
        directory = self._parent(entry, path, parent)
        entry.xattrs = None
        self._file(directory, name, entry, stat.S_IFREG, None)
        if name != OPAQUE:
            real = self.placed.get(entry.index, path)
            self._whiteouts.append((real.rpartition(b"/")[0], name))

    # Attributes

    def _value(self, kind: int, entry: Entry) -> bytes:
        key = (kind, entry.mode, entry.uid, entry.gid)
        value = self._values.get(key)
        if value is None:
            value = override_stat(*key)
            if len(self._values) < 4096:
                self._values[key] = value
        return value

    def _keep_attributes(self, target: int, entry: Entry) -> None:
        for name, value in kept_attributes(entry.xattrs or {}):
            try:
                os.setxattr(target, name, value)
            except OSError as error:
                where = f'entry {entry.index} "{printable(entry.name)}"'
                self.warnings.append(f'{where}: attribute "{printable(name)}" not kept ({error.strerror})')

    def _clear_attributes(self, target: int) -> None:
        if self._xattrs:
            for name in os.listxattr(target):
                if name.startswith("user."):
                    os.removexattr(target, name)

    # Paths

    def _refuse(self, entry: Entry, what: str) -> NoReturn:
        raise LayerError(entry.index, entry.name, what)

    def _path_of(self, entry: Entry) -> bytes:
        return self.placed.get(entry.index) or clean(entry.name)

    def _parent(self, entry: Entry, path: bytes, parent: bytes) -> int:
        """The descriptor of an entry's directory, which is made where it is missing."""
        if not parent:
            return self._root
        known = self._open.get(parent)
        if known is not None:
            return known
        try:
            descriptor, real = self._walk(parent, entry)
        except RecursionError:
            self._refuse(entry, "too many symlinks on the way to it")
        if real != parent:
            name = path.rpartition(b"/")[2]
            self.placed[entry.index] = real + b"/" + name if real else name
        return descriptor

    def _walk(self, path: bytes, entry: Entry | None) -> tuple[int, bytes]:
        """Opens the directory that ``path`` leads to; with ``entry`` what is missing is made, else raises OSError."""
        real: list[bytes] = []
        ahead = path.split(b"/")[::-1]
        hops = 0
        current = self._root
        while ahead:
            part = ahead.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if real:
                    real.pop()
                current = self._find(b"/".join(real))
                continue
            here = b"/".join((*real, part))
            known = self._open.get(here)
            if known is None:
                known, hop = self._step(current, part, here, entry)
                if hop is not None:
                    hops += 1
                    if hops > _MAX_HOPS:
                        raise RecursionError
                    if hop.startswith(b"/"):
                        real, current = [], self._root
                    ahead.extend(hop.split(b"/")[::-1])
                    continue
            real.append(part)
            current = known
        return current, b"/".join(real)

    def _step(self, directory: int, part: bytes, here: bytes, entry: Entry | None) -> tuple[int, bytes | None]:
        """One component: its open descriptor, or the target of the symlink that stands there."""
        if part.startswith(_WHITEOUT) and here != _PLINKS and entry is not None:
            self._refuse(entry, "a directory of its path has the name of a whiteout")
        try:
            return self._remember(here, os.open(part, _OPEN_DIR, dir_fd=directory)), None
        except FileNotFoundError:
            if entry is None:
                raise
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            if stat.S_ISLNK(os.stat(part, dir_fd=directory, follow_symlinks=False).st_mode):
                return -1, os.readlink(part, dir_fd=directory)
            if entry is None:
                raise
            # As umoci does: what needs a directory here gets one, whatever stood there.
            self.warnings.append(f'"{printable(here)}" was a file and became a directory')
            self._remove(directory, part, here)
            directory = self._find(here.rpartition(b"/")[0])
        os.mkdir(part, 0o755, dir_fd=directory)
        made = self._remember(here, os.open(part, _OPEN_DIR, dir_fd=directory))
        if not self._exact_modes:
            os.fchmod(made, 0o755)
        if self._xattrs:
            os.setxattr(made, OVERRIDE_STAT, _IMPLIED)
        if here != _PLINKS:
            self.implied[here] = None
        return made, None

    def _find(self, path: bytes) -> int:
        """The descriptor of a directory that is there, by its real path."""
        if not path:
            return self._root
        return self._open.get(path) or self._walk(path, None)[0]

    def _look_up(self, path: bytes) -> tuple[int, bytes, os.stat_result] | None:
        """A fresh descriptor of the directory of ``path``, the last name, and what stands there; None if nothing."""
        parent, _, name = path.rpartition(b"/")
        try:
            directory = self._walk(parent, None)[0] if parent else self._root
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, RecursionError):
            return None
        return os.dup(directory), name, facts

    def _remember(self, path: bytes, descriptor: int) -> int:
        if len(self._open) >= _MAX_OPEN:
            for old in list(self._open)[: _MAX_OPEN // 2]:
                # The walk that is under way may stand on one of its ancestors.
                if not path.startswith(old + b"/"):
                    os.close(self._open.pop(old))
        self._open[path] = descriptor
        return descriptor

    def _remove(self, directory: int, name: bytes, path: bytes) -> None:
        """Takes away what stands in the way. Every remembered descriptor may have led through it."""
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)
            return
        remove_tree(name, directory)
        below = path + b"/"
        for known in [x for x in self._open if x == path or x.startswith(below)]:
            os.close(self._open.pop(known))
        for facts in (self._times, self.implied):
            for known in [x for x in facts if x == path or x.startswith(below)]:
                del facts[known]
        self._whiteouts = [x for x in self._whiteouts if x[0] != path and not x[0].startswith(below)]

    # The end of the layer

    def _settle_links(self) -> None:
        waiting = self._queue
        while waiting:
            still = []
            for entry in waiting:
                path = clean(entry.name)
                parent, _, name = path.rpartition(b"/")
                if path == clean(entry.linkname) or self._link(entry, path, parent, name):
                    continue
                still.append(entry)
            if len(still) == len(waiting):
                break
            waiting = still
        for entry in waiting:
            path = clean(entry.name)
            self._parent(entry, path, path.rpartition(b"/")[0])
            self.missing_links.append((entry.index, self._path_of(entry), clean(entry.linkname)))

    def _settle_whiteouts(self) -> None:
        """A whiteout hides what lies below, never what came with it: that stays, and an own directory turns opaque."""
        for parent, name in self._whiteouts:
            directory = self._find(parent)
            hidden = name[len(_WHITEOUT) :]
            try:
                facts = os.stat(hidden, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            try:
                if stat.S_ISDIR(facts.st_mode):
                    inside = self._find(parent + b"/" + hidden if parent else hidden)
                    os.rename(name, OPAQUE, src_dir_fd=directory, dst_dir_fd=inside)
                else:
                    os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                # The same whiteout stood twice in the layer.
                continue


def _clamp(nanoseconds: int) -> int:
    """Times before 1970 or beyond what a file system may take become the nearest it takes (moby's boundTime)."""
    if nanoseconds < 0:
        return 0
    return min(nanoseconds, _MAX_TIME)


def _write_sparse(target: int, entry: Entry, chunk: Callable[[], memoryview]) -> None:
    os.ftruncate(target, entry.size)
    piece = memoryview(b"")
    for offset, length in entry.sparse or ():
        end = offset + length
        while offset < end:
            piece = piece or chunk()
            count = os.pwrite(target, piece[: end - offset], offset)
            offset += count
            piece = piece[count:]


def _copy(source: int, target: bytes, directory: int, name: bytes) -> None:
    """A copy in place of a hard link that the file system refuses."""
    facts = os.stat(target, dir_fd=source, follow_symlinks=False)
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(target, dir_fd=source), name, dir_fd=directory)
        os.utime(name, ns=(facts.st_mtime_ns, facts.st_mtime_ns), dir_fd=directory, follow_symlinks=False)
        return
    original = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        copy = os.open(name, _CREATE, stat.S_IMODE(facts.st_mode), dir_fd=directory)
        try:
            copy_contents(original, copy)
            os.utime(copy, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
        finally:
            os.close(copy)
    finally:
        os.close(original)


def copy_contents(original: int, copy: int) -> None:
    """Copies mode, ``user.`` attributes and bytes between open files, in the kernel where it can."""
    facts = os.fstat(original)
    os.fchmod(copy, stat.S_IMODE(facts.st_mode))
    for attribute in os.listxattr(original):
        if attribute.startswith("user."):
            os.setxattr(copy, attribute, os.getxattr(original, attribute))
    left = facts.st_size
    while left:
        try:
            count = os.copy_file_range(original, copy, left)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            count = os.write(copy, os.read(original, min(left, 1 << 20)))
        if not count:
            break
        left -= count
