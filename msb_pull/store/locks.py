"""Locks between processes and threads: flock alone, so that a dead process holds nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from msb_pull.ground.below import open_file
from msb_pull.ground.errors import Cancelled, LocalError, local_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from msb_pull.ground.running import Flag

_SLICE = 0.1
_TELL_AFTER = 1.0
_TURNSTILE = ".turnstile"
_SUFFIX = ".lock"
# NFS locks exclusively only what is open for writing.
_THERE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = frozenset((errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF))


class Busy(LocalError):
    """Somebody else holds the lock, and the caller does not want to wait."""


class Locks:
    """All locks of one store folder. A lock file may go at any moment when nobody holds it: whoever has just opened it
    finds that it is no longer the one of its name, and opens that.

    ``warn`` hears once when the file system has no flock; then only threads of this process are kept apart.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        self._folder = folder
        self._warn = warn
        self._guard = threading.Lock()
        self._threads: dict[str, threading.Lock] = {}
        self._unsupported = False

    @contextlib.contextmanager
    def hold(
        self, name: str, *, exclusive: bool, on_wait: Callable[[str], None], cancel: Flag, wait: bool = True
    ) -> Iterator[None]:
        """Holds the lock ``name``. After a second of waiting, ``on_wait`` hears who has it.

        A waiter for exclusive access goes next, or shared holders that overlap would lock it out for ever. So a thread
        that shares the lock must not take it again: it would wait for the one that waits for it.

        A read-only store without the lock file has no writers, so nothing is locked there. Raises Cancelled within
        0.2 s, and Busy when ``wait`` is False and the lock is taken.
        """
        patience = _Patience(name, on_wait, cancel, wait)
        # flock keeps two descriptors of one process apart as if they were strangers, so threads queue here first.
        with self._thread_lock(name, patience) if exclusive else contextlib.nullcontext():
            descriptor = self._enter(name, patience, exclusive=exclusive)
            try:
                yield
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def is_held(self, name: str) -> bool:
        """Whether anybody has the lock ``name`` at this moment, shared or not; makes no file."""
        try:
            descriptor = os.open(self._path(name), _THERE)
        except OSError:
            # Nobody has had it yet, or nobody can write here and so lock.
            return False
        try:
            return not self._try(descriptor, exclusive=True)
        finally:
            os.close(descriptor)

    def sweep(self, is_gone: Callable[[str], bool]) -> None:
        """Removes the files of locks that nobody holds and whose names are of what is gone. Raises OSError.

        Who holds one is not disturbed, and who is about to take one makes it again.
        """
        try:
            paths = [path for path in self._folder.iterdir() if path.suffix == _SUFFIX]
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in paths:
            if is_gone(path.stem.removesuffix(_TURNSTILE)):
                _remove_free(path)

    def _enter(self, name: str, patience: _Patience, *, exclusive: bool) -> int | None:
        """The descriptor that holds the lock; None where there is nothing to lock."""
        enter = self._enter_alone if exclusive else self._enter_shared
        while (descriptor := self._open(name)) is not None:
            try:
                enter(name, descriptor, patience)
                if is_same_file(descriptor, self._path(name)):
                    _sign(descriptor)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            # A file system whose numbers of inodes do not last shows another file each time.
            patience.check()
        return None

    def _enter_alone(self, name: str, descriptor: int, patience: _Patience) -> None:
        if self._try(descriptor, exclusive=True):
            return
        patience.wait(_holder(descriptor))
        # Newcomers who want to share pass the turnstile first. Once it is held, only those inside are left to wait for.
        turnstile = self._open(name + _TURNSTILE)
        try:
            if turnstile is not None:
                while not self._try(turnstile, exclusive=True):
                    patience.wait(_holder(descriptor))
                _sign(turnstile)
            while not self._try(descriptor, exclusive=True):
                patience.wait(_holder(descriptor))
        finally:
            if turnstile is not None:
                os.close(turnstile)

    def _enter_shared(self, name: str, descriptor: int, patience: _Patience) -> None:
        while (holder := self._kept_out_by(name, descriptor)) is not None:
            patience.wait(holder)

    def _kept_out_by(self, name: str, descriptor: int) -> str | None:
        """Takes the lock shared and returns None, or says who holds it or waits for exclusive access.

        The turnstile is held shared while the lock is taken: whoever gets it exclusively after that finds this holder.
        """
        try:
            # The first who has to wait creates it, so most stores have none.
            turnstile = open_file(self._path(name + _TURNSTILE))
        except OSError:
            return None if self._try(descriptor, exclusive=False) else _holder(descriptor)
        try:
            if not self._try(turnstile, exclusive=False):
                return _holder(turnstile)
            return None if self._try(descriptor, exclusive=False) else _holder(descriptor)
        finally:
            os.close(turnstile)

    def _path(self, name: str) -> Path:
        return self._folder / (name + _SUFFIX)

    def _open(self, name: str) -> int | None:
        path = self._path(name)
        try:
            try:
                return open_lock(path)
            except FileNotFoundError:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                return open_lock(path)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise local_error(error, path) from error
        try:
            return open_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise local_error(error, path) from error

    def _try(self, descriptor: int, exclusive: bool) -> bool:
        taken = flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        if taken is None and not self._unsupported:
            self._unsupported = True
            self._warn(f"{self._folder}: this file system does not support locks; run one msb-pull at a time")
        return taken is not False

    @contextlib.contextmanager
    def _thread_lock(self, name: str, patience: _Patience) -> Iterator[None]:
        with self._guard:
            lock = self._threads.setdefault(name, threading.Lock())
        while not lock.acquire(blocking=False):
            patience.wait("another image of this run")
        try:
            yield
        finally:
            lock.release()


class _Patience:
    """How one caller waits for one lock, among threads or among processes."""

    def __init__(self, name: str, on_wait: Callable[[str], None], cancel: Flag, wait: bool) -> None:
        self._name = name
        self._on_wait = on_wait
        self._cancel = cancel
        self._wait = wait
        self._started = time.monotonic()
        self._told = False

    def wait(self, holder: str) -> None:
        """Sleeps a moment; raises Cancelled, Busy."""
        if not self._wait:
            raise Busy(f"the store is in use by {holder}", hint="try again later, or without --no-wait")
        waited = time.monotonic() - self._started
        if not self._told and waited >= _TELL_AFTER:
            self._told = True
            self._on_wait(holder)
        # Most locks are held for a blink; the long ones can wait a little longer.
        time.sleep(min(_SLICE, 0.005 + waited / 4))
        self.check()

    def check(self) -> None:
        """Raises Cancelled once work is to end."""
        if self._cancel.is_set():
            raise Cancelled("interrupted")


def open_lock(path: Path) -> int:
    """A descriptor of a lock file, made where it is missing. Raises OSError."""
    return os.open(path, _THERE | os.O_CREAT, 0o600)


def flock(descriptor: int, operation: int) -> bool | None:
    """Whether the lock was taken; None where the file system has no locks. Raises OSError."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return None
    return True


def _remove_free(path: Path) -> None:
    """Removes a lock file that nobody holds, while it is held here; where nobody can tell, it stays."""
    try:
        descriptor = os.open(path, _THERE)
    except OSError:
        return
    try:
        if flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) and is_same_file(descriptor, path):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name: a lock on one that was removed keeps nobody out. Raises OSError."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Writes down who holds the lock, for those who wait. One line, and only a courtesy: it may fail."""
    line = f"{os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n".encode()
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, line, 0)
        os.ftruncate(descriptor, len(line))


def _holder(descriptor: int) -> str:
    """Who holds a lock, as the last one who got it wrote; of several who share one, that one may be gone."""
    try:
        process = int(os.pread(descriptor, 64, 0).split(maxsplit=1)[0])
        with contextlib.suppress(PermissionError):
            os.kill(process, 0)
    except (OSError, ValueError, IndexError):
        return "another msb-pull"
    return f"msb-pull (pid {process}{', stopped' if _stopped(process) else ''})"


def _stopped(process: int) -> bool:
    """Whether Ctrl-Z has put a process to sleep, so that waiting for it is in vain; known on Linux alone (proc(5))."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read(512).rpartition(b") ")[2].startswith(b"T")
    except OSError:
        return False
