"""From a name to one image for one platform, wherever the documents come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msb_pull.errors import ContentError, NotFoundError
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import MANIFEST_LIMIT, Index, check_image, parse_config, parse_document
from msb_pull.image.platform import choose
from msb_pull.source.interface import ResolvedImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.image.manifest import Descriptor, ImageConfig
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference

# image-spec allows indexes in indexes; real ones have two levels.
_MAX_DEPTH = 4


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
) -> ResolvedImage:
    """Walks from the top document through indexes to a manifest and its config.

    See :meth:`msb_pull.source.interface.Source.resolve`.
    """
    what = str(reference)
    data, content_type, digest = documents.top()
    entry: Descriptor | None = None
    seen = {digest}
    document = parse_document(data, content_type, what, warn)
    while isinstance(document, Index):
        entry = _choose(document, platform, what)
        digest = entry.digest
        if digest in seen or len(seen) > _MAX_DEPTH:
            raise ContentError(f"{what}: its indexes are nested too deeply or in a circle")
        seen.add(digest)
        data, content_type = documents.manifest(entry)
        document = parse_document(data, content_type, what, warn)
    check_image(document, what)
    if document.config.size > MANIFEST_LIMIT:
        raise ContentError(f"{what}: its config is larger than {MANIFEST_LIMIT} bytes")
    config_bytes = documents.blob(document.config)
    config = parse_config(config_bytes, document, what)
    return ResolvedImage(
        reference=reference,
        digest=digest,
        platform=_platform(entry, config, platform, what, explicit, warn),
        manifest_bytes=data,
        manifest=document,
        config_bytes=config_bytes,
        config=config,
        source=source,
    )


def verified(data: bytes, descriptor: Descriptor, what: str, part: str) -> bytes:
    """``data`` if it has the size and digest that the descriptor says; raises ContentError."""
    if len(data) != descriptor.size:
        raise ContentError(
            f"{what}: its {part} has another size than announced",
            cause=f"expected {descriptor.size} bytes, received {len(data)}",
        )
    return matching(data, descriptor.digest, what, part)


def matching(data: bytes, digest: Digest, what: str, part: str) -> bytes:
    """``data`` if it has this digest; raises ContentError."""
    found = Digest.of(data, digest.algorithm)
    if found != digest:
        raise ContentError(
            f"{what}: its {part} does not match its digest",
            cause=f"expected {digest}, received {found}",
            hint="the registry or something between changed the content; try again or use another mirror",
        )
    return data


def _choose(index: Index, platform: Platform, what: str) -> Descriptor:
    try:
        return choose(index.images(), platform)
    except NotFoundError as error:
        raise NotFoundError(f"{what}: {error.message}", cause=error.cause, hint=error.hint) from None


def _platform(
    entry: Descriptor | None,
    config: ImageConfig,
    wanted: Platform,
    what: str,
    explicit: bool,
    warn: Callable[[str], None],
) -> Platform:
    """What the image runs on: the word of the index it was chosen from, else its config's."""
    if entry is not None and entry.platform is not None:
        return entry.platform.normalized()
    if not config.os or not config.architecture:
        return wanted
    found = config.platform
    if wanted.accepts(found):
        return found
    if explicit:
        raise NotFoundError(
            f"{what}: no image for {wanted}",
            cause=f"there is one image only, for {found}",
            hint=f"leave out --platform, or say --platform {found}",
        )
    warn(f"{what} is for {found}, not for {wanted}")
    return found
