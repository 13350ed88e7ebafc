"""One layer on its way to its place in the store: how far it is, and who may hold its lock.

Two pulls whose images stack the same two layers in opposite orders could wait for each other forever. Each has unpacked
its upper layer first and keeps that locked until the layer below is published, since it takes facts from below. Then
each turns to its lower layer, which is the upper one of the other pull, and so is locked. Three rules avoid this:

- A thread of the pool never waits for a lock: it marks a locked layer ``ELSEWHERE`` and fetches the next one.
- Only the main thread waits. It goes bottom first, so everything below is published and unlocked by then.
- Once it has waited for a second, it lets go of the lock of every layer that is unpacked but not published, and lays
  what is unpacked on the shelf. Another pull may then make the same layer. When the turn of that layer comes, the main
  thread takes its lock again, and drops what is on the shelf if the copy that is now in the store fits.

The images of one command wait for each other just as those of two processes do. But they share a shelf: what one of
them had to let go, another one publishes, and nothing is fetched twice.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from typing import TYPE_CHECKING

from msb_pull.store.locks import Busy

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from msb_pull.ground.running import Flag
    from msb_pull.image.digest import Digest
    from msb_pull.store.index.keys import LayerKey
    from msb_pull.store.store import Store
    from msb_pull.work.pull.fetch import FetchedLayer
    from msb_pull.work.pull.plan import WantedLayer
    from msb_pull.work.pull.sharing import Shelf


class State(enum.Enum):
    """How far a layer is."""

    MISSING = enum.auto()
    """It is not in the store, and nothing has been done about that."""
    FETCHING = enum.auto()
    """It waits for a thread of the pool, or one works on it."""
    ELSEWHERE = enum.auto()
    """Another pull holds its lock, or may have it: what this one has unpacked, if anything, lies on the shelf."""
    FETCHED = enum.auto()
    """It is unpacked in staging, locked, and waits for the layers below."""
    PUBLISHED = enum.auto()
    """This pull made it."""
    PRESENT = enum.auto()
    """It was in the store, or another pull was faster."""


class Placing:
    """A layer that gets one place in the store, and at least one position in the image.

    ``position`` counts from the bottom and is the lowest that it has; ``chain`` is the ChainID of what lies below that
    one ("" for nothing).
    """

    def __init__(self, wanted: WantedLayer, position: int, chain: str, key: LayerKey, state: State) -> None:
        self.wanted = wanted
        self.position = position
        self.chain = chain
        # Written by the thread that publishes it: of the pool for a layer that takes nothing from below, else main.
        self.key = key
        # Written by the pool while it is FETCHING, else by main. It leaves FETCHED under the guard only.
        self.state = state
        # Written by the pool, before ``state``, or taken from the shelf; main takes it away again from what another
        # pull published first.
        self.fetched: FetchedLayer | None = None
        # Filled with ``fetched``, emptied by main: the staging directory.
        self.resources = contextlib.ExitStack()
        # Written by main.
        self.future: Future[None] | None = None
        self._guard = threading.Lock()
        # Written by main, under the guard: where to lay what is unpacked, while others may have the lock.
        self._shelf: Shelf | None = None
        # Written by the pool while it is FETCHING, else by main, or by either under the guard.
        self._lock = contextlib.ExitStack()
        self._locked = False

    @property
    def digest(self) -> Digest:
        """The compressed blob's."""
        return self.wanted.descriptor.digest

    @property
    def size(self) -> int:
        """Compressed bytes."""
        return self.wanted.descriptor.size

    @property
    def present(self) -> bool:
        """Whether this pull has nothing to do for it, or had nothing to do in the end."""
        return self.state is State.PRESENT

    @property
    def bytes_fetched(self) -> int:
        """How much came over the network."""
        return self.fetched.fetched if self.fetched is not None else 0

    @property
    def reused(self) -> bool:
        """Whether it was made from a layer that the store has under another digest."""
        return self.fetched is not None and self.fetched.reused

    def try_lock(self, store: Store, cancel: Flag) -> bool:
        """Takes the lock unless another pull holds it; True as well when it is held already."""
        with contextlib.suppress(Busy):
            self._take(store, lambda holder: None, cancel, wait=False)
        return self._locked

    def wait_for_lock(self, store: Store, waiting: Callable[[str], None], cancel: Flag) -> None:
        """Takes the lock, however long that takes; ``waiting`` is called with the holder. For the main thread.

        Raises Cancelled.
        """
        self._take(store, waiting, cancel, wait=True)

    def unlock(self) -> None:
        """Gives up the lock, if it is held, for good."""
        self._locked = False
        self._lock.close()

    def take_from(self, shelf: Shelf) -> bool:
        """Takes what was unpacked of this layer, if anything was, and returns whether; for who holds the lock."""
        self.fetched = shelf.take(self.wanted, self.resources)
        return self.fetched is not None

    def drop(self) -> None:
        """Removes what was unpacked and not published."""
        self.fetched = None
        self.resources.close()

    def arrived(self) -> None:
        """Called by the pool once the layer is unpacked and cannot be published yet."""
        with self._guard:
            self.state = State.FETCHED
            self._give_up()

    def let_go(self, shelf: Shelf) -> None:
        """Gives up the lock if the layer is unpacked, or as soon as it is, until :meth:`keep`. For the main thread."""
        with self._guard:
            self._shelf = shelf
            self._give_up()

    def keep(self) -> None:
        """Ends :meth:`let_go`."""
        with self._guard:
            self._shelf = None

    def close(self) -> None:
        """Gives up the lock, and what lies in staging. No thread of the pool may be at work on it."""
        self.unlock()
        self.resources.close()

    def _give_up(self) -> None:
        if self._shelf is not None and self.state is State.FETCHED:
            assert self.fetched is not None
            self._shelf.put(self.wanted, self.fetched, self.resources)
            self.fetched = None
            self.state = State.ELSEWHERE
            self.unlock()

    def _take(self, store: Store, waiting: Callable[[str], None], cancel: Flag, *, wait: bool) -> None:
        if not self._locked:
            self._lock.enter_context(store.lock_layer(self.digest, waiting, cancel, wait=wait))
            self._locked = True
