"""Removes and measures trees that images made: by descriptors, never through a symlink, at any depth."""

from __future__ import annotations

import errno
import os
import stat
import time

from msb_pull.ground.below import open_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def remove_tree(
    name: bytes | str | os.PathLike[str],
    directory: int | None = None,
    *,
    deadline: float | None = None,
    discard: Callable[[int, bytes], None] | None = None,
) -> bool:
    """Removes the directory ``name`` (in the open ``directory``) with all it holds; raises OSError.

    Directories without permissions are opened up on the way. Nothing is moved, since overlay file systems move no
    directory of a lower layer, and one descriptor is open at a time, so that deep trees cost neither recursion nor
    descriptors. Another file system that is mounted inside is left alone, with an error. False when ``deadline``
    (time.monotonic) passed first. ``discard`` removes what is not a directory, by the open directory it lies in and
    its name there.
    """
    discard = discard or (lambda directory, name: os.unlink(name, dir_fd=directory))
    here = _open_inside(directory, name)
    try:
        device = os.fstat(here).st_dev
        # Of each directory on the way down: which of its folders was entered, what it is, and which folders are left.
        above: list[tuple[bytes, tuple[int, int], list[bytes]]] = []
        folders = _empty(here, discard)
        while folders or above:
            if deadline is not None and time.monotonic() > deadline:
                return False
            if folders:
                entered = folders.pop()
                above.append((entered, _identity(here), folders))
                here = _changed_to(here, _open_inside(here, entered))
                if os.fstat(here).st_dev != device:
                    raise OSError(errno.EBUSY, "another file system is mounted here", os.fsdecode(entered))
                folders = _empty(here, discard)
            else:
                left, identity, folders = above.pop()
                here = _changed_to(here, open_directory("..", here))
                if _identity(here) != identity:
                    raise OSError(errno.EBUSY, "moved while it was being removed", os.fsdecode(left))
                os.rmdir(left, dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(name, dir_fd=directory)
    return True


def _identity(directory: int) -> tuple[int, int]:
    facts = os.fstat(directory)
    return facts.st_dev, facts.st_ino


def _changed_to(former: int, descriptor: int) -> int:
    os.close(former)
    return descriptor


def _open_inside(directory: int | None, name: bytes | str | os.PathLike[str]) -> int:
    try:
        return open_directory(name, directory)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=directory)
        return open_directory(name, directory)


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
    btrfs shows what was there at the time since Linux 6.5), so this opens the directory again.
    """
    fresh = open_directory(b".", directory)
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
