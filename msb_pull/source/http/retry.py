"""When to try again: pauses that grow, shared by all threads that talk to the same host."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.running import Cancel

if TYPE_CHECKING:
    from collections.abc import Callable

# A server that asks for more than a minute is not waited for (containers/image has the same cap).
RETRY_AFTER_CAP = 60.0
LONGEST_PAUSE = 30.0
# No server asks for a pause of thirty years: a number as large as these is the Unix time at which to come back.
_UNIX_TIMES = (1e9, 1e11)
# 501 and 505 mean that it will never work; 499 and 522 come from proxies in front of registries.
RETRY_STATUS = frozenset({408, 425, 429, 499, 500, 502, 503, 504, 520, 521, 522, 523, 524})


class Clock(NamedTuple):
    """Time and chance, so that tests need not wait for either."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    wait: Callable[[Cancel, float], bool] = Cancel.wait
    random: Callable[[], float] = random.random

    def sleep(self, cancel: Cancel, seconds: float) -> None:
        """Waits; raises Cancelled as soon as work is to end."""
        if seconds > 0:
            self.wait(cancel, seconds)
        cancel.check()


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, None for none or nonsense.

    RFC 9110 10.2.3 knows seconds and dates; some registries send the Unix time.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        number = float(text[:12])
        return max(0.0, number - now) if _UNIX_TIMES[0] <= number < _UNIX_TIMES[1] else number
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - now)


def when_text(now: float, seconds: float) -> str:
    """The time at which a wait would end, as a person reads it (UTC)."""
    try:
        return datetime.fromtimestamp(now + seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"in {seconds:.0f} seconds"


class Backoff:
    """One pause for each host, which every thread keeps, so that eight of them do not ask eight times as often."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    def pause(self, attempt: int) -> float:
        """Seconds before try number ``attempt`` + 1: 1, 2, 4 … with half of it left to chance."""
        full = min(LONGEST_PAUSE, 2.0 ** min(attempt - 1, 10))
        return full * (0.5 + self._clock.random() / 2)

    def hold(self, host: str, seconds: float) -> None:
        """Makes all threads wait so many seconds before they ask this host again."""
        until = self._clock.monotonic() + seconds
        with self._lock:
            self._until[host] = max(until, self._until.get(host, until))

    def wait(self, host: str, cancel: Cancel) -> None:
        """Waits until the host may be asked; raises Cancelled."""
        while True:
            with self._lock:
                left = self._until.get(host, 0.0) - self._clock.monotonic()
            if left <= 0:
                return
            self._clock.sleep(cancel, left)
