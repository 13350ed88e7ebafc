"""Gives finished layers their names, by rename alone, and takes directories out of sight before they are removed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from typing import TYPE_CHECKING

from msb_pull.ground.remove import remove_tree
from msb_pull.store.paths import LayerState

if TYPE_CHECKING:
    from pathlib import Path

    from msb_pull.store.paths import Name, Paths
    from msb_pull.store.staging import Places, Staging

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2
# What kernels say that lack a call, and the seccomp policies of containers that forbid it.
_NOT_OFFERED = frozenset((errno.ENOSYS, errno.EPERM))
# Where EPERM is about the folders instead, moving them one by one meets it again and reports it.
_NO_SWAP = _NOT_OFFERED | {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_BUSY_TRIES = 3


def publish(paths: Paths, places: Places, staging: Staging, layer: Name, *, replace: bool, sync: bool) -> Path:
    """What :meth:`Store.publish` describes; with ``sync`` everything is flushed to the device, files before names."""
    paths.refuse_symlink(layer)
    state = paths.layer_state(layer)
    if sync:
        flush(staging.path.parent)
    # First, so that a complete layer has it at every moment.
    paths.make_link(layer)
    if state is LayerState.ABSENT:
        _place_new(paths, places, staging, layer)
    elif replace or state is not LayerState.COMPLETE:
        _swap_in(paths, places, staging, layer)
    if sync:
        flush(paths.layers, paths.own / "records", paths.own / "l")
    return paths.layer_dir(layer)


def trash(places: Places, path: Path) -> None:
    """What :meth:`Store.trash` describes."""
    with places.private("trash") as place:
        try:
            try:
                rename(path, place)
            except PermissionError:
                # To move a directory is to write its "..", and other programs leave them as their image had them.
                path.chmod(0o700)
                rename(path, place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Overlay file systems move no directory that lies in a layer below.
            remove_tree(path)


def _place_new(paths: Paths, places: Places, staging: Staging, layer: Name) -> None:
    # The record and notes stand before the directory does, so it is complete from its first moment.
    _place_record(paths, staging, layer)
    try:
        rename(staging.path, paths.layer_dir(layer))
    except OSError:
        # Another program was faster: what it made must not pass for ours.
        os.replace(paths.notes_path(layer), staging.notes)
        os.replace(paths.record_path(layer), staging.record)
        with contextlib.suppress(FileNotFoundError):
            os.replace(paths.kept_path(layer), staging.kept)
        if paths.layer_state(layer) is not LayerState.FOREIGN:
            raise
        _swap_in(paths, places, staging, layer)


def _swap_in(paths: Paths, places: Places, staging: Staging, layer: Name) -> None:
    final = paths.layer_dir(layer)
    # Notes of one directory must never stand beside another, so for this while the layer counts as missing.
    notes, former = paths.notes_path(layer), staging.path.with_name("former notes")
    if noted := notes.exists():
        os.replace(notes, former)
    made = os.stat(staging.path)
    try:
        exchange(staging.path, final, aside=staging.path.with_name("aside"))
    except OSError as error:
        if error.errno != errno.EXDEV:
            if noted:
                os.replace(former, notes)
            raise
        trash(places, final)
        rename(staging.path, final)
    # XFS counts the new ".." of an exchanged directory as a change of the directory.
    os.utime(final, ns=(made.st_atime_ns, made.st_mtime_ns))
    _place_record(paths, staging, layer)


def _place_record(paths: Paths, staging: Staging, layer: Name) -> None:
    """Notes last: with them the layer counts as complete."""
    kept = paths.kept_path(layer)
    if kept.exists():
        os.replace(kept, staging.kept.with_name("former kept"))
    if staging.kept.exists():
        os.replace(staging.kept, kept)
    for made, place in (staging.record, paths.record_path(layer)), (staging.notes, paths.notes_path(layer)):
        try:
            os.replace(made, place)
        except IsADirectoryError:
            os.replace(place, made.with_name(f"former {made.name}"))
            os.replace(made, place)


def rename(old: Path, new: Path) -> None:
    """os.rename, tried three times: indexers and virus scanners hold directories for a moment. Raises OSError."""
    for remaining in reversed(range(_BUSY_TRIES)):
        try:
            os.rename(old, new)
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EPERM) or not remaining:
                raise
            time.sleep(0.1)


def exchange(new: Path, old: Path, *, aside: Path) -> None:
    """Swaps two names of one file system, so that ``old`` always shows one of both; then ``new`` is what was replaced.

    renameat2 on Linux, renamex_np on macOS. Where the system cannot, ``old`` is moved to ``aside`` first, so that for a
    moment there is none. Raises OSError.
    """
    if _swap(os.fsencode(new), os.fsencode(old)):
        return
    rename(old, aside)
    try:
        rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise


def flush(*folders: Path) -> None:
    """Flushes the file system of the first folder to its device (syncfs, or sync), and each folder's own entries.

    Raises OSError, also for data that could not be written earlier.
    """
    for position, folder in enumerate(folders):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if position == 0:
                _flush_file_system(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(one: bytes, other: bytes) -> bool:
    # 2 ms that hardly any command needs.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        result = libc.renamex_np(one, other, _RENAME_SWAP)
    elif hasattr(libc, "renameat2"):
        result = libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
    else:
        return False
    number = ctypes.get_errno()
    if result != 0 and number not in _NO_SWAP:
        raise OSError(number, os.strerror(number), os.fsdecode(other))
    return bool(result == 0)


def _flush_file_system(descriptor: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
    elif libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        if number not in _NOT_OFFERED:
            raise OSError(number, os.strerror(number))
        os.sync()
