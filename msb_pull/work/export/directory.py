"""Writes a tree as a folder: with owners and devices of its own, or with what others keep of them in attributes."""

from __future__ import annotations

import os
import stat
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING

from msb_pull.disk.behind import one_place
from msb_pull.ground.below import Trail, create_file
from msb_pull.ground.errors import LocalError, UsageError
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.attributes import (
    MAX_TIME_NS,
    OVERRIDE_STAT,
    disk_mode,
    disk_name,
    override_stat,
    set_attribute,
)
from msb_pull.layer.tree.holes import share_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from msb_pull.work.export.tree import Inode

# Who reads what is kept of owners, full modes and devices: the kernel; macOS libkrun and fuse-overlayfs; Microsandbox.
NATIVE, CONTAINERS, MICROSANDBOX = STATS = ("native", "containers", "microsandbox")
# Smaller files are written faster than blocks are shared.
_WORTH_SHARING = 1 << 17
_MSB_OVERRIDE_STAT = b"user.msb.override_stat"


def chosen_stat(asked: str | None) -> str:
    """How owners are kept: as asked, else natively by root alone. Raises UsageError."""
    if asked is None:
        return NATIVE if os.geteuid() == 0 else CONTAINERS
    if asked not in STATS:
        raise UsageError(f"--stat: {asked!r} is not one of {', '.join(STATS)}")
    if asked == NATIVE and os.geteuid() != 0:
        hint = "become root, or choose --stat containers"
        raise UsageError("--stat native: only root can set owners and make devices", hint=hint)
    return asked


def write_directory(inodes: Sequence[Inode], root: int, how: str, progress: Callable[[int], None]) -> int:
    """Fills the open and empty directory ``root``; returns how many bytes of content were written.

    ``how`` is one of :data:`STATS`. Raises ContentError for damaged content, LocalError, OSError.
    """
    return _Writer(root, how, progress).write(inodes)


class _Writer:
    def __init__(self, root: int, how: str, progress: Callable[[int], None]) -> None:
        self._here = Trail(root)
        self._there = Trail(root)
        self._native = how == NATIVE
        self._shares = True
        self._room = one_place()
        self._how = how
        self._progress = progress
        self._folder = self._here.reach(b"")

    def write(self, inodes: Sequence[Inode]) -> int:
        written = 0
        try:
            for inode in inodes:
                written += self._make(inode)
            # Every new name changes the time of its directory, and a closed one takes none.
            for inode in reversed(inodes):
                if inode.kind == stat.S_IFDIR:
                    self._dress(inode, self._here.reach(inode.path))
        finally:
            self._here.close()
            self._there.close()
        return written

    def _make(self, inode: Inode) -> int:
        parent, _, name = inode.path.rpartition(b"/")
        if not inode.path:
            return 0
        self._folder = self._here.reach(parent)
        if inode.link_of is not None:
            self._link(inode.link_of, name)
        elif inode.kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=self._folder)
        elif inode.kind == stat.S_IFLNK:
            os.symlink(inode.target, name, dir_fd=self._folder)
            self._dress_link(inode, name)
        elif inode.kind != stat.S_IFREG and self._native:
            os.mknod(name, inode.kind | 0o600, os.makedev(*inode.device), dir_fd=self._folder)
            self._dress_special(inode, name)
        else:
            return self._file(inode, name)
        return 0

    def _file(self, inode: Inode, name: bytes) -> int:
        handle = create_file(name, self._folder)
        try:
            if inode.kind == stat.S_IFREG:
                self._fill(inode, handle)
            self._dress(inode, handle)
        finally:
            os.close(handle)
        return inode.stored if inode.kind == stat.S_IFREG else 0

    def _fill(self, inode: Inode, handle: int) -> None:
        shared = self._shared(inode, handle)
        for offset, piece in inode.pieces(self._room):
            view = memoryview(b"" if shared else piece)
            while view:
                count = os.pwrite(handle, view, offset)
                view, offset = view[count:], offset + count
            self._progress(len(piece))
        if inode.segments is not None:
            os.ftruncate(handle, inode.size)

    def _shared(self, inode: Inode, handle: int) -> bool:
        """Whether the new file shares the blocks of the layer's: nothing is written then, and neither sees the other's
        changes. The layer's file, which has the same blocks, is read for its checksum all the same, so other copies in
        the kernel gain nothing."""
        if not self._shares or inode.stored < _WORTH_SHARING:
            return False
        original = inode.open()
        if original is None:
            return False
        try:
            self._shares = share_blocks(original, handle)
        finally:
            os.close(original)
        return self._shares

    def _link(self, first: bytes, name: bytes) -> None:
        above, _, last = first.rpartition(b"/")
        folder = self._there.reach(above)
        os.link(last, name, src_dir_fd=folder, dst_dir_fd=self._folder, follow_symlinks=False)

    # What is said of them

    def _dress(self, inode: Inode, handle: int) -> None:
        """Owner before mode, since a change of owner takes set-uid and capabilities away."""
        if self._native:
            os.fchown(handle, inode.uid, inode.gid)
            os.fchmod(handle, inode.mode)
            attributes = inode.xattrs
        else:
            on_disk = stat.S_IFDIR if inode.kind == stat.S_IFDIR else stat.S_IFREG
            os.fchmod(handle, disk_mode(on_disk, inode.mode))
            attributes = {kept: value for key, value in inode.xattrs.items() if (kept := disk_name(key))}
            key, value = self._override(inode)
            attributes[key] = value
        _set_all(inode, attributes, partial(set_attribute, handle))
        os.utime(handle, ns=_times(inode))

    def _override(self, inode: Inode) -> tuple[bytes, bytes]:
        if self._how == CONTAINERS:
            return OVERRIDE_STAT, override_stat(inode.kind, inode.mode, inode.uid, inode.gid)
        major, minor = inode.device
        # As Linux packs the number of a device into 32 bits.
        device = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
        packed = struct.pack("<B3xIIII", 1, inode.uid, inode.gid, inode.kind | inode.mode, device)
        return _MSB_OVERRIDE_STAT, packed

    def _dress_link(self, inode: Inode, name: bytes) -> None:
        if self._native:
            os.chown(name, inode.uid, inode.gid, dir_fd=self._folder, follow_symlinks=False)
        os.utime(name, ns=_times(inode), dir_fd=self._folder, follow_symlinks=False)

    def _dress_special(self, inode: Inode, name: bytes) -> None:
        os.chown(name, inode.uid, inode.gid, dir_fd=self._folder, follow_symlinks=False)
        os.chmod(name, inode.mode, dir_fd=self._folder)
        # Linux takes none of the others for what is neither a file nor a folder (xattr(7)).
        attributes = {key: value for key, value in inode.xattrs.items() if not key.startswith(b"user.")}
        if sys.platform == "linux":
            # Opening a device would wake it, and setxattrat is newer than most kernels.
            place = b"/proc/self/fd/%d/%s" % (self._folder, name)
            _set_all(inode, attributes, partial(os.setxattr, place, follow_symlinks=False))
        os.utime(name, ns=_times(inode), dir_fd=self._folder, follow_symlinks=False)


def _set_all(inode: Inode, attributes: Mapping[bytes, bytes], put: Callable[[bytes, bytes], None]) -> None:
    try:
        for key, value in sorted(attributes.items()):
            put(key, value)
    except OSError as error:
        what = f"{visible_bytes(inode.path)}: the attribute {visible_bytes(key)} cannot be set"
        raise LocalError(what, cause=error.strerror, hint="choose another place with -o, or export a tar") from error


def _times(inode: Inode) -> tuple[int, int]:
    """The time of an inode, or the nearest that the system can be told."""
    when = min(max(inode.mtime_ns, -MAX_TIME_NS), MAX_TIME_NS)
    return when, when
