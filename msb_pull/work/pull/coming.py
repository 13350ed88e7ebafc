"""What the images of one command still have to fetch."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msb_pull.image.digest import Digest


class Coming:
    """The layers that are still to be fetched and their compressed sizes; any thread may call anything."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sizes: dict[Digest, int] = {}

    def add(self, digest: Digest, size: int) -> None:
        """One more is to be fetched."""
        with self._guard:
            self._sizes[digest] = size

    def done(self, digest: Digest) -> None:
        """One of them is fetched, or failed."""
        with self._guard:
            self._sizes.pop(digest, None)

    def leader(self) -> Digest | None:
        """The layer that is larger than all others together, if one is: it is waited for alone in the end."""
        with self._guard:
            if not self._sizes:
                return None
            largest = max(self._sizes, key=self._sizes.__getitem__)
            return largest if 2 * self._sizes[largest] > sum(self._sizes.values()) else None

    def fewer_than(self, processors: int) -> bool:
        """Whether there are so few that a processor is free for more than inflating and writing one of them each."""
        with self._guard:
            return len(self._sizes) < processors
