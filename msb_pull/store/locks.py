"""Locks between processes and threads: flock alone, so that a dead process holds nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from msb_pull.errors import Cancelled, LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SLICE = 0.1
_TELL_AFTER = 1.0
_UNSUPPORTED = frozenset((errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))


class Locks:
    """All locks of one store folder. Lock files are never removed: another process may just be opening them.

    ``warn`` is told once when the file system knows no flock; then only threads of this process are kept apart.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        self._folder = folder
        self._warn = warn
        self._guard = threading.Lock()
        self._threads: dict[str, threading.Lock] = {}
        self._unsupported = False

    @contextlib.contextmanager
    def hold(
        self,
        name: str,
        *,
        exclusive: bool,
        on_wait: Callable[[str], None],
        cancel: threading.Event,
        wait: bool = True,
    ) -> Iterator[None]:
        """Holds the lock ``name``. ``on_wait`` is told after a second for whom it waits.

        Raises Cancelled, and LocalError when ``wait`` is False and somebody else holds it.
        """
        # flock keeps two descriptors of one process apart as if they were strangers, so threads queue here first.
        with self._thread_lock(name, cancel) if exclusive else contextlib.nullcontext():
            descriptor = os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._acquire(descriptor, name, exclusive, on_wait, cancel, wait)
                if exclusive:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                yield
            finally:
                os.close(descriptor)

    def _acquire(
        self,
        descriptor: int,
        name: str,
        exclusive: bool,
        on_wait: Callable[[str], None],
        cancel: threading.Event,
        wait: bool,
    ) -> None:
        started = time.monotonic()
        told = False
        while not self._try(descriptor, exclusive):
            if not wait:
                raise LocalError(f"the store is in use ({_holder(descriptor)})", hint="try again without --no-wait")
            if not told and time.monotonic() - started >= _TELL_AFTER:
                told = True
                on_wait(_holder(descriptor))
            if cancel.wait(_SLICE):
                raise Cancelled("interrupted")

    def _try(self, descriptor: int, exclusive: bool) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            if not self._unsupported:
                self._unsupported = True
                self._warn(f"{self._folder}: this file system knows no locks; run one msb-pull at a time")
        return True

    @contextlib.contextmanager
    def _thread_lock(self, name: str, cancel: threading.Event) -> Iterator[None]:
        with self._guard:
            lock = self._threads.setdefault(name, threading.Lock())
        while not lock.acquire(timeout=_SLICE):
            if cancel.is_set():
                raise Cancelled("interrupted")
        try:
            yield
        finally:
            lock.release()


def _holder(descriptor: int) -> str:
    """Who holds a lock, as its holder wrote it; a shared lock has no single holder."""
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return f"msb-pull, process {text}" if text.isdigit() else "another msb-pull"
