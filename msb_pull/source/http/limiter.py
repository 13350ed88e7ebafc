"""--limit-rate: so many bytes a second for all downloads of a run together."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msb_pull.ground.running import Cancel
    from msb_pull.source.http.retry import Clock

# What may be spent at once after a pause, in seconds of the rate: smooth, yet not one wait for each packet.
_BURST = 0.1


class Limiter:
    """A token bucket for all threads; without a rate it costs one comparison."""

    def __init__(self, rate: int | None, clock: Clock, cancel: Cancel) -> None:
        self.rate = rate
        self._clock = clock
        self._cancel = cancel
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
        self._clock.sleep(self._cancel, wait)
