"""One repository and the endpoints that serve it, mirrors included: its documents, and what lies beside an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.errors import AccessError, ContentError, MsbPullError, NetworkError, NotFoundError
from msb_pull.image.documents import DOCUMENT_LIMIT
from msb_pull.image.manifest import ACCEPT
from msb_pull.source.http.pages import MAX_BYTES, MAX_PAGES, next_query
from msb_pull.source.registry.endpoint import Target
from msb_pull.source.registry.refusals import check_document
from msb_pull.source.resolve import referrers_in, referrers_tag, with_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor
    from msb_pull.image.reference import Reference
    from msb_pull.source.http.answer import Answer
    from msb_pull.source.registry.endpoint import Endpoint
    from msb_pull.source.registry.requester import Requester

_NO_ANSWER = (NotFoundError, AccessError, NetworkError, ContentError)


class Document(NamedTuple):
    """A document: its bytes, Content-Type and Docker-Content-Digest, where it was, and the query for its next page."""

    data: bytes
    content_type: str | None
    digest: str
    target: Target
    following: str | None


class Repository:
    """The repository of an image at ``endpoints``, of which the registry itself is the last one.

    ``what`` names the image in messages, and ``own`` is what the registry is asked for. For any thread.
    """

    def __init__(self, requester: Requester, reference: Reference, endpoints: Sequence[Endpoint]) -> None:
        self.what = str(reference)
        self._targets = [Target(x, reference.repository, reference.registry, self.what) for x in endpoints]
        self.own = self._targets[-1]
        self._requester = requester
        self._job = requester.job

    def targets(self) -> list[Target]:
        """What is asked for, the best first; without mirrors that could not be reached in this run."""
        down = self._requester.down
        return [x for x in self._targets if not x.endpoint.namespace or x.endpoint.host not in down]

    def warn(self, text: str) -> None:
        """Warns of something about the image that a person should know."""
        self._job.warn(self.what, text)

    def fetch(
        self,
        name: str,
        digest: Digest | None,
        size: int | None = None,
        *,
        kind: str = "manifests",
        beside: bool = False,
        targets: Sequence[Target] = (),
    ) -> Document:
        """The right document from the first endpoint that has it, of all or of the ``targets``.

        ``digest`` and ``size`` (bytes) are what it must have, where that is known. Of what lies ``beside`` an image
        mirrors need have nothing: there that is no trouble, nor an answer. Raises NotFoundError, AccessError,
        NetworkError, ContentError, Cancelled.
        """

        def take(answer: Answer) -> Document:
            with answer:
                data = answer.read(DOCUMENT_LIMIT)
                if len(data) > DOCUMENT_LIMIT:
                    raise ContentError(f"{self.what}: its manifest is larger than {DOCUMENT_LIMIT} bytes")
                check_document(answer, data, "manifest")
                if digest is not None:
                    with_digest(data, digest, self.what, "manifest")
                if size is not None and len(data) != size:
                    raise ContentError(f"{self.what}: its manifest has a different size than the index says")
                if kind == "referrers" and not last and not referrers_in((data, None), self.what):
                    raise NotFoundError(f"{self.what}: an empty list of referrers")
                headers = answer.headers
                named = headers.get("Docker-Content-Digest", "")
                following = next_query(answer) if kind == "referrers" else None
                return Document(data, headers.get("Content-Type"), named, target, following)

        targets = targets or self.targets()
        for target in targets:
            last = target is targets[-1]
            try:
                return self._requester.get(
                    target,
                    kind,
                    name,
                    {"Accept": ACCEPT},
                    accept=frozenset({200}),
                    take=take,
                    retries=None if last else 0,
                )
            except _NO_ANSWER as error:
                if last:
                    raise
                if beside and isinstance(error, NotFoundError):
                    self._job.log(self.what, f"mirror {target.endpoint.host}: {error.cause or error.message}")
                else:
                    self._leave(target.endpoint, error)
        raise AssertionError("the registry itself is always available")

    def _leave(self, endpoint: Endpoint, error: MsbPullError) -> None:
        reason = error.cause or error.message
        if isinstance(error, NetworkError):
            self._requester.down.add(endpoint.host)
        self.warn(f"mirror {endpoint.host}: {reason}; continuing without it")

    # What lies beside the image

    def tagged(self, tag: str) -> tuple[bytes, str | None] | None:
        """See :class:`msb_pull.source.interface.Attached`."""
        try:
            return self.fetch(tag, None, beside=True)[:2]
        except NotFoundError:
            return None

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """See :class:`msb_pull.source.interface.Attached`: by the API, else by the tag that stands in for it."""
        try:
            first = self.fetch(str(digest), None, kind="referrers", beside=True)
        except _NO_ANSWER as error:
            # Registries without it answer with any error, or with a page.
            self._job.log(self.what, f"no list of referrers: {error.cause or error.message}")
            return referrers_in(self.tagged(referrers_tag(digest)), self.what)
        return tuple(self._all_pages(first, digest))

    def _all_pages(self, page: Document, digest: Digest) -> Iterator[Descriptor]:
        """The entries of a list that begins with ``page``; what lies beyond the limits is left out."""
        room = MAX_BYTES
        asked: set[str | None] = {None}
        for number in range(1, MAX_PAGES + 1):
            yield from referrers_in(page[:2], self.what)
            room -= len(page.data)
            if page.following in asked:
                return
            if room < 0 or number == MAX_PAGES:
                break
            asked.add(page.following)
            more = f"{digest}?{page.following}"
            try:
                page = self.fetch(more, None, kind="referrers", beside=True, targets=[page.target])
            except _NO_ANSWER as error:
                self._job.log(self.what, f"no further page of referrers: {error.cause or error.message}")
                return
        self._job.log(self.what, "the list of referrers is too long; its end is left out")
