"""One image of a folder or an archive, as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msb_pull.ground.errors import ContentError
from msb_pull.source.local.files import Extent, FileBlob
from msb_pull.source.resolve import Documents, resolve_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.image.manifest import Descriptor
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference
    from msb_pull.source.interface import BlobStream, ResolvedImage


class LocalImage(Documents, Protocol):
    """An image that was found among files: its documents, its blobs, and what it is recorded under."""

    @property
    def reference(self) -> Reference:
        """What to record it under."""

    def open(self, descriptor: Descriptor) -> Extent:
        """A blob, whose size has been compared with the descriptor's."""

    def close(self) -> None: ...


class LocalSource:
    """A source that opens nothing before it has to: ``find`` opens the files and finds the image.

    ``label`` is what messages and the database call it.
    """

    remote = False

    def __init__(self, label: str, find: Callable[[], LocalImage], warn: Callable[[str], None]) -> None:
        self._label = label
        self._find = find
        self._warn = warn
        self._found: LocalImage | None = None

    def resolve(self, platform: Platform, *, explicit: bool) -> ResolvedImage:
        """See :class:`msb_pull.source.interface.Source`; raises UsageError and LocalError as well.

        Manifests and config are compared with their sizes and digests; blobs are compared by their reader.
        """
        image = self._image()
        resolved = resolve_image(
            image.reference, image, platform, explicit=explicit, source=self._label, warn=self._warn
        )
        promised = image.reference.digest
        if promised is not None and promised not in (resolved.digest, image.top()[2]):
            raise ContentError(
                f"{self._label}: this is not {image.reference}",
                cause=f"its digest is {resolved.digest}",
                hint="record it under a name without a digest: --as NAME:TAG",
            )
        return resolved

    def open_blob(self, descriptor: Descriptor, offset: int) -> BlobStream:
        """See :class:`msb_pull.source.interface.Source`."""
        return FileBlob(self._image().open(descriptor), f"{self._label}: blob {descriptor.digest.short}", offset)

    def close(self) -> None:
        """Closes the files."""
        if self._found is not None:
            self._found.close()

    def _image(self) -> LocalImage:
        if self._found is None:
            self._found = self._find()
        return self._found
