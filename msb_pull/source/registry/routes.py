"""The places where one blob may be read, and what is asked of them before it is certain to be needed.

Without its config nobody knows whether a layer of an image is wanted, or what it must contain. But a distant registry
can answer to both at once. Nothing is read of an early answer before somebody wants the blob, and what goes wrong with
it is told to them alone.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msb_pull.ground.errors import AccessError, ContentError, LocalError, NetworkError, NotFoundError
from msb_pull.ground.running import Cancel, start_thread
from msb_pull.source.http import redact
from msb_pull.source.http.failures import RangeIgnored
from msb_pull.source.http.sockets import SLICE
from msb_pull.source.registry.body import Body
from msb_pull.source.registry.endpoint import Endpoint, Target, forbidden

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.image.manifest import Descriptor
    from msb_pull.source.registry.blob import Route
    from msb_pull.source.registry.downloads import Downloads
    from msb_pull.source.registry.parallel import OpenPart
    from msb_pull.source.registry.requester import Requester

_WHOLE = frozenset({200})
_PARTS = frozenset({200, 206, 416})
_PART = frozenset({206})
# Seconds that an answer waits for somebody to read it. Servers give up on who does not, some after half a minute; and
# one that serves few at a time may keep the config back until then.
_LIFE = 5.0
# What a registry has said of a blob. Anything else that keeps one from being asked for early may pass.
_VERDICTS = (NotFoundError, AccessError, NetworkError, ContentError)


class _Place:
    """Asks for a blob in one place; see :class:`msb_pull.source.registry.blob.Route`."""

    def __init__(
        self,
        requester: Requester,
        target: Target,
        descriptor: Descriptor,
        *,
        patient: bool = True,
        troubled: Callable[[], None] | None = None,
    ) -> None:
        """``troubled`` is called before the place is asked again."""
        self.name = target.endpoint.host
        self.patient = patient
        self._troubled = troubled
        self._requester = requester
        self._target = target
        self._descriptor = descriptor

    def _ask(
        self, offset: int, end: int | None, *, ranged: bool, decode: bool = False, address: str | None = None
    ) -> Body:
        """What follows ``offset``, or the part up to ``end``; ``address`` is asked in place of the registry."""
        if end is not None:
            span, accept = f"{offset}-{end - 1}", _PART
        else:
            span, accept = (f"{offset}-", _PARTS) if ranged and offset > 0 else ("", _WHOLE)
        return self._requester.get(
            self._target,
            "blobs",
            str(self._descriptor.digest),
            {"Range": f"bytes={span}"} if span else {},
            accept=accept,
            take=lambda answer: Body(answer, offset=offset, end=end, size=self._descriptor.size, decode=decode),
            retries=None if self.patient and end is None else 0,
            address=address,
            troubled=self._troubled,
        )


class EndpointRoute(_Place):
    """A registry or one of its mirrors, always by its own address: those it redirects to expire."""

    _seen_at: str | None = None

    @property
    def parts(self) -> OpenPart:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        return self._open_part

    def _open_part(self, start: int, end: int) -> Body:
        """Goes straight to where an earlier part was found."""
        if (address := self._seen_at) is not None:
            try:
                return self._ask(start, end, ranged=True, address=address)
            except (NotFoundError, AccessError, NetworkError, RangeIgnored):
                # It may have expired; the registry names another one.
                self._seen_at = None
        body = self._ask(start, end, ranged=True)
        if urlsplit(body.answer.url).netloc != self._target.endpoint.host:
            self._seen_at = body.answer.url
        return body

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        return self._ask(offset, None, ranged=ranged, decode=decode)

    def mark_down(self) -> None:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        if not self.patient:
            self._requester.down.add(self.name)


class ForeignRoute(_Place):
    """An address that the manifest names for a layer that registries may not pass on; it never sees credentials."""

    parts = None

    def __init__(self, requester: Requester, target: Target, descriptor: Descriptor, url: str) -> None:
        host = redact.host_of(url) or "a foreign address"
        super().__init__(requester, Target(Endpoint(host), target.repository, host, target.what), descriptor)
        self._url = url
        self._base = f"{target.endpoint.scheme or 'http'}://{target.endpoint.host}"

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        if reason := forbidden(self._url, self._base):
            raise ContentError(
                f"{self._target.what}: layer {self._descriptor.digest.short} is not fetched from its foreign address",
                cause=f"the manifest names {reason}",
            )
        return self._ask(offset, None, ranged=ranged, decode=decode, address=self._url)

    def mark_down(self) -> None:
        """Other layers may still be there."""


class EarlyBlobs:
    """What all images of a client have asked for early, for whichever comes to need it first. For any thread.

    Blobs are named by place and digest: what one place sends must not be taken for what another one would have sent.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # None: somebody has it. That it was asked for is known as long as the image that did so is pulled.
        self._openings: dict[tuple[str, str], _Opening | None] = {}

    def add(self, blob: tuple[str, str], opening: _Opening) -> bool:
        """Notes what is to be asked for; False where another image has done so."""
        with self._guard:
            return self._openings.setdefault(blob, opening) is opening

    def take(self, blob: tuple[str, str]) -> _Opening | None:
        """What was asked for, to who comes first."""
        with self._guard:
            opening = self._openings.get(blob)
            if opening is not None:
                self._openings[blob] = None
            return opening

    def forget(self, blob: tuple[str, str]) -> None:
        """From now on it may be asked for again."""
        with self._guard:
            del self._openings[blob]


class Early:
    """What one image asks for early, in threads of its own. Close it."""

    def __init__(self, blobs: EarlyBlobs, downloads: Downloads) -> None:
        self._blobs = blobs
        self._patience = downloads.patience
        self._cancel = Cancel(downloads.patience.cancel)
        self._threads: list[threading.Thread] = []
        self._asked: dict[tuple[str, str], _Opening] = {}

    def run(self, work: Callable[[], None]) -> bool:
        """Does ``work`` in a thread that ends when this is closed; False where there can be no more threads."""

        def obey() -> None:
            with self._patience.obeying(self._cancel):
                work()

        with contextlib.suppress(LocalError):
            self._threads.append(start_thread(obey, "early"))
            return True
        return False

    def ask(self, digest: str, route: Route) -> None:
        """Asks for a whole blob, unless another image has done so."""
        opening = _Opening()
        if self._blobs.add((route.name, digest), opening):
            self._asked[route.name, digest] = opening
            if not self.run(lambda: opening.open(route)):
                opening.done.set()

    def body(self, digest: str, route: Route, *, whole: bool) -> Body | None:
        """The answer for a blob that is wanted now, None where there is none, or not of the ``whole`` blob.

        Raises what the registry has said of it, if it was asked for by this very image, and Cancelled.
        """
        opening = self._blobs.take((route.name, digest))
        if opening is None:
            return None
        if not whole:
            opening.drop()
            return None
        while not opening.done.wait(SLICE):
            self._patience.check()
        error, body = opening.take()
        if isinstance(error, _VERDICTS) and opening is self._asked.get((route.name, digest)):
            raise error
        return body

    def let_go(self) -> None:
        """Ends what nobody has wanted; it is asked for anew by who comes to want it."""
        self._cancel.set()
        for opening in self._asked.values():
            opening.drop()

    def close(self) -> None:
        """The same, for good."""
        self.let_go()
        for thread in self._threads:
            thread.join()
        for blob in self._asked:
            self._blobs.forget(blob)
        self._asked.clear()


class _Opening:
    """An answer that is on its way, or here until somebody takes it or it has waited for too long."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._over = threading.Event()
        self._guard = threading.Lock()
        self._error: BaseException | None = None
        self._body: Body | None = None

    def open(self, route: Route) -> None:
        """Waits for the answer, and for who takes it, in a thread of its own."""
        found: tuple[BaseException | None, Body | None]
        try:
            found = None, route.open(0, ranged=True, decode=False)
        except BaseException as error:  # noqa: BLE001 - it is for whoever wants the blob
            found = error, None
        with self._guard:
            self._error, self._body = found
            dropped = self._over.is_set()
        self.done.set()
        if dropped or not self._over.wait(_LIFE):
            self.drop()

    def take(self) -> tuple[BaseException | None, Body | None]:
        """The answer, which is then the caller's, or what came in its place; neither where it is gone."""
        with self._guard:
            self._over.set()
            found, self._error, self._body = (self._error, self._body), None, None
        return found

    def drop(self) -> None:
        """Ends the answer if nobody took it, be it still to come."""
        _, body = self.take()
        if body is not None:
            body.close()


class EarlyRoute:
    """A route whose blob may have been asked for early; see :class:`msb_pull.source.registry.blob.Route`."""

    def __init__(self, route: Route, digest: str, early: Early) -> None:
        self.name = route.name
        self.patient = route.patient
        self.parts: OpenPart | None = route.parts
        self.mark_down = route.mark_down
        self._route = route
        self._digest = digest
        self._early = early

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        early = self._early.body(self._digest, self._route, whole=not offset and not decode)
        return early or self._route.open(offset, ranged=ranged, decode=decode)
