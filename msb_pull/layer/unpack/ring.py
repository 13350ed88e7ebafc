"""Shared memory between the parent, which inflates a layer, and the child that writes it.

Bytes are copied into a slot once and read where they lie, where a pipe copies them twice and holds no more than a
mebibyte. One socket carries the messages: four bytes say how many a slot holds, one byte gives a slot back. The parent
never reads the memory, so a child can harm only itself.
"""

from __future__ import annotations

import mmap
import os

from msb_pull.ground.errors import file_size_limit, too_large

# A multiple of tar's blocks: no header spans two slots.
_BLOCK = 512
SLOT = 1024 * _BLOCK
SLOTS = 12
MORE_SLOTS = 32
_COUNT = 4
_EMPTY = memoryview(b"")


class RingWriter:
    """The parent's end; ``memory`` and ``socket`` are descriptors for the child to inherit. Not for several threads."""

    def __init__(self, slots: int = SLOTS) -> None:
        import socket

        self.memory, self._size = _memory(slots)
        self._slots = slots
        self._map = mmap.mmap(self.memory, self._size * slots)
        self._ours, self._theirs = socket.socketpair()
        self.socket = self._theirs.fileno()
        self._free = slots
        self._slot = 0
        self._filled = 0

    def started(self) -> None:
        """Closes what only the child needs; otherwise its end would go unnoticed."""
        os.close(self.memory)
        self._theirs.close()

    def write(self, data: bytes) -> None:
        """Copies all of ``data``, waiting for room; raises ConnectionError when the child has closed its end."""
        view = memoryview(data)
        while view:
            if not self._free:
                self._free = len(os.read(self._ours.fileno(), self._slots))
                if not self._free:
                    raise BrokenPipeError
            piece = view[: self._size - self._filled]
            at = self._slot * self._size + self._filled
            self._map[at : at + len(piece)] = piece
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == self._size:
                self._pass()

    def end(self) -> None:
        """Passes what is left and says that no more follows; raises ConnectionError."""
        import socket

        if self._filled:
            self._pass()
        self._ours.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Gives memory and socket back; may be called again."""
        self._ours.close()
        self._map.close()

    def _pass(self) -> None:
        self._ours.sendall(self._filled.to_bytes(_COUNT, "little"))
        self._free -= 1
        self._slot = (self._slot + 1) % self._slots
        self._filled = 0


class RingReader:
    """The child's end; ``read`` gives what the parent wrote, slot by slot, of which there are as many as there.

    ``view`` is all of the memory, ``size`` bytes: the byte at position n of the stream lies at n % size, since every
    slot but the last is full. ``release`` is what happens to a slot that was read to its end.
    """

    def __init__(self, memory: int, socket: int, slots: int = SLOTS) -> None:
        self.size = os.fstat(memory).st_size
        self._slots = slots
        self._slot_size = self.size // slots
        self.view = memoryview(mmap.mmap(memory, self.size, prot=mmap.PROT_READ))
        os.close(memory)
        self.release = self.give_back
        self._socket = socket
        self._slot = -1

    def give_back(self) -> None:
        """Tells the parent that the slot that has been in use the longest is free."""
        os.write(self._socket, b"\0")

    def read(self, size: int, /) -> memoryview:
        """The next slot, whatever the size; it is valid until the next call. Empty at the end of the stream."""
        if self._slot >= 0:
            self.release()
        count = b""
        while len(count) < _COUNT:
            more = os.read(self._socket, _COUNT - len(count))
            if not more:
                return _EMPTY
            count += more
        self._slot = (self._slot + 1) % self._slots
        at = self._slot * self._slot_size
        return self.view[at : at + int.from_bytes(count, "little")]


def slots(*, filler: bool) -> int:
    """How many slots the ring of a layer has; both ends must agree.

    The layer that all wait for, which has a filler, has more: neither side is to wait while the other has a file that
    takes longer than most.
    """
    return MORE_SLOTS if filler else SLOTS


def _memory(slots: int) -> tuple[int, int]:
    """A descriptor of memory without a name, and the size of a slot in it; of a temporary file where there is none.

    The limit of file sizes counts for such memory as well. Raises LocalError where it leaves no room.
    """
    most = file_size_limit()
    slot = SLOT if most is None else min(SLOT, most // slots // _BLOCK * _BLOCK)
    if not slot:
        raise too_large("memory shared with the unpacking process")
    try:
        memory = os.memfd_create("msb-pull")
    except (AttributeError, OSError):
        import tempfile

        with tempfile.TemporaryFile(buffering=0) as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, slot * slots)
    return memory, slot
