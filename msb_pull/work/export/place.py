"""Where an export goes. It is made in a private place beside the name that it gets at the end, by rename alone."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msb_pull.ground.below import create_file, open_directory
from msb_pull.ground.errors import LocalError, UsageError, exhausted, local_error
from msb_pull.ground.text import visible
from msb_pull.store.publish import exchange
from msb_pull.store.staging import Places

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from msb_pull.store.store import Store

ELSEWHERE = "choose another place with -o"
_LABEL = ".msb-pull"
# Bytes of the name that the place has in its own; with what makes it private the whole must stay a name.
_NAME = 60
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def output_path(store: Store, out: Path, *, folder: bool, force: bool) -> Path:
    """Where an export to ``out`` goes, symlinks followed.

    What exists there is replaced with ``force`` alone, but for an empty folder; a folder that is or holds the store,
    the user's home, the current folder or something mounted never is. A pipe or a device is written into. Raises
    UsageError where no export may go, LocalError, OSError.
    """
    out = out.expanduser()
    if not folder and is_stream(out) and not out.is_dir():
        # What stands for an open pipe leads to no path.
        return out
    path = Path(os.path.realpath(out))
    shown = visible(str(path))
    for place in (store.home, store.layers):
        if path.is_relative_to(os.path.realpath(place)):
            raise UsageError(f"{shown}: lies in the store", hint=ELSEWHERE)
    if not path.parent.is_dir():
        raise LocalError(f"{visible(str(path.parent))}: no such folder", hint=ELSEWHERE)
    if not path.exists():
        return path
    if path.is_dir() != folder:
        raise UsageError(f"{shown}: is {'not ' if folder else ''}a folder", hint=ELSEWHERE)
    if not force and not (folder and not any(path.iterdir())):
        raise UsageError(f"{shown}: already exists", hint="--force replaces it")
    if folder:
        needed = (store.home, store.layers, Path.home(), Path.cwd())
        _refuse_to_lose(path, (Path(os.path.realpath(one)) for one in needed), ELSEWHERE)
        _refuse_mounted(path)
    return path


def is_stream(path: Path) -> bool:
    """Whether a pipe or a device stands there, which is written into, and never replaced; a folder counts too."""
    return path.exists() and not path.is_file()


def _refuse_to_lose(path: Path, needed: Iterable[Path], hint: str) -> None:
    """Raises UsageError where the folder ``path`` is or holds one of these real paths."""
    for one in needed:
        if one.is_relative_to(path):
            raise UsageError(f"{visible(str(path))}: cannot be replaced, it holds {visible(str(one))}", hint=hint)


def _refuse_mounted(path: Path) -> None:
    """The same for mounts, since what is removed with a folder would be removed there as well."""
    _refuse_to_lose(path, _mounted(), "unmount that first")


def _mounted() -> list[Path]:
    """Where anything is mounted, as Linux tells it (proc_pid_mountinfo(5)); elsewhere nothing is known."""
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            places = [line.split()[4] for line in lines]
    except FileNotFoundError:
        return []
    return [Path(os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), place))) for place in places]


@contextlib.contextmanager
def file_draft(path: Path, *, force: bool, buffering: int = 0) -> Iterator[BinaryIO]:
    """A file to write, which gets the name ``path`` once all is well; else nothing is left of it.

    Without ``force`` what has come to stand there meanwhile stays. ``buffering`` is :func:`open`'s. Raises OSError.
    """
    if is_stream(path):
        # A pipe or a device has no half-written state to hide.
        with path.open("wb", buffering=buffering) as out:
            yield out
        return
    with _draft(path) as draft:
        with open(create_file(draft), "wb", buffering=buffering) as out:
            yield out
            os.fchmod(out.fileno(), 0o666 & ~_umask())
        if force or not _linked(draft, path):
            os.replace(draft, path)


def _linked(draft: Path, path: Path) -> bool:
    """Gives a file the name ``path`` as well; False where the file system has no links. Raises FileExistsError."""
    try:
        # A rename would take the place of what has come to stand there.
        os.link(draft, path, follow_symlinks=False)
        return True
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        return False


@contextlib.contextmanager
def folder_draft(path: Path, *, force: bool) -> Iterator[int]:
    """The same for a folder, given as a descriptor. One that it replaces is removed afterwards; without ``force`` that
    is an empty one."""
    with _draft(path) as draft:
        draft.mkdir(0o700)
        handle = open_directory(draft)
        try:
            yield handle
        finally:
            os.close(handle)
        if force and path.exists():
            # It may have been put to use while a large image was written.
            _refuse_mounted(path)
            exchange(draft, path, aside=draft.with_name(f"{draft.name}-former"))
        else:
            # Takes the place of an empty folder, and of no other.
            os.rename(draft, path)


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    name = os.fsencode(path.name)[:_NAME].decode(errors="ignore")
    places = Places(path.parent, _LABEL)
    # What killed runs have left.
    places.sweep()
    with places.private(f".{name}{_LABEL}") as draft:
        yield draft


def unwritten(error: OSError, path: Path) -> LocalError:
    """What went wrong with the file or folder ``path``, or with the store that it was to be made from."""
    if spent := exhausted(error):
        return spent
    named = Path(os.fsdecode(error.filename)) if error.filename else path
    if named.parent != path.parent:
        return local_error(error, path.parent)
    told = local_error(OSError(error.errno, error.strerror, str(path)), path.parent)
    # A limit of this process is the same in every place.
    hint = told.hint if error.errno == errno.EFBIG else ELSEWHERE
    return LocalError(told.message, cause=told.cause, hint=hint)


def _umask() -> int:
    """Python cannot ask for it without setting it."""
    os.umask(mask := os.umask(0o077))
    return mask
