"""The places where one blob may be read."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msb_pull.ground.errors import AccessError, ContentError, NetworkError, NotFoundError
from msb_pull.source.http import redact
from msb_pull.source.http.failures import RangeIgnored
from msb_pull.source.registry.blob import Route
from msb_pull.source.registry.body import Body
from msb_pull.source.registry.endpoint import Endpoint, Target, forbidden

if TYPE_CHECKING:
    from msb_pull.image.manifest import Descriptor
    from msb_pull.source.http.transport import Answer
    from msb_pull.source.registry.parallel import Parts
    from msb_pull.source.registry.registry import RegistryClient

__all__ = ["EndpointRoute", "ForeignRoute", "Route"]

_WHOLE = frozenset({200})
_PARTS = frozenset({200, 206, 416})
_PART = frozenset({206})


class EndpointRoute:
    """A registry or one of its mirrors, always by its own address: those it redirects to expire."""

    def __init__(self, client: RegistryClient, target: Target, descriptor: Descriptor, *, mirror: bool) -> None:
        self.name = target.endpoint.host
        self.patient = not mirror
        self._client = client
        self._target = target
        self._descriptor = descriptor
        self._seen_at: str | None = None

    @property
    def parts(self) -> Parts:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        return self

    def open_part(self, start: int, end: int) -> Body:
        """See :class:`msb_pull.source.registry.parallel.Parts`; goes straight to where an earlier part was found."""
        if (address := self._seen_at) is not None:
            try:
                return self._part(start, end, address)
            except (NotFoundError, AccessError, NetworkError, RangeIgnored):
                self._seen_at = None
        body = self._part(start, end, None)
        if urlsplit(body.answer.url).netloc != self._target.endpoint.host:
            self._seen_at = body.answer.url
        return body

    def _part(self, start: int, end: int, address: str | None) -> Body:
        return self._client.exchange.get(
            self._target,
            "blobs",
            str(self._descriptor.digest),
            {"Range": f"bytes={start}-{end - 1}"},
            accept=_PART,
            take=lambda answer: Body(answer, offset=start, end=end, size=self._descriptor.size, decode=False),
            retries=0,
            address=address,
        )

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        return _open(self._client, self._target, self._descriptor, None, self.patient, offset, ranged, decode)

    def mark_down(self, reason: str) -> None:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        if not self.patient:
            self._client.mark_down(self.name, reason)


class ForeignRoute:
    """An address that the manifest names for a layer that registries may not pass on; it never sees credentials."""

    patient = True
    parts = None

    def __init__(self, client: RegistryClient, target: Target, descriptor: Descriptor, url: str) -> None:
        self.name = redact.host_of(url) or "a foreign address"
        self._client = client
        self._descriptor = descriptor
        self._url = url
        self._base = f"{target.endpoint.scheme or 'http'}://{target.endpoint.host}"
        self._target = Target(Endpoint(self.name), target.repository, self.name, target.what)

    def open(self, offset: int, *, ranged: bool, decode: bool) -> Body:
        """See :class:`msb_pull.source.registry.blob.Route`."""
        if reason := forbidden(self._url, self._base):
            raise ContentError(
                f"{self._target.what}: layer {self._descriptor.digest.short} is not fetched from its foreign address",
                cause=f"the manifest names {reason}",
            )
        return _open(self._client, self._target, self._descriptor, self._url, True, offset, ranged, decode)

    def mark_down(self, reason: str) -> None:
        """Other layers may still be there."""


def _open(
    client: RegistryClient,
    target: Target,
    descriptor: Descriptor,
    address: str | None,
    patient: bool,
    offset: int,
    ranged: bool,
    decode: bool,
) -> Body:
    ranged = ranged and offset > 0

    def take(answer: Answer) -> Body:
        return Body(answer, offset=offset, size=descriptor.size, decode=decode)

    return client.exchange.get(
        target,
        "blobs",
        str(descriptor.digest),
        {"Range": f"bytes={offset}-"} if ranged else {},
        accept=_PARTS if ranged else _WHOLE,
        take=take,
        retries=None if patient else 0,
        address=address,
    )
