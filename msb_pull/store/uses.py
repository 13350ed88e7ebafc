"""When the images of a home were last used, and which are in use: so that what goes first is what nobody misses.

The time is that of the copy of an image beside the layers (:mod:`msb_pull.store.index.backup`), which is written when
it is pulled. A use that changes nothing sets it again with one system call: no transaction, no lock to wait for. In use
is an image whose lock somebody shares.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from msb_pull.store.index.keys import copies_in, copy_name
from msb_pull.store.locks import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from msb_pull.ground.running import Job
    from msb_pull.store.homes import Homes
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.locks import Locks

# How old a time must be before it is set again, in seconds.
_RATION = 60
# Each takes a descriptor, of which a process may have 1024; who uses more images keeps all that there are.
_MOST = 128
_IMAGE = "image-"


class Uses:
    """The uses of all images of one home."""

    def __init__(self, own: Path, homes: Homes, locks: Locks) -> None:
        self._own = own
        self._homes = homes
        self._locks = locks

    def touch(self, reference: str) -> None:
        """Remembers that an image is being used, at most once a minute.

        Silent where nothing can be written, and for an image that only another program has recorded: no use fails for
        that.
        """
        path = self._homes.copies / copy_name(reference)
        with contextlib.suppress(OSError):
            # A time in the future would keep the image for ever.
            if abs(time.time() - os.stat(path, follow_symlinks=False).st_mtime) >= _RATION:
                os.utime(path, follow_symlinks=False)

    def last(self, image: StoredImage) -> float:
        """When an image was last used, in seconds since 1970; never in the future."""
        recorded = image.used_at.timestamp()
        path = self._homes.copies / copy_name(image.reference)
        with contextlib.suppress(OSError):
            recorded = max(recorded, os.stat(path, follow_symlinks=False).st_mtime)
        return min(recorded, time.time())

    def is_used(self, reference: str) -> bool:
        """Whether anybody uses an image at this moment; writes nothing."""
        return any(self._locks.is_held(_name(name)) for name in (None, reference))

    def unrecorded(self) -> Callable[[str], bool]:
        """Tells names of locks that are of images which no home has recorded here. Raises OSError."""
        folders = (self._homes.copies, *(home.copies for home in self._homes.others()))
        recorded = {_lock_of(path.name) for folder in folders for path in copies_in(folder)}
        return lambda lock: lock.startswith(_IMAGE) and lock not in recorded

    @contextlib.contextmanager
    def hold(self, reference: str | None, job: Job) -> Iterator[None]:
        """Keeps an image, or all (None), from being pruned; waits while it is just going. Raises LocalError, Cancelled.

        Does nothing for a store that is not there, which this must not make.
        """
        if not self._own.is_dir():
            yield
            return
        with self._locks.hold(_name(reference), exclusive=False, on_wait=job.tell_waiting, cancel=job.cancel):
            yield

    @contextlib.contextmanager
    def alone(self, reference: str | None, job: Job) -> Iterator[bool]:
        """Whether nobody uses an image by its name, or all images (None); who begins to meanwhile waits for the end.

        Who forgets an image needs both. Raises LocalError.
        """
        with contextlib.ExitStack() as stack:
            try:
                held = self._locks.hold(
                    _name(reference), exclusive=True, on_wait=job.tell_waiting, cancel=job.cancel, wait=False
                )
                stack.enter_context(held)
            except Busy:
                yield False
            else:
                yield True


class InUse:
    """The images that one command uses until it ends; a context manager, and any thread may add to it."""

    def __init__(self, uses: Uses, job: Job) -> None:
        self._uses = uses
        self._job = job
        self._stack = contextlib.ExitStack()
        self._guard = threading.Lock()
        self._names: set[str | None] = set()

    def add(self, reference: str) -> None:
        """Keeps an image from being pruned until the end. Raises LocalError, Cancelled."""
        with self._guard:
            # The last one of them is for all.
            name = reference if len(self._names) < _MOST - 1 else None
            if {reference, None} & self._names:
                return
            self._names.add(name)
        held = self._uses.hold(name, self._job)
        held.__enter__()
        with self._guard:
            self._stack.push(held)

    def __enter__(self) -> InUse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _name(reference: str | None) -> str:
    return "images" if reference is None else _lock_of(copy_name(reference))


def _lock_of(copy: str) -> str:
    return _IMAGE + copy[:32]
