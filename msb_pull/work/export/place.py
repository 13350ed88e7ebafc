"""Where an export goes. It is made in a private place beside the name that it gets at the end, by rename alone."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msb_pull.ground.below import create_file, open_directory
from msb_pull.ground.errors import LocalError, UsageError, exhausted, local_error
from msb_pull.ground.text import visible
from msb_pull.store.publish import exchange
from msb_pull.store.staging import Places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msb_pull.store.store import Store

ELSEWHERE = "choose another place with -o"
# Of the name of the place; with what makes it private the whole must stay a name.
_LABEL = 60


def output_path(store: Store, out: Path, *, folder: bool, force: bool) -> Path:
    """Where an export to ``out`` goes, symlinks followed.

    What exists there is replaced with ``force`` alone, but for an empty folder; a folder that holds the store,
    the user's home or the current folder never is. Raises UsageError where no export may go, LocalError, OSError.
    """
    path = Path(os.path.realpath(out.expanduser()))
    shown = visible(str(path))
    for place in (store.home, store.layers):
        if path.is_relative_to(os.path.realpath(place)):
            raise UsageError(f"{shown}: lies in the store", hint=ELSEWHERE)
    if not path.parent.is_dir():
        raise LocalError(f"{visible(str(path.parent))}: no such folder", hint=ELSEWHERE)
    if not path.exists() or (folder and path.is_dir() and not any(path.iterdir())):
        return path
    if path.is_dir() != folder:
        raise UsageError(f"{shown}: is {'not ' if folder else ''}a folder", hint=ELSEWHERE)
    if not force:
        raise UsageError(f"{shown}: already exists", hint="--force replaces it")
    for needed in (store.home, store.layers, Path.home(), Path.cwd()):
        if folder and Path(os.path.realpath(needed)).is_relative_to(path):
            raise UsageError(f"{shown}: cannot be replaced, it holds {visible(str(needed))}", hint=ELSEWHERE)
    return path


@contextlib.contextmanager
def file_draft(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets the name ``path`` once all is well; else nothing is left of it. Raises OSError."""
    if path.exists() and not path.is_file():
        # A pipe or a device has no half-written state to hide.
        with path.open("wb", buffering=0) as out:
            yield out
        return
    with _draft(path) as draft:
        with open(create_file(draft), "wb", buffering=0) as out:
            yield out
            os.fchmod(out.fileno(), 0o666 & ~_umask())
        os.replace(draft, path)


@contextlib.contextmanager
def folder_draft(path: Path) -> Iterator[int]:
    """The same for a folder, given as a descriptor. One that it replaces is removed afterwards."""
    with _draft(path) as draft:
        draft.mkdir(0o700)
        handle = open_directory(draft)
        try:
            yield handle
        finally:
            os.close(handle)
        if path.exists():
            exchange(draft, path, aside=draft.with_name(f"{draft.name}-former"))
        else:
            os.rename(draft, path)


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    label = f".{path.name[:_LABEL]}.msb-pull"
    places = Places(path.parent, label)
    # What a killed run has left.
    places.sweep()
    with places.private(label) as draft:
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
