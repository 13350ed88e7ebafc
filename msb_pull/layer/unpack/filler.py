"""A second process that fills the files of a layer while the first goes on in the archive.

The first one, the creator, decides everything and makes each name itself, so that the order of the archive and every
rule about names stay where they are. What is left of a plain file is the same for all of them: its attribute, its
content, its time. That is half of the system's work on it, and another processor can do it.

Both share one table of descriptors (``CLONE_FILES``), so a number is all it takes to hand an open file over, and the
filler's closing it makes it free for both. Contents stay where they lie, in the ring. For that reason neither sees the
end of a pipe when the other dies: the kernel kills the filler with the creator, and the creator with the filler
(``SIGUSR1`` at its end, which is left to its default until the filler may go).
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections import deque
from contextlib import suppress
from struct import Struct

from msb_pull.layer.attributes import OVERRIDE_STAT, set_attribute
from msb_pull.layer.child import die_with_parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from msb_pull.layer.tar.entry import Entry
    from msb_pull.layer.tar.tar import TarReader
    from msb_pull.layer.unpack.ring import RingReader

_CLONE_FILES = 0x400
_CLONE = {"x86_64": 56, "aarch64": 220}
# waitpid(2): children whose end is told by another signal than SIGCHLD.
_WCLONE = -(1 << 31)
_GONE = signal.SIGUSR1
# One piece of a file: descriptor, where the piece lies in the ring and how long it is, the attribute (b"": not the
# first piece), the time in nanoseconds (-1: not the last).
_PIECE = Struct("=iII30pq")
# Of a batch: its length in bytes, and whether the ring's slot is free after it.
_HEAD = Struct("=I?")
# What became of a batch: the number of its first piece that failed, and the error, 0 for none.
_DONE = Struct("=II")
# Batches that may wait for their answers. All together fit into a pipe, so that sending never waits.
_IN_FLIGHT = 7
# Pieces in a batch. Each in flight may hold a descriptor, and all together take no more than a quarter of what may be
# open: folders take another.
_BATCH = 48
_MAX_TIME = (1 << 63) - 1


class Unfilled(OSError):
    """The content of a file could not be written; ``entry`` is the one it belongs to."""

    entry: Entry


class Filler:
    """The creator's end; ``reader`` is where contents come from. Raises OSError where there can be no second process.

    To be made in the jail, but before the filter of system calls, which lets no process start another. ``restrict`` is
    what the second one does to itself first.
    """

    reader: TarReader

    def __init__(self, ring: RingReader, restrict: Callable[[], object]) -> None:
        self._ring = ring
        self._pieces: list[bytes] = []
        self._entries: list[Entry] = []
        self._sent: deque[list[Entry]] = deque()
        self._unread = b""
        self._failed: Unfilled | None = None
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._batch = min(_BATCH, open_files // 4 // (_IN_FLIGHT + 1)) if open_files > 0 else _BATCH
        signal.signal(_GONE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (_GONE,))
        creator = os.getpid()
        opened: list[int] = []
        try:
            opened += os.pipe()
            opened += os.pipe()
            self._process = _clone()
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        theirs, self._jobs, self._answers, answers = opened
        if not self._process:
            _live(theirs, answers, ring, creator, restrict)
        ring.release = self._release

    def takes(self, entry: Entry) -> bool:
        """Whether a regular file needs no more than its attribute, its content in one piece, and its time."""
        return entry.sparse is None and not entry.xattrs and 0 <= entry.mtime_ns <= _MAX_TIME

    def take(self, target: int, entry: Entry, value: bytes) -> None:
        """Has the open file ``target``, which is new, filled from :attr:`reader` and closed.

        ``value`` is its override_stat, empty for none. Raises Unfilled for this file or one before it, LayerError.
        """
        reader = self.reader
        left = entry.stored
        if not left:
            self._pieces.append(_PIECE.pack(target, 0, 0, value, entry.mtime_ns))
            self._entries.append(entry)
        while left:
            size = len(reader.chunk())
            left -= size
            at = (reader.passed - size) % self._ring.size
            self._pieces.append(_PIECE.pack(target, at, size, value, -1 if left else entry.mtime_ns))
            self._entries.append(entry)
            value = b""
        if len(self._pieces) >= self._batch:
            self._send(release=False)

    def wait(self) -> None:
        """Returns once all files have what they need; raises Unfilled."""
        self._raise(self.failure())

    def failure(self) -> Unfilled | None:
        """The first failure, once all files that were taken are through."""
        if self._pieces:
            self._post(release=False)
        while self._sent:
            self._hear()
        return self._failed

    def end(self) -> None:
        """Ends the process, which does first what it was sent. May be called again."""
        if self._process:
            signal.signal(_GONE, signal.SIG_IGN)
            os.close(self._jobs)
            os.waitpid(self._process, _WCLONE)
            self._process = 0

    def _release(self) -> None:
        """Has the slot of the ring that was read to its end given back, after all pieces that lie in it."""
        self._send(release=True)

    def _send(self, *, release: bool) -> None:
        self._post(release=release)
        while len(self._sent) > _IN_FLIGHT:
            self._hear()
        self._raise(self._failed)

    def _post(self, *, release: bool) -> None:
        data = b"".join(self._pieces)
        os.write(self._jobs, _HEAD.pack(len(data), release) + data)
        self._sent.append(self._entries)
        self._pieces, self._entries = [], []

    def _hear(self) -> None:
        answers = self._unread + os.read(self._answers, _DONE.size * (_IN_FLIGHT + 1))
        whole = len(answers) // _DONE.size * _DONE.size
        self._unread = answers[whole:]
        for number, error in _DONE.iter_unpack(answers[:whole]):
            entries = self._sent.popleft()
            if error and self._failed is None:
                self._failed = Unfilled(error, os.strerror(error))
                self._failed.entry = entries[number]

    @staticmethod
    def _raise(failed: Unfilled | None) -> None:
        if failed is not None:
            raise failed


def start(ring: RingReader, restrict: Callable[[], object]) -> Filler | None:
    """See :class:`Filler`; None where one process has to do it all, as where a limit leaves room for no more."""
    try:
        return Filler(ring, restrict)
    except OSError:
        return None


def _clone() -> int:
    """As fork(2), with one table of descriptors for both; raises OSError."""
    import ctypes
    import errno

    number = _CLONE.get(os.uname().machine) if sys.platform.startswith("linux") else None
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    # Not CDLL, which would give up Python's lock meanwhile: there is one thread, and it has it on both sides.
    libc = ctypes.PyDLL(None, use_errno=True)
    word = ctypes.c_ulong
    process = int(libc.syscall(word(number), word(_CLONE_FILES | _GONE), *map(word, (0, 0, 0, 0))))
    if process < 0:
        refused = ctypes.get_errno()
        raise OSError(refused, os.strerror(refused))
    return process


def _live(jobs: int, answers: int, ring: RingReader, creator: int, restrict: Callable[[], object]) -> NoReturn:
    try:
        die_with_parent(creator)
        with suppress(OSError):
            # The creator is what the layer waits for, so the filler does not interrupt it when it has work again.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        restrict()
        while head := os.read(jobs, _HEAD.size):
            length, release = _HEAD.unpack(head)
            answer = _fill(os.read(jobs, length), ring) if length else (0, 0)
            if release:
                ring.give_back()
            os.write(answers, _DONE.pack(*answer))
    finally:
        os._exit(0)


def _fill(batch: bytes, ring: RingReader) -> tuple[int, int]:
    """Which piece could not be written and why: (number, error), error 0 for none."""
    number = 0
    try:
        for target, at, size, value, when in _PIECE.iter_unpack(batch):
            if value:
                set_attribute(target, OVERRIDE_STAT, value)
            if size:
                piece = ring.view[at : at + size]
                while (count := os.write(target, piece)) < len(piece):
                    piece = piece[count:]
            if when >= 0:
                os.utime(target, ns=(when, when))
                os.close(target)
            number += 1
    except OSError as error:
        return number, error.errno or 0
    return 0, 0
