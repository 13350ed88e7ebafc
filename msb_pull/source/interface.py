"""The one interface behind which registries, layouts and archives look alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from msb_pull.ground.running import Cancel
    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor, ImageConfig, Manifest
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference


class ResolvedImage(NamedTuple):
    """One image for one platform, manifest and config verified and parsed.

    ``reference`` is the name it is recorded under, ``digest`` that of ``manifest_bytes`` (the platform's manifest,
    never the index), ``source`` a short text that says where it came from (``registry``, ``oci:DIR`` …). ``indexes``
    are the documents on the way to the manifest with their digests, the one that the name led to first.
    """

    reference: Reference
    digest: Digest
    platform: Platform
    manifest_bytes: bytes
    manifest: Manifest
    config_bytes: bytes
    config: ImageConfig
    source: str
    indexes: tuple[tuple[Digest, bytes], ...] = ()

    @property
    def top(self) -> Digest:
        """Of the document that the name led to, be it the manifest or an index."""
        return self.indexes[0][0] if self.indexes else self.digest


class BlobStream(Protocol):
    """The bytes of one blob from an offset to its end."""

    def read(self, size: int, /) -> bytes:
        """Returns 1 to ``size`` bytes, or ``b""`` once the descriptor's size has been delivered.

        Broken connections are resumed inside. Raises NetworkError when that is in vain, ContentError when the body is
        longer or shorter than the descriptor says, Cancelled.
        """

    def close(self) -> None: ...

    def __enter__(self) -> BlobStream: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Attached(Protocol):
    """What lies beside an image: signatures, and other documents about it."""

    def tagged(self, tag: str) -> tuple[bytes, str | None] | None:
        """The manifest under a tag of the same repository and its Content-Type, None where there is none."""

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """What refers to this content (distribution-spec, "Listing Referrers"), as far as its list says."""

    def manifest(self, descriptor: Descriptor) -> tuple[bytes, str | None]:
        """A manifest, compared with its descriptor, and its Content-Type."""

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, compared with its descriptor."""


class Source(Protocol):
    """Where one image comes from.

    ``remote`` says whether bytes cost a network: then what has arrived is kept for a later run to resume.
    """

    @property
    def remote(self) -> bool: ...

    def resolve(self, platform: Platform, *, explicit: bool) -> ResolvedImage:
        """Finds, verifies and parses manifest and config for ``platform``.

        ``explicit`` says that the user named the platform: then a lone manifest for another one is an error, else a
        warning. Raises NotFoundError, AccessError, NetworkError, ContentError, Cancelled.
        """

    def open_blob(self, descriptor: Descriptor, offset: int) -> BlobStream:
        """Opens a blob of the image at ``offset`` bytes; callable from several threads at once."""

    def obeying(self, cancel: Cancel) -> AbstractContextManager[None]:
        """While the block lasts, a wait of the calling thread for bytes raises Cancelled once ``cancel`` is set."""

    def attached(self) -> Attached | None:
        """Where to look for signatures, None where there can be none."""

    def lacks(self, descriptor: Descriptor) -> bool:
        """Whether it is known, without asking anybody, that the blob is not there."""

    def close(self) -> None: ...
