"""Removes and measures trees of an image's making: by descriptors, never through a symlink, at any depth."""

from __future__ import annotations

import errno
import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(
    name: bytes | str | os.PathLike[str],
    directory: int | None = None,
    *,
    deadline: float | None = None,
    discard: Callable[[int, bytes], None] | None = None,
) -> bool:
    """Removes the directory ``name`` (in the open ``directory``) with all it holds; raises OSError.

    Directories without permissions are opened up on the way. Deep trees cost no recursion: what lies deeper than a
    few levels is first moved up. Another file system that is mounted inside is left alone, with an error. False when
    ``deadline`` (time.monotonic) passed first. ``discard`` takes away what is no directory, by the open directory it
    lies in and its name there.
    """
    discard = discard or _unlink
    root = _open_inside(directory, name)
    try:
        device = os.fstat(root).st_dev
        serial = 0
        while folders := _empty(root, discard):
            for folder in folders:
                if deadline is not None and time.monotonic() > deadline:
                    return False
                # Emptying one level and moving its folders up keeps the number of open descriptors at two.
                serial = _flatten(root, folder, serial, device, discard)
    finally:
        os.close(root)
    os.rmdir(name, dir_fd=directory)
    return True


def _flatten(root: int, folder: bytes, serial: int, device: int, discard: Callable[[int, bytes], None]) -> int:
    inner = _open_inside(root, folder)
    try:
        if os.fstat(inner).st_dev != device:
            raise OSError(errno.EBUSY, "another file system is mounted here", os.fsdecode(folder))
        for child in _empty(inner, discard):
            while True:
                try:
                    os.rename(child, b".removed-%d" % serial, src_dir_fd=inner, dst_dir_fd=root)
                    break
                except PermissionError:
                    # Moving a directory writes its "..".
                    os.chmod(child, 0o700, dir_fd=inner)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY):
                        raise
                    serial += 1
            serial += 1
    finally:
        os.close(inner)
    os.rmdir(folder, dir_fd=root)
    return serial


def _open_inside(directory: int | None, name: bytes | str | os.PathLike[str]) -> int:
    try:
        return os.open(name, _OPEN_DIR, dir_fd=directory)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=directory)
        return os.open(name, _OPEN_DIR, dir_fd=directory)


def _unlink(directory: int, name: bytes) -> None:
    os.unlink(name, dir_fd=directory)


def _empty(directory: int, discard: Callable[[int, bytes], None]) -> list[bytes]:
    """Takes everything out of a directory but its folders, which are returned."""
    if os.fstat(directory).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(directory, 0o700)
    folders = []
    for name, is_folder in listed(directory):
        if is_folder:
            folders.append(name)
        else:
            discard(directory, name)
    return folders


def listed(directory: int) -> list[tuple[bytes, bool]]:
    """The names in an open directory as they are now, and which of them are directories; raises OSError.

    A descriptor that was opened before its entries were made need not list them (POSIX leaves it open for readdir;
    btrfs shows what was there at the time since Linux 6.5), so this opens the directory anew.
    """
    fresh = os.open(b".", _OPEN_DIR, dir_fd=directory)
    try:
        with os.scandir(fresh) as found:
            return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
    finally:
        os.close(fresh)


def disk_usage(path: str | os.PathLike[str]) -> int:
    """The bytes that a file or a tree takes on its disk, hard links counted once; what cannot be read counts nothing.

    Raises OSError for ``path`` itself.
    """
    facts = os.stat(path, follow_symlinks=False)
    total = facts.st_blocks
    pending = [os.fspath(path)] if stat.S_ISDIR(facts.st_mode) else []
    seen: set[int] = set()
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                        if found.st_ino in seen:
                            continue
                        seen.add(found.st_ino)
                    total += found.st_blocks
                    if stat.S_ISDIR(found.st_mode):
                        pending.append(entry.path)
        except OSError:
            continue
    return total * 512
