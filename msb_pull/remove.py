"""Removes a tree of an image's making: by descriptors, never through a symlink, at any depth."""

from __future__ import annotations

import os
import stat

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(name: bytes | str | os.PathLike[str], directory: int | None = None) -> None:
    """Removes the directory ``name`` (in the open ``directory``) with all it holds; raises OSError.

    Directories without permissions are opened up on the way. Deep trees cost no recursion: what lies deeper than a
    few levels is first moved up.
    """
    try:
        root = os.open(name, _OPEN_DIR, dir_fd=directory)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=directory)
        root = os.open(name, _OPEN_DIR, dir_fd=directory)
    try:
        serial = 0
        while True:
            folders = _empty(root)
            if not folders:
                break
            for folder in folders:
                # Emptying one level and moving its folders up keeps the number of open descriptors at two.
                serial = _flatten(root, folder, serial)
    finally:
        os.close(root)
    os.rmdir(name, dir_fd=directory)


def _flatten(root: int, folder: bytes, serial: int) -> int:
    inner = _open_inside(root, folder)
    try:
        for child in _empty(inner):
            while True:
                try:
                    os.rename(child, b".removed-%d" % serial, src_dir_fd=inner, dst_dir_fd=root)
                    break
                except (FileExistsError, OSError) as error:
                    if not isinstance(error, FileExistsError) and error.errno not in (20, 39):
                        raise
                finally:
                    serial += 1
    finally:
        os.close(inner)
    os.rmdir(folder, dir_fd=root)
    return serial


def _open_inside(directory: int, name: bytes) -> int:
    try:
        return os.open(name, _OPEN_DIR, dir_fd=directory)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=directory)
        return os.open(name, _OPEN_DIR, dir_fd=directory)


def _empty(directory: int) -> list[bytes]:
    """Unlinks everything in a directory but its folders, which are returned."""
    if not os.fstat(directory).st_mode & stat.S_IWUSR:
        os.fchmod(directory, 0o700)
    folders = []
    with os.scandir(directory) as found:
        entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_folder in entries:
        if is_folder:
            folders.append(name)
        else:
            os.unlink(name, dir_fd=directory)
    return folders
