"""Images in registries (distribution-spec), their mirrors included."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.errors import AccessError, ContentError, MsbPullError, NetworkError, NotFoundError
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.documents import DOCUMENT_LIMIT
from msb_pull.image.manifest import ACCEPT
from msb_pull.source.http.pages import MAX_BYTES, MAX_PAGES, next_query
from msb_pull.source.http.retry import Clock
from msb_pull.source.http.sockets import Patience
from msb_pull.source.http.tls import TrustStore
from msb_pull.source.http.transport import Transport
from msb_pull.source.registry.auth import Authenticator
from msb_pull.source.registry.blob import RegistryBlob, Route
from msb_pull.source.registry.downloads import Connections, Downloads, Limiter
from msb_pull.source.registry.early import Early, EarlyBlobs, EarlyRoute
from msb_pull.source.registry.endpoint import HOSTS, Endpoint, Target, endpoints
from msb_pull.source.registry.refusals import check_document
from msb_pull.source.registry.requester import Requester
from msb_pull.source.registry.routes import EndpointRoute, ForeignRoute
from msb_pull.source.resolve import referrers_in, referrers_tag, resolve_image, verified, with_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from msb_pull.ground.running import Cancel, Job
    from msb_pull.image.manifest import Descriptor, Manifest
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference
    from msb_pull.source.http.answer import Answer
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


_NO_LIST = (NotFoundError, AccessError, NetworkError, ContentError)


class _Document(NamedTuple):
    """A document: its bytes, Content-Type and Docker-Content-Digest, who had it, and the query for its next page."""

    data: bytes
    content_type: str | None
    digest: str
    endpoint: Endpoint
    following: str | None


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
        self._what = str(reference)
        options = client.options
        self._endpoints = endpoints(reference.registry, options.mirrors, options.plain_http)
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
            warn=self._warn,
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
            self._warn(f"blob {descriptor.digest.short} from {bad} did not match its digest")
            routes.sort(key=lambda route: route.name == bad)
        return RegistryBlob(
            descriptor,
            offset,
            routes,
            downloads=self._client.downloads,
            image=self._what,
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

    # What resolve_image asks for

    def top(self) -> tuple[bytes, str | None, Digest]:
        """The manifest or index that the reference names: the same for every platform, though the tag may move."""
        if self._top is None:
            wanted = self._target_digest
            data, content_type, header = self._fetch_manifest(str(wanted or self._reference.tag), wanted)[:3]
            if wanted is None:
                self._compare_header(data, header)
            self._top = data, content_type, wanted or Digest.of(data)
        return self._top

    def manifest(self, descriptor: Descriptor) -> tuple[bytes, str | None]:
        """A manifest that an index names, always by its digest: the tag may have moved meanwhile."""
        if (inline := self._inline(descriptor)) is not None:
            return inline, descriptor.media_type
        return self._fetch_manifest(str(descriptor.digest), descriptor.digest, descriptor.size)[:2]

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified; from the next endpoint when one sends other content."""
        for _ in range(len(self._endpoints) + 1):
            try:
                with self.open_blob(descriptor, 0, document=True) as stream:
                    data = b"".join(iter(lambda: stream.read(1 << 20), b""))
                return verified(data, descriptor, self._what, "config")
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
            self._early.run(lambda: self._client.requester.prepare(self._target(self._usable()[0])))

    # What lies beside the image

    def tagged(self, tag: str) -> tuple[bytes, str | None] | None:
        """See :class:`msb_pull.source.interface.Attached`."""
        try:
            return self._fetch_manifest(tag, None, beside=True)[:2]
        except NotFoundError:
            return None

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """See :class:`msb_pull.source.interface.Attached`: by the API, else by the tag that stands in for it."""
        try:
            first = self._fetch_manifest(str(digest), None, kind="referrers", beside=True)
        except _NO_LIST as error:
            # Registries without it answer with any error, or with a page.
            self._client.job.log(self._what, f"no list of referrers: {error.cause or error.message}")
            return referrers_in(self.tagged(referrers_tag(digest)), self._what)
        return tuple(self._all_pages(first, digest))

    def _all_pages(self, page: _Document, digest: Digest) -> Iterator[Descriptor]:
        """The entries of a list that begins with ``page``; what lies beyond the limits is left out."""
        room = MAX_BYTES
        asked: set[str | None] = {None}
        for number in range(1, MAX_PAGES + 1):
            yield from referrers_in(page[:2], self._what)
            room -= len(page.data)
            if page.following in asked:
                return
            if room < 0 or number == MAX_PAGES:
                break
            asked.add(page.following)
            more = f"{digest}?{page.following}"
            try:
                page = self._fetch_manifest(more, None, kind="referrers", beside=True, usable=[page.endpoint])
            except _NO_LIST as error:
                self._client.job.log(self._what, f"no further page of referrers: {error.cause or error.message}")
                return
        self._client.job.log(self._what, "the list of referrers is too long; its end is left out")

    # Endpoints

    def _fetch_manifest(
        self,
        name: str,
        digest: Digest | None,
        size: int | None = None,
        *,
        kind: str = "manifests",
        beside: bool = False,
        usable: Sequence[Endpoint] = (),
    ) -> _Document:
        """The right document from the first endpoint that has it, of all or of the ``usable`` ones.

        Of what lies ``beside`` an image mirrors need have nothing: there that is no trouble, nor an answer.
        """

        def take(answer: Answer) -> _Document:
            with answer:
                data = answer.read(DOCUMENT_LIMIT)
                if len(data) > DOCUMENT_LIMIT:
                    raise ContentError(f"{self._what}: its manifest is larger than {DOCUMENT_LIMIT} bytes")
                check_document(answer, data, "manifest")
                if digest is not None:
                    with_digest(data, digest, self._what, "manifest")
                if size is not None and len(data) != size:
                    raise ContentError(f"{self._what}: its manifest has a different size than the index says")
                if kind == "referrers" and not last and not referrers_in((data, None), self._what):
                    raise NotFoundError(f"{self._what}: an empty list of referrers")
                headers = answer.headers
                named = headers.get("Docker-Content-Digest", "")
                following = next_query(answer) if kind == "referrers" else None
                return _Document(data, headers.get("Content-Type"), named, endpoint, following)

        usable = usable or self._usable()
        for endpoint in usable:
            last = endpoint is usable[-1]
            try:
                return self._client.requester.get(
                    self._target(endpoint),
                    kind,
                    name,
                    {"Accept": ACCEPT},
                    accept=frozenset({200}),
                    take=take,
                    retries=None if last else 0,
                )
            except (NotFoundError, AccessError, NetworkError, ContentError) as error:
                if last:
                    raise
                if beside and isinstance(error, NotFoundError):
                    self._client.job.log(self._what, f"mirror {endpoint.host}: {error.cause or error.message}")
                else:
                    self._leave(endpoint, error)
        raise AssertionError("the registry itself is always available")

    def _usable(self) -> list[Endpoint]:
        return [x for x in self._endpoints if not x.namespace or x.host not in self._client.requester.down]

    def _leave(self, endpoint: Endpoint, error: MsbPullError) -> None:
        reason = error.cause or error.message
        if isinstance(error, NetworkError):
            self._client.requester.down.add(endpoint.host)
        self._warn(f"mirror {endpoint.host}: {reason}; continuing without it")

    def _routes(self, descriptor: Descriptor, troubled: Callable[[], None] | None = None) -> list[Route]:
        requester, own = self._client.requester, self._target(self._endpoints[-1])
        return [
            *(
                EndpointRoute(requester, self._target(x), descriptor, patient=not x.namespace, troubled=troubled)
                for x in self._usable()
            ),
            *(ForeignRoute(requester, own, descriptor, url) for url in descriptor.urls),
        ]

    def _target(self, endpoint: Endpoint) -> Target:
        return Target(endpoint, self._reference.repository, self._reference.registry, self._what)

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
            self._warn(f"{self._reference.registry} announces digest {announced.short} but sends a different manifest")

    def _note_delivered(self, blob: RegistryBlob) -> None:
        with self._lock:
            self._delivered[blob.digest] = blob.route.name, blob.ambiguous

    def _warn(self, text: str) -> None:
        self._client.job.warn(self._what, text)
