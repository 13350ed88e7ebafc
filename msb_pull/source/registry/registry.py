"""Images in registries (distribution-spec), their mirrors included."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.source.http.retry import Clock
from msb_pull.source.http.sockets import Patience
from msb_pull.source.http.tls import TrustStore
from msb_pull.source.http.transport import Transport
from msb_pull.source.registry.auth import Authenticator
from msb_pull.source.registry.blob import RegistryBlob, Route
from msb_pull.source.registry.downloads import Connections, Downloads, Limiter
from msb_pull.source.registry.early import Early, EarlyBlobs, EarlyRoute
from msb_pull.source.registry.endpoint import HOSTS, endpoints
from msb_pull.source.registry.repository import Repository
from msb_pull.source.registry.requester import Requester
from msb_pull.source.registry.routes import EndpointRoute, ForeignRoute
from msb_pull.source.resolve import resolve_image, verified

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from msb_pull.ground.running import Cancel, Job
    from msb_pull.image.manifest import Descriptor, Manifest
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference
    from msb_pull.source.interface import Attached, BlobStream, ResolvedImage, Source
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.early import Expect


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How to reach registries, by ``host[:port]`` as it stands in references.

    ``timeout`` is seconds without a byte, ``limit_rate`` bytes a second for all downloads together. ``connections``
    is how many may serve blobs at once before a large one no longer gets several.
    """

    plain_http: frozenset[str] = frozenset()
    tls_no_verify: frozenset[str] = frozenset()
    ca_certs: Mapping[str, str] = field(default_factory=dict)
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    retries: int = 5
    timeout: float = 60.0
    limit_rate: int | None = None
    connections: int = 8


class RegistryClient:
    """What one run knows of registries: tokens, pauses, connections, the rate. Safe to use from several threads."""

    def __init__(
        self, options: RegistryOptions, credentials: CredentialStore, job: Job, *, clock: Clock | None = None
    ) -> None:
        self.options = options
        self.job = job
        clock, patience, environment = clock or Clock(), Patience(job.cancel), credentials.environment
        trust = TrustStore(
            ca_certs=options.ca_certs,
            no_verify=options.tls_no_verify,
            environment=environment,
            patience=patience,
            aliases={host: registry for registry, host in HOSTS.items()},
            log=lambda text: job.log("", text),
        )
        self._transport = Transport(trust, patience, timeout=options.timeout, job=job, environment=environment)
        auth = Authenticator(self._transport, credentials, clock, job)
        self.requester = Requester(self._transport, auth, clock, retries=options.retries, job=job)
        limiter = Limiter(options.limit_rate, clock, patience)
        self.early = EarlyBlobs()
        self.downloads = Downloads(self.requester, limiter, Connections(options.connections), patience)

    def source(
        self,
        reference: Reference,
        target: Digest | None = None,
        platform: Platform | None = None,
        expect: Expect | None = None,
    ) -> Source:
        """The image that ``reference`` names; nothing is asked yet. Raises UsageError for a bad mirror address.

        ``target`` is the document to ask for instead of the tag, ``platform`` what it is for, where that is known.
        ``expect`` says, of the first manifest that is found, which layers to ask for beside its config.
        """
        return RegistrySource(self, reference, target, platform, expect)

    def close(self) -> None:
        """Ends all connections."""
        self._transport.close()


class RegistrySource:
    """One image at a registry."""

    remote = True

    def __init__(
        self,
        client: RegistryClient,
        reference: Reference,
        target: Digest | None = None,
        platform: Platform | None = None,
        expect: Expect | None = None,
    ) -> None:
        self._client = client
        self._expect = expect if client.options.limit_rate is None else None
        self._early = Early(client.early, client.downloads)
        self._reference = reference
        self._target_digest = target or reference.digest
        self._stated = platform
        self._top: tuple[bytes, str | None, Digest] | None = None
        options = client.options
        hosts = endpoints(reference.registry, options.mirrors, options.plain_http)
        self._repository = Repository(client.requester, reference, hosts)
        self._lock = threading.Lock()
        # Digest of a blob that was delivered whole -> who delivered it, and whether its encoding was in doubt. When
        # such a blob is opened again, it did not match its digest.
        self._delivered: dict[str, tuple[str, bool]] = {}

    def resolve(self, platform: Platform, *, explicit: bool) -> ResolvedImage:
        """See :class:`msb_pull.source.interface.Source`."""
        if self._expect is not None:
            # One for a layer; the config goes the way of the manifest.
            self._prepare(1)
        return resolve_image(
            self._reference,
            self,
            platform,
            explicit=explicit,
            source="registry",
            warn=self._repository.warn,
            stated=self._stated,
            found=self._expected,
        )

    def open_blob(self, descriptor: Descriptor, offset: int, *, document: bool = False) -> BlobStream:
        """See :class:`msb_pull.source.interface.Source`; blobs that the manifest itself contains are not asked for.

        ``document``: see :class:`RegistryBlob`.
        """
        if (inline := self._inline(descriptor)) is not None:
            return io.BytesIO(inline[offset:])
        # What has answered early may be what keeps the config back: some servers have only so many answers under way.
        routes = self._routes(descriptor, self._early.let_go if document else None)
        if not document:
            routes[0] = EarlyRoute(routes[0], descriptor.digest, self._early)
        with self._lock:
            bad, doubtful = self._delivered.pop(str(descriptor.digest), ("", False))
        if bad and len(routes) > 1 and not doubtful:
            self._repository.warn(f"blob {descriptor.digest.short} from {bad} did not match its digest")
            routes.sort(key=lambda route: route.name == bad)
        return RegistryBlob(
            descriptor,
            offset,
            routes,
            downloads=self._client.downloads,
            image=self._repository.what,
            decode=doubtful,
            delivered=self._note_delivered,
            document=document,
        )

    def obeying(self, cancel: Cancel) -> AbstractContextManager[None]:
        """See :class:`msb_pull.source.interface.Source`."""
        return self._client.downloads.patience.obeying(cancel)

    def lacks(self, descriptor: Descriptor) -> bool:
        """See :class:`msb_pull.source.interface.Source`; only a request would tell."""
        return False

    def close(self) -> None:
        """Ends what was asked for and not wanted; connections belong to the client."""
        self._early.close()

    def attached(self) -> Attached:
        """See :class:`msb_pull.source.interface.Source`."""
        return self

    def tagged(self, tag: str) -> tuple[bytes, str | None] | None:
        """See :class:`msb_pull.source.interface.Attached`."""
        return self._repository.tagged(tag)

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """See :class:`msb_pull.source.interface.Attached`."""
        return self._repository.referrers(digest)

    # What resolve_image asks for

    def top(self) -> tuple[bytes, str | None, Digest]:
        """The manifest or index that the reference names: the same for every platform, though the tag may move."""
        if self._top is None:
            wanted = self._target_digest
            data, content_type, header = self._repository.fetch(str(wanted or self._reference.tag), wanted)[:3]
            if wanted is None:
                self._compare_header(data, header)
            self._top = data, content_type, wanted or Digest.of(data)
        return self._top

    def manifest(self, descriptor: Descriptor) -> tuple[bytes, str | None]:
        """A manifest that an index names, always by its digest: the tag may have moved meanwhile."""
        if (inline := self._inline(descriptor)) is not None:
            return inline, descriptor.media_type
        return self._repository.fetch(str(descriptor.digest), descriptor.digest, descriptor.size)[:2]

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified; from the next endpoint when one sends other content."""
        for _ in range(len(self._repository.targets()) + 1):
            try:
                with self.open_blob(descriptor, 0, document=True) as stream:
                    data = b"".join(iter(lambda: stream.read(1 << 20), b""))
                return verified(data, descriptor, self._repository.what, "config")
            except ContentError as error:
                trouble = error
        raise trouble

    # What is begun early

    def _expected(self, manifest: Manifest) -> None:
        expect, self._expect = self._expect, None
        layers, certain = expect(manifest) if expect is not None else ((), False)
        layers = [x for x in layers if self._inline(x) is None]
        if layers and self._inline(manifest.config) is None:
            # All layers wait for the config: it must not come to be the one for which no connection is left.
            self._client.requester.reserve()
        if not certain:
            # Two are there already: that of resolve, and the config's, which is free by then.
            self._prepare(len(layers) - 2)
            return
        for descriptor in layers:
            self._early.ask(descriptor.digest, self._routes(descriptor)[0])

    def _prepare(self, connections: int) -> None:
        for _ in range(connections):
            self._early.run(lambda: self._client.requester.prepare(self._repository.targets()[0]))

    def _routes(self, descriptor: Descriptor, troubled: Callable[[], None] | None = None) -> list[Route]:
        requester, repository = self._client.requester, self._repository
        return [
            *(
                EndpointRoute(requester, x, descriptor, patient=not x.endpoint.namespace, troubled=troubled)
                for x in repository.targets()
            ),
            *(ForeignRoute(requester, repository.own, descriptor, url) for url in descriptor.urls),
        ]

    def _inline(self, descriptor: Descriptor) -> bytes | None:
        """The content that the descriptor itself contains, if size and digest agree; else None, and it is fetched."""
        data, digest = descriptor.data, descriptor.digest
        fits = data is not None and len(data) == descriptor.size and Digest.of(data, digest.algorithm) == digest
        return data if fits else None

    def _compare_header(self, data: bytes, header: str) -> None:
        """Some registries send a wrong Docker-Content-Digest: worth a warning, but what was received counts."""
        try:
            announced = Digest.parse(header)
        except InvalidDigest:
            return
        if Digest.of(data, announced.algorithm) != announced:
            host = self._reference.registry
            self._repository.warn(f"{host} announces digest {announced.short} but sends a different manifest")

    def _note_delivered(self, blob: RegistryBlob) -> None:
        with self._lock:
            self._delivered[blob.digest] = blob.route.name, blob.ambiguous
