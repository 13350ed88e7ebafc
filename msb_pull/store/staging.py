"""Private places below the store: each has a lock file beside it, held from before it is made until it is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.errors import Cancelled, GivenUp
from msb_pull.ground.remove import remove_tree
from msb_pull.store.locks import flock, is_same_file, open_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK = ".lock"
# What stands beside a place under its name and a word, such as what it replaces.
_PARTS = "(?:-[a-z]+)?"
# Without flock a living process looks like a dead one, so only what no run can still need counts as a leftover.
_OLD_SECONDS = 7 * 86400
_LAST_SECONDS = 0.5


class Staging(NamedTuple):
    """A private place on the layers' file system: the tree to be, its record, its notes, and what it overwrites."""

    path: Path
    record: Path
    notes: Path
    kept: Path


class Places:
    """All private places in ``folder``; in one that holds other things, too, those whose label ends in ``only``."""

    def __init__(self, folder: Path, only: str = "") -> None:
        self.folder = folder
        # What stands in a folder of the user's must have the whole form of such a name before it is taken for one.
        self._ours = re.compile(rf".*{re.escape(only)}-[0-9]+-[0-9a-f]{{8}}{_PARTS}", re.DOTALL) if only else None
        self._deadline: float | None = None

    @contextlib.contextmanager
    def private(self, label: str) -> Iterator[Path]:
        """A new name with nothing there yet; whatever has it at the end is removed. Raises OSError.

        After an interruption all removing together gets half a second; the rest is left to the next sweep.
        """
        path = self.folder / f"{label}-{os.getpid()}-{os.urandom(4).hex()}"
        with _locked(path.with_name(path.name + _LOCK)):
            try:
                yield path
            except (Cancelled, KeyboardInterrupt) as error:
                # Who gives up after an error has all the time it takes, and leaves nothing.
                if self._deadline is None and not isinstance(error, GivenUp):
                    self._deadline = time.monotonic() + _LAST_SECONDS
                raise
            finally:
                _remove(path, self._deadline)

    def leftovers(self) -> list[Path]:
        """Places that no living process holds; changes nothing."""
        return [self.folder / name for name in self._names() if _is_free(self.folder / (name + _LOCK))]

    def sweep(self) -> list[str]:
        """Removes what no living process holds and returns the names; what cannot be removed stays for later."""
        found = []
        for name in self._names():
            with _if_free(self.folder / (name + _LOCK)) as free:
                if free:
                    found.append(name)
                    with contextlib.suppress(OSError):
                        _remove(self.folder / name, None)
        return found

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                names = {entry.name.removesuffix(_LOCK) for entry in entries}
                return sorted(name for name in names if self._ours is None or self._ours.fullmatch(name))
        except (FileNotFoundError, NotADirectoryError):
            return []


def _remove(path: Path, deadline: float | None) -> None:
    """Removes a file or a tree, if there is one, or as much of it as can be done in time (monotonic)."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path, deadline=deadline)
        else:
            path.unlink()


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    while True:
        descriptor = open_lock(lock)
        flock(descriptor, fcntl.LOCK_EX)
        # A sweep may have taken the file for a leftover between its creation and its lock.
        if is_same_file(descriptor, lock):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def _if_free(lock: Path) -> Iterator[bool]:
    """Whether nobody holds a place; if so it is held here, and its lock file is removed at the end."""
    try:
        descriptor = open_lock(lock)
    except OSError:
        yield False
        return
    try:
        free = _try(descriptor) and is_same_file(descriptor, lock)
        yield free
        if free and not os.path.lexists(str(lock).removesuffix(_LOCK)):
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_free(lock: Path) -> bool:
    """Only looks: nothing is made or removed."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        return _try(descriptor)
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    taken = flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return time.time() - os.fstat(descriptor).st_mtime > _OLD_SECONDS if taken is None else taken
