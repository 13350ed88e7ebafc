"""What all blobs of a run share."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msb_pull.source.http.limiter import Limiter
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.registry.requester import Requester


class Connections:
    """How many connections may serve blobs at once, and how much all of them together have brought."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._free = limit
        self._useless: set[str] = set()
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

    def mark_useless(self, place: str) -> None:
        """More connections do not make this place faster."""
        self._useless.add(place)

    def is_useless(self, place: str) -> bool:
        """Whether this place was marked so."""
        return place in self._useless


@dataclass(frozen=True, slots=True)
class Downloads:
    """Who asks for blobs, how fast and over how many connections they come, and what ends the waiting for them."""

    requester: Requester
    limiter: Limiter
    connections: Connections
    patience: Patience
