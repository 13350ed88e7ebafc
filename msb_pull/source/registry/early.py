"""Blobs that are asked for before it is certain that they are needed.

Without its config nobody knows whether a layer of an image is wanted, or what it must contain. But a distant registry
can answer to both at once. Nothing is read of an early answer before somebody wants the blob, and what goes wrong with
it is told to them alone.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from msb_pull.ground.errors import Cancelled, LocalError
from msb_pull.ground.running import Cancel, start_thread
from msb_pull.source.http.sockets import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor, Manifest
    from msb_pull.source.registry.blob import Route
    from msb_pull.source.registry.body import Body
    from msb_pull.source.registry.downloads import Downloads
    from msb_pull.source.registry.parallel import OpenPart

    # The layers that are likely to be fetched first, and whether they will be unless the config is refused.
    Expect = Callable[[Manifest], tuple[Sequence[Descriptor], bool]]

# Servers give up on who does not read, some after half a minute. What has waited for longer than this is asked for
# anew, in seconds.
_LIFE = 15.0


class EarlyBlobs:
    """What all images of a client have asked for early, for whichever comes to need it first. For any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # None: somebody has it. That it was asked for is known as long as the image that did so is pulled.
        self._openings: dict[Digest, _Opening | None] = {}

    def add(self, digest: Digest, opening: _Opening) -> bool:
        """Notes what is to be asked for; False where another image has done so."""
        with self._guard:
            return self._openings.setdefault(digest, opening) is opening

    def take(self, digest: Digest) -> _Opening | None:
        """What was asked for, to who comes first."""
        with self._guard:
            opening = self._openings.get(digest)
            if opening is not None:
                self._openings[digest] = None
            return opening

    def forget(self, digest: Digest) -> None:
        """From now on it may be asked for again."""
        with self._guard:
            del self._openings[digest]


class Early:
    """What one image asks for early, in threads of its own. Close it."""

    def __init__(self, blobs: EarlyBlobs, downloads: Downloads) -> None:
        self._blobs = blobs
        self._job = downloads.requester.job
        self._patience = downloads.patience
        self._now = downloads.requester.clock.monotonic
        self._cancel = Cancel(downloads.patience.cancel)
        self._threads: list[threading.Thread] = []
        self._asked: dict[Digest, _Opening] = {}

    def run(self, work: Callable[[], None]) -> bool:
        """Does ``work`` in a thread that ends when this is closed; False where there can be no more threads."""

        def obey() -> None:
            with self._patience.obeying(self._cancel):
                work()

        with contextlib.suppress(LocalError):
            self._threads.append(start_thread(obey, "early"))
            return True
        return False

    def ask(self, digest: Digest, route: Route) -> None:
        """Asks for a whole blob, unless another image has done so."""
        opening = _Opening(self._now)
        if self._blobs.add(digest, opening):
            self._asked[digest] = opening
            if not self.run(lambda: opening.open(route)):
                opening.done.set()

    def body(self, digest: Digest, *, whole: bool) -> Body | None:
        """The answer for a blob that is wanted now, None where there is none, or not of the ``whole`` blob.

        Raises what asking for it has ended with, if it was asked for by this very image, and Cancelled.
        """
        opening = self._blobs.take(digest)
        if opening is None:
            return None
        while not opening.done.wait(SLICE):
            self._patience.check()
        if whole and opening.error is not None and opening is self._asked.get(digest):
            raise opening.error
        return opening.take() if whole else None

    def close(self) -> None:
        """Ends what nobody has wanted."""
        self._cancel.set()
        for thread in self._threads:
            thread.join()
        for digest, opening in self._asked.items():
            self._blobs.forget(digest)
            if opening.drop():
                self._job.log("", f"blob {digest.short} was asked for beside the config, and not read", level=2)
        self._asked.clear()


class _Opening:
    """An answer that is on its way, or here."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._now = now
        self._since = now()
        self._guard = threading.Lock()
        self._body: Body | None = None

    def open(self, route: Route) -> None:
        """Waits for the answer, in a thread of its own."""
        try:
            self._body = route.open(0, ranged=True, decode=False)
        except BaseException as error:  # noqa: BLE001 - it is for whoever wants the blob
            self.error = error
        self._since = self._now()
        self.done.set()

    def take(self) -> Body | None:
        """The answer, which is then the caller's; None where there is none any more."""
        with self._guard:
            if self._now() - self._since >= _LIFE:
                return None
            body, self._body = self._body, None
            return body

    def drop(self) -> bool:
        """Ends the answer, and tells whether nobody took it."""
        with self._guard:
            body, self._body = self._body, None
        if body is not None:
            body.close()
        return body is not None or isinstance(self.error, Cancelled)


class EarlyRoute:
    """A route whose blob may have been asked for early; see :class:`msb_pull.source.registry.blob.Route`."""

    def __init__(self, route: Route, digest: Digest, early: Early) -> None:
        self.name = route.name
        self.patient = route.patient
        self.parts: OpenPart | None = route.parts
        self.mark_down = route.mark_down
        self._route = route
        self._digest = digest
        self._early = early

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        early = self._early.body(self._digest, whole=not offset and not decode)
        return early or self._route.open(offset, ranged=ranged, decode=decode)
