"""What is asked for before it is certain to be needed: the first layers of an image, beside its config.

Without the config nobody knows whether a layer is wanted, or what it must contain. But a distant registry can answer to
both at once. Nothing is read of an early answer before somebody wants the blob, and what goes wrong with it is told to
them alone.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError
from msb_pull.ground.running import Cancel, start_thread
from msb_pull.source.http.sockets import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.registry.blob import Route
    from msb_pull.source.registry.body import Body
    from msb_pull.source.registry.downloads import Downloads
    from msb_pull.source.registry.parallel import OpenPart

# Servers give up on who does not read, some after half a minute. What has waited for longer than this is asked for
# anew, in seconds.
_LIFE = 15.0


class EarlyBlobs:
    """What all images of a client have asked for early, for whichever comes to need it first. For any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # None: somebody has it. That it was asked for is known as long as the image that did so is pulled.
        self._openings: dict[str, _Opening | None] = {}

    def add(self, digest: str, ask: Callable[[], _Opening]) -> bool:
        """Asks for a blob unless that was done before; returns whether."""
        with self._guard:
            if digest in self._openings:
                return False
            self._openings[digest] = ask()
            return True

    def take(self, digest: str) -> _Opening | None:
        """The answer to what was asked for, which is then the caller's; None where there is none."""
        with self._guard:
            opening = self._openings.get(digest)
            if opening is not None:
                self._openings[digest] = None
            return opening

    def forget(self, digest: str) -> _Opening | None:
        """The same, and the blob may be asked for again."""
        with self._guard:
            return self._openings.pop(digest)


class Early:
    """What one image asks for early, in threads of its own. Close it."""

    def __init__(self, blobs: EarlyBlobs, downloads: Downloads) -> None:
        self._blobs = blobs
        self._patience = downloads.patience
        self._now = downloads.requester.clock.monotonic
        self._cancel = Cancel(downloads.patience.cancel)
        self._threads: list[threading.Thread] = []
        self._asked: list[str] = []

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

        def start() -> _Opening:
            opening = _Opening(self, self._now)
            if not self.run(lambda: opening.open(route)):
                opening.give_up()
            return opening

        if self._blobs.add(digest, start):
            self._asked.append(digest)

    def route(self, digest: str, route: Route) -> Route:
        """``route``, and the answer to what was asked for if it is still to be had."""
        opening = self._blobs.take(digest)
        return route if opening is None else EarlyRoute(route, opening, self._patience, own=opening.asker is self)

    def close(self) -> None:
        """Ends what nobody has wanted."""
        self._cancel.set()
        for thread in self._threads:
            thread.join()
        for digest in self._asked:
            if (opening := self._blobs.forget(digest)) is not None:
                opening.drop()
        self._asked.clear()


class _Opening:
    """An answer that is on its way, or here."""

    def __init__(self, asker: Early, now: Callable[[], float]) -> None:
        self.asker = asker
        self._now = now
        self._done = threading.Event()
        self._body: Body | None = None
        self._error: BaseException | None = None
        self._since = now()

    def open(self, route: Route) -> None:
        """Waits for the answer, in a thread of its own."""
        try:
            self._body = route.open(0, ranged=True, decode=False)
        except BaseException as error:  # noqa: BLE001 - it is for whoever wants the blob
            self._error = error
        self._since = self._now()
        self._done.set()

    def give_up(self) -> None:
        """There will be no answer."""
        self._done.set()

    def take(self, patience: Patience, *, whole: bool, own: bool) -> Body | None:
        """The answer, None where it is of no use; raises what the asker's own request has ended with, Cancelled."""
        while not self._done.wait(SLICE):
            patience.check()
        if self._error is not None and own and whole:
            raise self._error
        if self._body is not None and whole and self._now() - self._since < _LIFE:
            return self._body
        self.drop()
        return None

    def drop(self) -> None:
        """Ends the answer."""
        if self._body is not None:
            self._body.close()


class EarlyRoute:
    """A route that may be open before its blob is read; see :class:`msb_pull.source.registry.blob.Route`.

    ``own``: the same image has asked, so that an error is an answer as well.
    """

    def __init__(self, route: Route, opening: _Opening, patience: Patience, *, own: bool) -> None:
        self.name = route.name
        self.patient = route.patient
        self.parts: OpenPart | None = route.parts
        self.mark_down = route.mark_down
        self._route = route
        self._opening: _Opening | None = opening
        self._patience = patience
        self._own = own

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        opening, self._opening = self._opening, None
        if opening is not None:
            body = opening.take(self._patience, whole=not offset and not decode, own=self._own)
            if body is not None:
                return body
        return self._route.open(offset, ranged=ranged, decode=decode)
