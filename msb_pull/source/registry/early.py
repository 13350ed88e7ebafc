"""Blobs that are asked for before it is certain that they are needed.

Without its config nobody knows whether a layer of an image is wanted, or what it must contain. But a distant registry
can answer to both at once. Nothing is read of an early answer before somebody wants the blob, and what goes wrong with
it is told to them alone.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from msb_pull.ground.errors import AccessError, Cancelled, ContentError, LocalError, NetworkError, NotFoundError
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

    # A place, and the digest of what is asked of it.
    Blob = tuple[str, Digest]
    # The layers that are likely to be fetched first, and whether they will be unless the config is refused.
    Expect = Callable[[Manifest], tuple[Sequence[Descriptor], bool]]

# Seconds that an answer waits for somebody to read it. Servers give up on who does not, some after half a minute; and
# one that serves few at a time may keep the config back until then.
_LIFE = 5.0
# What a registry has said of a blob. Anything else that keeps one from being asked for early may pass.
_VERDICTS = (NotFoundError, AccessError, NetworkError, ContentError)


class EarlyBlobs:
    """What all images of a client have asked for early, for whichever comes to need it first. For any thread.

    Blobs are named by place and digest: what one place sends must not be taken for what another one would have sent.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # None: somebody has it. That it was asked for is known as long as the image that did so is pulled.
        self._openings: dict[Blob, _Opening | None] = {}

    def add(self, blob: Blob, opening: _Opening) -> bool:
        """Notes what is to be asked for; False where another image has done so."""
        with self._guard:
            return self._openings.setdefault(blob, opening) is opening

    def take(self, blob: Blob) -> _Opening | None:
        """What was asked for, to who comes first."""
        with self._guard:
            opening = self._openings.get(blob)
            if opening is not None:
                self._openings[blob] = None
            return opening

    def forget(self, blob: Blob) -> None:
        """From now on it may be asked for again."""
        with self._guard:
            del self._openings[blob]


class Early:
    """What one image asks for early, in threads of its own. Close it."""

    def __init__(self, blobs: EarlyBlobs, downloads: Downloads) -> None:
        self._blobs = blobs
        self._job = downloads.requester.job
        self._patience = downloads.patience
        self._cancel = Cancel(downloads.patience.cancel)
        self._threads: list[threading.Thread] = []
        self._asked: dict[Blob, _Opening] = {}

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
        what = f"blob {digest.short} was asked for beside the config, and not read"
        opening = _Opening(lambda: self._job.log("", what, level=2))
        if self._blobs.add((route.name, digest), opening):
            self._asked[route.name, digest] = opening
            if not self.run(lambda: opening.open(route)):
                opening.done.set()

    def body(self, digest: Digest, route: Route, *, whole: bool) -> Body | None:
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
    """An answer that is on its way, or here until somebody takes it or it has waited for too long.

    ``unread`` is called when it ends without having been taken.
    """

    def __init__(self, unread: Callable[[], None]) -> None:
        self._unread = unread
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
            if isinstance(error, Cancelled):
                self._unread()
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
            self._unread()


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
        early = self._early.body(self._digest, self._route, whole=not offset and not decode)
        return early or self._route.open(offset, ranged=ranged, decode=decode)
