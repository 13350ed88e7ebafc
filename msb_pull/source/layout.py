"""Images in an OCI image layout (image-spec, image-layout.md): a folder, or the same files inside an archive."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msb_pull.errors import ContentError, LocalError, NotFoundError, UsageError, local_error
from msb_pull.image.documents import load_json
from msb_pull.image.manifest import MANIFEST_LIMIT, Descriptor, Index, parse_document
from msb_pull.image.reference import Reference
from msb_pull.source.resolve import resolve_image, verified

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from msb_pull.image.digest import Digest
    from msb_pull.image.platform import Platform
    from msb_pull.source.interface import BlobStream, ResolvedImage

REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAMES = ("io.containerd.image.name", REF_NAME)


class Files(Protocol):
    """Where a layout's files are: names relative to its top, always made of fixed words and parsed digests."""

    @property
    def label(self) -> str:
        """What to call it in messages and in the database, ``oci:DIR`` for example."""

    def open(self, name: str) -> tuple[int, int, int]:
        """An open descriptor (the caller closes it), and the offset and size of the file there; NotFoundError."""

    def close(self) -> None: ...


class Folder:
    """The files of a layout folder."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise NotFoundError(f"{path}: no such folder")
        if not (path / "oci-layout").is_file():
            raise ContentError(f"{path}: this is no OCI image layout (it has no file oci-layout)")
        self._path = path
        self.label = f"oci:{path}"

    def open(self, name: str) -> tuple[int, int, int]:
        """See :class:`Files`."""
        path = self._path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFoundError(f"{path}: not found", cause="the layout is incomplete") from None
        except OSError as error:
            raise local_error(error, path) from error
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise ContentError(f"{path}: no regular file")
        return descriptor, 0, facts.st_size

    def close(self) -> None:
        """Nothing is held."""


class LayoutSource:
    """One image of a layout. ``wanted`` is the tag or reference to take, ``name`` what to record it under."""

    remote = False

    def __init__(
        self, files: Files, wanted: str | None, name: str | None, *, fallback: str, warn: Callable[[str], None]
    ) -> None:
        self._files = files
        self._warn = warn
        self._entry = self._find(wanted)
        self.reference = _reference(self._entry, wanted, name, fallback, files.label)

    def resolve(self, platform: Platform, *, explicit: bool) -> ResolvedImage:
        """See :class:`msb_pull.source.interface.Source`."""
        label = self._files.label
        return resolve_image(self.reference, self, platform, explicit=explicit, source=label, warn=self._warn)

    def open_blob(self, descriptor: Descriptor, offset: int) -> BlobStream:
        """See :class:`msb_pull.source.interface.Source`."""
        handle, start, size = self._files.open(_blob_name(descriptor.digest))
        if size != descriptor.size:
            os.close(handle)
            raise ContentError(
                f"{self._files.label}: blob {descriptor.digest.short} has another size than announced",
                cause=f"expected {descriptor.size} bytes, found {size}",
            )
        return FileBlob(handle, start + offset, size - offset)

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    # What resolve_image asks for

    def top(self) -> tuple[bytes, str | None, Digest]:
        """The document that the chosen entry of ``index.json`` names."""
        data, media_type = self.manifest(self._entry)
        return data, media_type, self._entry.digest

    def manifest(self, descriptor: Descriptor) -> tuple[bytes, str | None]:
        """A manifest or an index among the blobs."""
        return self.blob(descriptor), descriptor.media_type

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified."""
        data = self._read(_blob_name(descriptor.digest))
        return verified(data, descriptor, self._files.label, "manifest or config")

    def _read(self, name: str) -> bytes:
        handle, start, size = self._files.open(name)
        try:
            if size > MANIFEST_LIMIT:
                raise ContentError(f"{self._files.label}: {name} is larger than {MANIFEST_LIMIT} bytes")
            return os.pread(handle, size, start)
        finally:
            os.close(handle)

    def _find(self, wanted: str | None) -> Descriptor:
        label = self._files.label
        version = load_json(self._read("oci-layout"), label, "oci-layout").get("imageLayoutVersion")
        if version != "1.0.0":
            raise ContentError(f"{label}: unknown layout version {version!r}")
        index = parse_document(self._read("index.json"), None, label)
        if not isinstance(index, Index):
            raise ContentError(f"{label}: index.json is no index")
        entries = index.manifests
        if wanted is not None:
            found = [entry for entry in entries if wanted in _names(entry) or wanted == str(entry.digest)]
        else:
            found = list(entries)
        if len({entry.digest for entry in found}) == 1:
            return found[0]
        names = ", ".join(sorted({name for entry in entries for name in _names(entry)})) or "no named image"
        if not found:
            raise NotFoundError(f"{label}: no image {wanted or ''}".rstrip(), cause=f"it holds {names}")
        raise UsageError(f"{label} holds several images: {names}", hint="add :TAG to choose one")


class FileBlob:
    """A BlobStream over a range of an open file, which it closes."""

    def __init__(self, handle: int, start: int, size: int) -> None:
        self._handle = handle
        self._at = start
        self._end = start + size

    def read(self, size: int, /) -> bytes:
        """See :class:`msb_pull.source.interface.BlobStream`."""
        data = os.pread(self._handle, min(size, self._end - self._at), self._at)
        if not data and self._at < self._end:
            raise LocalError("a local blob became shorter while it was read")
        self._at += len(data)
        return data

    def close(self) -> None:
        """Closes the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> FileBlob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_layout(path: str, wanted: str | None, name: str | None, warn: Callable[[str], None]) -> LayoutSource:
    """An image of the layout folder at ``path``; raises UsageError, NotFoundError, ContentError, LocalError."""
    folder = Path(path)
    fallback = folder.absolute().name
    return LayoutSource(Folder(folder), wanted, name, fallback=fallback, warn=warn)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _names(entry: Descriptor) -> list[str]:
    return [entry.annotations[key] for key in _FULL_NAMES if entry.annotations.get(key)]


def _reference(entry: Descriptor, wanted: str | None, name: str | None, fallback: str, label: str) -> Reference:
    """What to record the image under: ``--as``, else a full name that the layout carries, else folder and tag.

    skopeo writes a bare tag as the entry's name; ``localhost/`` in front says that no registry has it.
    """
    if name is not None:
        return Reference.parse(name)
    names = _names(entry)
    for text in names:
        if "/" in text:
            return Reference.parse(text)
    tag = names[0] if names else wanted or "latest"
    try:
        return Reference.parse(f"localhost/{fallback.lower()}:{tag}")
    except UsageError:
        raise UsageError(f"{label}: the image carries no name", hint="give it one with --as NAME") from None
