"""The places where one blob may be read."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msb_pull.ground.errors import AccessError, ContentError, NetworkError, NotFoundError
from msb_pull.source.http import redact
from msb_pull.source.http.failures import RangeIgnored
from msb_pull.source.registry.body import Body
from msb_pull.source.registry.endpoint import Endpoint, Target, forbidden

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.image.manifest import Descriptor
    from msb_pull.source.registry.parallel import OpenPart
    from msb_pull.source.registry.requester import Requester

_WHOLE = frozenset({200})
_PARTS = frozenset({200, 206, 416})
_PART = frozenset({206})


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
