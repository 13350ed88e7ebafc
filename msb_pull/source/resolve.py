"""From a name to one image for one platform, wherever the documents come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from msb_pull.ground.errors import ContentError, NotFoundError
from msb_pull.image.digest import Digest
from msb_pull.image.documents import DOCUMENT_LIMIT
from msb_pull.image.manifest import Index, check_image, choose, is_image, parse_config, parse_document
from msb_pull.image.platform import no_image
from msb_pull.image.readers import ON_THE_WAY
from msb_pull.source.interface import ResolvedImage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.image.manifest import Descriptor, ImageConfig, Manifest
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference

# Digests and documents, the one that the name led to first.
_Indexes: TypeAlias = "tuple[tuple[Digest, bytes], ...]"

# image-spec allows indexes in indexes; real ones have two levels.
_MAX_DEPTH = 4
TAG_LENGTH = 128
# Indexes that do not say what their entries are for have a handful of them.
_MAX_LOOKED_INTO = 32


class Documents(Protocol):
    """Where manifests and configs are read. What is returned for a descriptor has been compared with it."""

    def top(self) -> tuple[bytes, str | None, Digest]:
        """The document the reference names: bytes, Content-Type if there is one, digest."""

    def manifest(self, descriptor: Descriptor) -> tuple[bytes, str | None]:
        """A document that an index names."""

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob."""


def resolve_image(
    reference: Reference,
    documents: Documents,
    platform: Platform,
    *,
    explicit: bool,
    source: str,
    warn: Callable[[str], None],
    stated: Platform | None = None,
    found: Callable[[Manifest], None] | None = None,
) -> ResolvedImage:
    """Walks from the top document through indexes to a manifest and its config.

    ``stated`` is what a top document that is a manifest itself is known to be for. ``found`` hears of the manifest
    before its config is asked for, unless it is refused without, or was found by its config. See
    :meth:`msb_pull.source.interface.Source.resolve`.
    """
    what = str(reference)
    chosen = _Walk(documents, platform, what, warn).start(stated)
    config_bytes, config = chosen.config or _read_config(documents, chosen.manifest, what, found)
    return ResolvedImage(
        reference=reference,
        digest=chosen.digest,
        platform=_platform(chosen.stated, config, platform, what, explicit, warn),
        manifest_bytes=chosen.data,
        manifest=chosen.manifest,
        config_bytes=config_bytes,
        config=config,
        source=source,
        indexes=chosen.indexes,
    )


class _Found(NamedTuple):
    """A manifest, the platform that the index said it is for, and the indexes that led to it.

    ``config`` is there, as :func:`_read_config` gives it, where the platform was looked for in it.
    """

    digest: Digest
    data: bytes
    manifest: Manifest
    stated: Platform | None
    indexes: _Indexes
    config: tuple[bytes, ImageConfig] | None = None


class _Walk:
    """The way from the top document to a manifest."""

    def __init__(self, documents: Documents, platform: Platform, what: str, warn: Callable[[str], None]) -> None:
        self._documents = documents
        self._platform = platform
        self._what = what
        self._warn = warn
        self._looked_into: set[Digest] = set()
        self._offered: list[Platform] = []

    def start(self, stated: Platform | None) -> _Found:
        data, content_type, digest = self._documents.top()
        return self._read(data, content_type, digest, (), stated)

    def _open(self, entry: Descriptor, above: _Indexes) -> _Found:
        if any(entry.digest == digest for digest, _ in above) or len(above) > _MAX_DEPTH:
            raise ContentError(f"{self._what}: its indexes are nested too deeply or in a loop")
        data, content_type = self._documents.manifest(entry)
        return self._read(data, content_type, entry.digest, above, entry.platform)

    def _read(
        self, data: bytes, content_type: str | None, digest: Digest, above: _Indexes, stated: Platform | None
    ) -> _Found:
        document = parse_document(data, content_type, self._what, self._warn)
        if not isinstance(document, Index):
            return _Found(digest, data, document, stated, above)
        candidates = document.images()
        path = (*above, (digest, data))
        try:
            chosen = choose(candidates, self._platform)
        except NotFoundError:
            return self._look_inside(candidates, path)
        return self._open(chosen, path)

    def _look_inside(self, candidates: Sequence[Descriptor], path: _Indexes) -> _Found:
        """The best of what the entries lead to that have no platform; raises NotFoundError."""
        best: tuple[int, _Found] | None = None
        self._offered += [entry.platform for entry in candidates if entry.platform]
        for entry in candidates:
            if entry.platform or entry.digest in self._looked_into:
                continue
            self._looked_into.add(entry.digest)
            if len(self._looked_into) > _MAX_LOOKED_INTO:
                raise ContentError(f"{self._what}: too many entries of its indexes have no platform")
            try:
                found = self._open(entry, path)
            except NotFoundError:
                # Nothing for this platform, or missing where the image was copied in part.
                continue
            found = self._with_config(found)
            rank = self._rank(found)
            if rank is not None and (best is None or rank < best[0]):
                best = rank, found
            if rank == 0:
                break
        if best is None:
            refusal = no_image(self._platform, self._offered)
            raise NotFoundError(f"{self._what}: {refusal.message}", cause=refusal.cause, hint=refusal.hint)
        return best[1]

    def _with_config(self, found: _Found) -> _Found:
        """``found``, with its config where nothing else tells its platform."""
        if found.stated is not None or found.config is not None or not is_image(found.manifest):
            return found
        config = _read_config(self._documents, found.manifest, self._what)
        self._offered.append(config[1].platform)
        return found._replace(config=config)

    def _rank(self, found: _Found) -> int | None:
        platform = found.config[1].platform if found.config is not None else found.stated
        return self._platform.rank(platform) if platform is not None else None


def _read_config(
    documents: Documents, manifest: Manifest, what: str, found: Callable[[Manifest], None] | None = None
) -> tuple[bytes, ImageConfig]:
    """The config of an image, as it is and parsed; raises ContentError where it is not an image."""
    check_image(manifest, what)
    if manifest.config.size > DOCUMENT_LIMIT:
        raise ContentError(f"{what}: its config is larger than {DOCUMENT_LIMIT} bytes")
    if found is not None:
        found(manifest)
    data = documents.blob(manifest.config)
    return data, parse_config(data, manifest, what)


def verified(data: bytes, descriptor: Descriptor, what: str, part: str, hint: str = ON_THE_WAY) -> bytes:
    """``data`` if it has the size and digest that the descriptor says; raises ContentError with ``hint``."""
    if len(data) != descriptor.size:
        cause = f"expected {descriptor.size} bytes, received {len(data)}"
        raise ContentError(f"{what}: its {part} has a different size than announced", cause=cause)
    return with_digest(data, descriptor.digest, what, part, hint)


def with_digest(data: bytes, digest: Digest, what: str, part: str, hint: str = ON_THE_WAY) -> bytes:
    """``data`` if it has this digest; raises ContentError with ``hint``."""
    found = Digest.of(data, digest.algorithm)
    if found != digest:
        cause = f"expected {digest}, received {found}"
        raise ContentError(f"{what}: its {part} does not match its digest", cause=cause, hint=hint)
    return data


def referrers_tag(digest: Digest) -> str:
    """The tag under which a list of referrers lies where a registry makes none (distribution-spec)."""
    return f"{digest.algorithm}-{digest.hex}"[:TAG_LENGTH]


def referrers_in(found: tuple[bytes, str | None] | None, what: str) -> tuple[Descriptor, ...]:
    """The entries of a list of referrers, none where there is no list; raises ContentError."""
    if found is None:
        return ()
    document = parse_document(*found, what)
    if not isinstance(document, Index):
        raise ContentError(f"{what}: its list of referrers is not an index")
    return document.manifests


def _platform(
    stated: Platform | None,
    config: ImageConfig,
    wanted: Platform,
    what: str,
    explicit: bool,
    warn: Callable[[str], None],
) -> Platform:
    """What the image runs on: as the index says that it was chosen from, else its config."""
    if stated is not None:
        return stated.normalized()
    if not config.os or not config.architecture:
        return wanted
    found = config.platform
    if wanted.accepts(found):
        return found
    if explicit:
        hint = f"pull it with --platform {found}"
        raise NotFoundError(f"{what}: no image for {wanted}", cause=f"the only image is for {found}", hint=hint)
    warn(f"{what} is for {found}, not for {wanted}")
    return found
