"""What all blobs of a run share: connections, and the rate of ``--limit-rate``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from msb_pull.source.http.retry import Clock
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.registry.requester import Requester

# What may be spent at once after a pause, in seconds of the rate: smooth, yet not one wait for each packet.
_BURST = 0.1


class Connections:
    """How many connections may serve blobs at once, and how much all of them together have brought."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._free = limit
        # Places that more connections do not make faster.
        self.useless: set[str] = set()
        self.received = 0

    def enter(self) -> None:
        """Counts the one connection that every blob may have."""
        with self._lock:
            self._free -= 1

    def take(self, wanted: int) -> int:
        """Takes up to ``wanted`` more; returns how many were free."""
        with self._lock:
            got = max(0, min(wanted, self._free))
            self._free -= got
            return got

    def give_back(self, count: int) -> None:
        """Frees connections."""
        with self._lock:
            self._free += count

    def add(self, count: int) -> None:
        """Counts bytes."""
        with self._lock:
            self.received += count


class Limiter:
    """A token bucket for all threads; without a rate it costs one comparison."""

    def __init__(self, rate: int | None, clock: Clock, patience: Patience) -> None:
        self.rate = rate
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()
        self._free = 0.0

    def piece(self, size: int) -> int:
        """How much to read at once, so that a slow rate does not come in bursts of many seconds."""
        return size if self.rate is None else max(1, min(size, int(self.rate * _BURST) or 1))

    def take(self, count: int) -> None:
        """Accounts for bytes that have arrived and waits until they are paid for; raises Cancelled."""
        if self.rate is None:
            return
        with self._lock:
            now = self._clock.monotonic()
            self._free = max(self._free, now - _BURST) + count / self.rate
            wait = self._free - now
        self._clock.sleep(self._patience.heard, wait)


class Downloads(NamedTuple):
    """Who asks for blobs, how fast and over how many connections they come, and what ends the waiting for them."""

    requester: Requester
    limiter: Limiter
    connections: Connections
    patience: Patience
