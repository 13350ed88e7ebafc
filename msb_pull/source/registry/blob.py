"""A blob as one stream that outlives its connections, whichever registry, mirror or address serves it."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from msb_pull.ground import events
from msb_pull.ground.errors import AccessError, ContentError, MsbPullError, NetworkError, NotFoundError
from msb_pull.image.readers import DigestMismatch
from msb_pull.source.http.failures import Failure, RangeIgnored
from msb_pull.source.registry.downloads import Limiter
from msb_pull.source.registry.parallel import Accelerator, PartsReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.image.manifest import Descriptor
    from msb_pull.source.registry.body import Body
    from msb_pull.source.registry.downloads import Downloads
    from msb_pull.source.registry.parallel import OpenPart

# What has arrived since the last trouble for that trouble to be forgotten (containers/image), or a part of the blob.
_PROGRESS = 1 << 20
_PROGRESS_PARTS = 64
# Fewer bytes than this in so many seconds count as a stall.
_STALLED = 1024
_STALL_WINDOW = 60.0


class Route(Protocol):
    """One place that may have the blob; ``name`` is for messages.

    ``patient``: worth trying again when it breaks, since the next one is no better.
    """

    @property
    def name(self) -> str: ...

    @property
    def patient(self) -> bool: ...

    @property
    def parts(self) -> OpenPart | None:
        """Opens any part of the blob, if this place can do that."""

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """Asks for the blob, with ``ranged`` only for what follows ``offset``, where the body then begins.

        Raises NotFoundError, AccessError, NetworkError, ContentError, RangeIgnored, Cancelled.
        """

    def mark_down(self) -> None:
        """This place cannot be reached: it is not to be tried again in this run."""


class RegistryBlob:
    """A BlobStream over the given routes, the best first. Not for several threads.

    A ``document`` is small: each answer must be here whole by the deadline of its request, and a few bytes that came
    before it broke earn no further tries.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        offset: int,
        routes: Sequence[Route],
        *,
        downloads: Downloads,
        image: str,
        decode: bool,
        delivered: Callable[[RegistryBlob], None],
        document: bool = False,
    ) -> None:
        self.ambiguous = False
        self._descriptor = descriptor
        self._size = descriptor.size
        self._position = offset
        self._routes = list(routes)
        self._image = image
        self._requester = downloads.requester
        self._job = downloads.requester.job
        self._clock = downloads.requester.clock
        # A document has a deadline, which a rate for large things must not use up.
        self._limiter = Limiter(None, self._clock, downloads.patience) if document else downloads.limiter
        self._decode = decode
        self._delivered = delivered
        self._document = document
        # False once a part was refused: from then on the whole blob is asked for and its beginning passed over.
        self._ranged = True
        # Where the part that is being read began; None while it is the whole blob.
        self._part_from: int | None = None
        self._body: Body | None = None
        self._failures = 0
        self._last_trouble_at = offset
        self._window_start = 0.0
        self._window_bytes = 0
        self._patience = downloads.patience
        self._connections = downloads.connections
        self._fast = Accelerator(self._connections, self._clock, self._start_parts)
        self._entered = False

    @property
    def digest(self) -> str:
        """What is being read."""
        return str(self._descriptor.digest)

    @property
    def route(self) -> Route:
        """Where the bytes come from at the moment."""
        return self._routes[0]

    def read(self, size: int, /) -> bytes:
        """See :class:`msb_pull.source.interface.BlobStream`."""
        while self._position < self._size:
            self._patience.heard.check()
            started = self._clock.monotonic()
            try:
                data = self._read(size) if self._fast.parts is None else self._read_parts(self._fast.parts, size)
            except Failure as failure:
                self._broken(failure)
                continue
            self._position += len(data)
            self._consider_more(len(data), self._clock.monotonic() - started)
            if self._position == self._size:
                self._finish()
            self._limiter.take(len(data))
            return data
        return b""

    def close(self) -> None:
        """Gives the connection back or ends it; idempotent."""
        self._fast.stop()
        self._drop_body()
        if self._entered:
            self._entered = False
            self._connections.give_back(1)

    def __enter__(self) -> RegistryBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, size: int) -> bytes:
        if not self._entered:
            self._entered = True
            self._connections.enter()
        if self._body is None:
            self._body = self._open()
            self._part_from = self._position if self._body.answer.status == HTTPStatus.PARTIAL_CONTENT else None
            self._window_start, self._window_bytes = self._clock.monotonic(), 0
        with self._body.answer.until() if self._document else contextlib.nullcontext():
            data = self._body.read(self._limiter.piece(min(size, self._size - self._position)))
        if not data and self._body.ambiguous and not self._body.answer.open_ended:
            # What came was whole, but encoded and so shorter: worth another pass from the start, which decodes.
            self._delivered(self)
            raise DigestMismatch(
                f"{self._image}: blob {self._descriptor.digest.short} is shorter than the manifest says"
            )
        if not data:
            raise self._body.early_end(f"the answer ended after {self._position} of {self._size} bytes")
        self._connections.add(len(data))
        self._window_bytes += len(data)
        now = self._clock.monotonic()
        if now - self._window_start >= _STALL_WINDOW:
            if self._window_bytes < _STALLED:
                raise Failure(f"less than {_STALLED} bytes in {now - self._window_start:.0f} seconds")
            self._window_start, self._window_bytes = now, 0
        return data

    def _read_parts(self, parts: PartsReader, size: int) -> bytes:
        """Reads what several connections bring, once they do; the single one goes on until then, and when they fail.

        The parts begin a little ahead of the single connection, so the bytes in between come from that one. As soon as
        it has reached what the parts hold, it is closed, and its place taken by one more thread for parts.
        """
        reason = "no gain"
        try:
            waiting = self._body is not None and not parts.reach(self._position)
            if not waiting and self._body is not None:
                self._drop_body()
                parts.add_thread()
            if not waiting and (data := parts.read(size)):
                return data
        except Failure as failure:
            waiting = False
            reason = failure.reason
        if waiting:
            return self._read(size)
        if self._body is not None:
            # Not even one part has come: no other blob need try this place.
            self._connections.useless.add(self.route.name)
        self._log(f"blob {self._descriptor.digest.short}: {reason}; back to one connection")
        self._fast.stop()
        return self._read(size)

    def _consider_more(self, count: int, waited: float) -> None:
        """Lets the accelerator see how the reading goes; a limited rate needs no more connections."""
        possible = self._fast.parts is not None or (self._body is not None and self._body.divisible)
        if possible and self._limiter.rate is None and self.route.parts is not None:
            self._fast.note(count, waited, self._size - self._position, self.route.name)

    def _start_parts(self, count: int) -> PartsReader:
        assert self.route.parts is not None
        self._log(f"blob {self._descriptor.digest.short}: trying {count + 1} connections")
        return PartsReader(self.route.parts, self._position, self._size, count, self._patience, self._connections.add)

    def _open(self) -> Body:
        """Opens the first route that works; those before it are left for good."""
        while True:
            try:
                body = self.route.open(self._position, ranged=self._ranged, decode=self._decode)
            except RangeIgnored as reason:
                if not self._ranged:
                    raise Failure(str(reason)) from reason
                self._log(f"{self.route.name}: {reason}; reading from the start")
                self._ranged = False
            except (NotFoundError, AccessError, NetworkError, ContentError) as error:
                self._leave(error)
            else:
                self.ambiguous = body.ambiguous
                return body

    def _broken(self, failure: Failure) -> None:
        """Decides what follows a failure: this route again after a pause, the next one, or the end."""
        self._fast.stop()
        self._drop_body()
        step = min(_PROGRESS, max(1, self._size // _PROGRESS_PARTS))
        if self._position - self._last_trouble_at >= step and not self._document:
            self._failures = 0
        self._last_trouble_at = self._position
        self._failures += 1
        allowed = self._requester.retries if self.route.patient else 0
        # Where parts are promised and nothing of one ever comes, the whole blob may still: it is asked for first.
        if (not failure.retry or self._failures > allowed) and self._part_from == self._position:
            self._log(f"{self.route.name}: no part of the blob arrives; reading from the start")
            self._ranged = False
            return
        if not failure.retry or self._failures > allowed:
            what = f"{self._image}: blob {self._descriptor.digest.short} from {self.route.name} broke off"
            self._leave(NetworkError(what, cause=failure.reason, hint=failure.hint))
            return
        # The first time after some progress the line is probably fine: only a moment, so that not all threads come
        # back in the same instant.
        delay = self._clock.random() / 4 if self._failures == 1 else self._requester.backoff.pause(self._failures - 1)
        what = f"blob {self._descriptor.digest.short} at byte {self._position}"
        self._job.eased.set()
        self._job.tell(events.Retrying(self._image, what, failure.reason, self._failures, delay, allowed))
        self._clock.sleep(self._patience.heard, delay)

    def _leave(self, error: MsbPullError) -> None:
        """Goes on with the next route, or raises the error when this was the last."""
        self._drop_body()
        if len(self._routes) == 1:
            raise error
        left = self._routes.pop(0)
        if isinstance(error, NetworkError):
            left.mark_down()
        # Nothing that was learned of one place counts for the next.
        self._failures = 0
        self._ranged = True
        reason = error.cause or error.message
        text = f"blob {self._descriptor.digest.short}: {left.name}: {reason}; continuing with {self.route.name}"
        self._job.warn(self._image, text)

    def _finish(self) -> None:
        """The last byte is here: nothing may follow it. (Parts cannot be longer than what was asked for.)"""
        body = self._body
        self._delivered(self)
        if body is not None and not body.ended():
            # Worth another pass from the start only where that pass can go otherwise.
            kind = DigestMismatch if body.ambiguous or len(self._routes) > 1 else ContentError
            self.close()
            raise kind(
                f"{self._image}: blob {self._descriptor.digest.short} is longer than the manifest says",
                cause=f"{self.route.name} sends more than {self._size} bytes",
            )
        self.close()

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def _log(self, text: str) -> None:
        self._job.log(self._image, text)
