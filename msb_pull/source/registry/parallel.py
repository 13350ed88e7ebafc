"""One large blob over several connections, for servers that give each connection only so much.

The blob is cut into segments that are fetched ahead of the reader and handed out in order, so memory stays bounded and
the reader still sees one stream. It is an accelerator only: the single connection goes on until a part has really
arrived, and whatever goes wrong here, the reader falls back to one connection, which knows how to deal with it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError, MsbPullError
from msb_pull.ground.running import Cancel, start_thread
from msb_pull.source.http.failures import Failure, RangeIgnored
from msb_pull.source.registry.body import GATHER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.source.http.retry import Clock
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.registry.body import Body
    from msb_pull.source.registry.downloads import Connections

    # Opens the bytes from a start up to an end; raises what :meth:`.blob.Route.open` raises.
    OpenPart = Callable[[int, int], Body]

SEGMENT = 2 << 20
# Seconds: how long a single connection is watched before more are tried, and how long they are.
_WATCH = 1.0
_TRIAL = 1.5
# A reader that waits less than this part of its time is the slow side itself.
_WAITING = 0.8
_GAIN = 1.25
_MORE = 3
_POLL = 0.25


@dataclass(slots=True)
class _Segment:
    start: int
    end: int
    pieces: deque[bytes] = field(default_factory=deque)
    given: int = 0


class PartsReader:
    """Fetches what lies ahead of ``position`` up to ``end`` on ``count`` threads, and on one more once it is in use.

    All methods are for one thread, which goes on at ``position`` with a connection of its own until :meth:`reach` finds
    a part for it. ``arrived`` counts the bytes that have come; ``segment`` is the size of the next part.
    """

    def __init__(
        self, parts: OpenPart, position: int, end: int, count: int, patience: Patience, arrived: Callable[[int], None]
    ) -> None:
        self._parts = parts
        # An interruption loses what is under way, so it is kept small until more connections have proved to pay.
        self.segment = SEGMENT // 2
        # The single connection reads the first segment itself, while the others come to speed.
        self._next = position + self.segment
        self._end = end
        # So many segments may be here at once, which bounds the memory: one for each thread, and two to read from.
        self._window = count + 2
        self._arrived = arrived
        self._patience = patience
        self._changed = threading.Condition()
        self._segments: deque[_Segment] = deque()
        self._trouble: BaseException | None = None
        self._draining = False
        # Ends with the run, and when the reader wants no more.
        self._stop = Cancel(patience.heard)
        self._threads: list[threading.Thread] = []
        for _ in range(count):
            self.add_thread()

    def add_thread(self) -> None:
        """One more connection, if there can be a thread for it: without, the others take longer."""
        with contextlib.suppress(LocalError):
            self._threads.append(start_thread(self._work, "part"))

    def reach(self, position: int) -> bool:
        """Whether the byte at ``position`` is here, so that :meth:`read` begins with it; forgets what lies before it.

        Raises Failure when a connection broke, or once drained.
        """
        with self._changed:
            if self._trouble is not None or self._draining:
                raise Failure("no gain" if self._draining else "a part could not be fetched")
            # The single connection has meanwhile read into the segments, or beyond them, if it is the faster one.
            while self._segments:
                segment = self._segments[0]
                while segment.pieces and segment.start + segment.given < position:
                    self._give(segment, position - segment.start - segment.given)
                if segment.given < segment.end - segment.start:
                    return segment.start + segment.given == position and bool(segment.pieces)
            # All that was fetched lies behind the reader: the next part begins where it is now.
            self._next = max(self._next, position)
            return False

    def read(self, size: int) -> bytes:
        """Returns 1 to ``size`` bytes, b"" at the end, or once drained.

        Raises Failure when a connection broke, Cancelled.
        """
        with self._changed:
            while True:
                self._patience.check()
                if self._segments and self._segments[0].pieces:
                    return self._give(self._segments[0], size)
                if self._trouble is not None:
                    raise Failure("a part could not be fetched") from None
                if not self._segments and (self._next >= self._end or self._draining):
                    return b""
                self._changed.wait(_POLL)

    def drain(self) -> None:
        """Begins no more segments; those that are under way are still handed out."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the threads; they notice within a slice, or a little later on their own."""
        self._stop.set()
        with self._changed:
            self._segments.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(4 * _POLL)

    def _give(self, segment: _Segment, size: int) -> bytes:
        piece = segment.pieces.popleft()
        if len(piece) > size:
            segment.pieces.appendleft(piece[size:])
            piece = piece[:size]
        segment.given += len(piece)
        if segment.given == segment.end - segment.start:
            self._segments.popleft()
            self._changed.notify_all()
        return piece

    def _work(self) -> None:
        self._patience.hear(self._stop)
        try:
            while (segment := self._claim()) is not None:
                self._fetch(segment)
        except (Failure, RangeIgnored, MsbPullError, MemoryError) as error:
            self._fail(error)
        except BaseException as error:
            # A mistake in here must not leave the reader waiting.
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._trouble = error
            self._changed.notify_all()

    def _claim(self) -> _Segment | None:
        with self._changed:
            while len(self._segments) >= self._window and not self._over():
                self._changed.wait(_POLL)
            if self._over() or self._next >= self._end:
                return None
            segment = _Segment(self._next, min(self._next + self.segment, self._end))
            self._next = segment.end
            self._segments.append(segment)
            return segment

    def _over(self) -> bool:
        return self._stop.is_set() or self._draining or self._trouble is not None

    def _fetch(self, segment: _Segment) -> None:
        left = segment.end - segment.start
        with contextlib.closing(self._parts(segment.start, segment.end)) as body:
            while left:
                data = body.read(min(left, GATHER_BYTES))
                if not data:
                    raise Failure("a part ended early")
                left -= len(data)
                self._arrived(len(data))
                with self._changed:
                    segment.pieces.append(data)
                    self._changed.notify_all()


class Accelerator:
    """Watches one blob's single connection and decides whether more of them are worth it."""

    def __init__(self, connections: Connections, clock: Clock, start_parts: Callable[[int], PartsReader]) -> None:
        self.parts: PartsReader | None = None
        self._connections = connections
        self._clock = clock
        self._start_parts = start_parts
        self._taken = 0
        self._settled = False
        self._watching = False
        self._baseline = 0.0
        self._begin()

    def _begin(self) -> None:
        self._since = self._clock.monotonic()
        self._waited = 0.0
        self._own = 0
        self._received = self._connections.received

    def note(self, count: int, waited: float, remaining: int, place: str) -> None:
        """After ``count`` bytes that took ``waited`` seconds to come from ``place``, with ``remaining`` to follow."""
        if not self._watching:
            # The time until the first byte says nothing of how fast the others come.
            self._watching = True
            self._begin()
            return
        self._waited += waited
        self._own += count
        if self._settled:
            return
        elapsed = self._clock.monotonic() - self._since
        if self.parts is None:
            if elapsed >= _WATCH:
                self._consider(elapsed, remaining, place)
        elif elapsed >= _TRIAL:
            self._judge(elapsed, place)

    def stop(self) -> None:
        """Back to a single connection, for good."""
        self._settled = True
        if self.parts is not None:
            self.parts.close()
            self.parts = None
        self._connections.give_back(self._taken)
        self._taken = 0

    def _consider(self, elapsed: float, remaining: int, place: str) -> None:
        """Tries more connections where the network is what is slow, and enough is left for them to pay."""
        self._baseline = (self._connections.received - self._received) / elapsed
        slow_side = self._waited / elapsed < _WAITING
        soon_done = remaining < max(4 * SEGMENT, self._own / elapsed * 2 * _TRIAL)
        if slow_side or soon_done or place in self._connections.useless:
            self._begin()
            return
        self._taken = self._connections.take(_MORE)
        if self._taken:
            self.parts = self._start_parts(self._taken)
        self._begin()

    def _judge(self, elapsed: float, place: str) -> None:
        """All connections together must have become faster, not this blob at the cost of others."""
        rate = (self._connections.received - self._received) / elapsed
        assert self.parts is not None
        if rate < self._baseline * _GAIN:
            # The threads finish what they have begun, and the reader goes back to one connection.
            self._connections.useless.add(place)
            self.parts.drain()
        self.parts.segment = SEGMENT
        self._settled = True
