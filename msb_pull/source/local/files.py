"""Local images: the files of a layout's folder or an archive, blobs read from them, and the source they make."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msb_pull.ground.below import look, open_directory, open_file
from msb_pull.ground.errors import ContentError, LocalError, NotFoundError, local_error
from msb_pull.image.documents import DOCUMENT_LIMIT
from msb_pull.image.readers import COPY_AGAIN
from msb_pull.source.resolve import Documents, resolve_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.ground.running import Cancel
    from msb_pull.image.manifest import Descriptor
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference
    from msb_pull.source.interface import Attached, BlobStream, ResolvedImage

_NOT_FOLLOWED = (errno.ELOOP, errno.ENOTDIR)
_MAX_ZEROS = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """``size`` bytes that are stored at ``start`` in a file and belong at ``at``."""

    at: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the bytes behind it belong."""
        return self.at + self.size


@dataclass(frozen=True, slots=True)
class Extent:
    """``size`` bytes of an open file, which their reader closes; between the ``pieces``, in order, are zeros."""

    handle: int
    pieces: tuple[Piece, ...]
    size: int

    def read_all(self, what: str) -> bytes:
        """All of a small document; closes the file. Raises ContentError above 4 MiB."""
        with FileBlob(self, what) as blob:
            if self.size > DOCUMENT_LIMIT:
                raise ContentError(f"{what} is larger than {DOCUMENT_LIMIT} bytes")
            return b"".join(iter(lambda: blob.read(1 << 20), b""))


class Files(Protocol):
    """The files of a local image. Names are relative, with ``/``, and made by us, unless a method says otherwise."""

    @property
    def label(self) -> str:
        """What messages call it: ``oci:DIR`` for example."""

    def has(self, name: str) -> bool:
        """Whether there is anything under this name."""

    def open(self, name: str) -> Extent:
        """A regular file; raises ContentError where there is none, LocalError where it cannot be read."""

    def close(self) -> None: ...


class FolderFiles:
    """The files below a folder. Symlinks in it are not followed: a layout that was copied from somewhere must not
    point at other files of this machine. The folder itself may be one, since the user named it."""

    def __init__(self, path: str, label: str) -> None:
        """Opens the folder at ``path``, ``label`` in messages; raises NotFoundError, LocalError."""
        self.label = label
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"{label}: no such folder") from None
        except NotADirectoryError:
            hint = f"for an archive, write oci-archive:{path}"
            raise NotFoundError(f"{label}: this is not a folder", hint=hint) from None
        except OSError as error:
            raise unreadable(error, label) from error

    def has(self, name: str) -> bool:
        """See :class:`Files`."""
        try:
            os.lstat(name, dir_fd=self._handle)
        except OSError:
            return False
        return True

    def open(self, name: str) -> Extent:
        """See :class:`Files`."""
        *folders, last = name.split("/")
        at = os.dup(self._handle)
        try:
            for folder in folders:
                at = self._step(at, folder, name, open_directory)
            at = self._step(at, last, name, open_file)
            facts = os.fstat(at)
            if not stat.S_ISREG(facts.st_mode):
                raise ContentError(f"{self.label}: {name} is not a regular file")
            at, found = -1, Extent(at, (Piece(0, 0, facts.st_size),), facts.st_size)
            return found
        finally:
            if at >= 0:
                os.close(at)

    def close(self) -> None:
        """Closes the folder."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _step(self, at: int, part: str, name: str, enter: Callable[[str, int], int]) -> int:
        """Opens ``part`` below the open folder ``at``, which is closed where that succeeds."""
        try:
            found = enter(part, at)
        except FileNotFoundError:
            hint = "the layout is incomplete: copy it again"
            raise ContentError(f"{self.label}: {name} is missing", hint=hint) from None
        except OSError as error:
            if error.errno in _NOT_FOLLOWED and (there := look(part, at)) and stat.S_ISLNK(there.st_mode):
                raise ContentError(
                    f"{self.label}: {part} in {name} is a symlink, and symlinks are not followed",
                    hint="copy the layout with `cp -rL` if you trust it",
                ) from None
            raise unreadable(error, f"{self.label}: {name}") from error
        os.close(at)
        return found


class FileBlob:
    """A BlobStream over a range of an open file, which it closes. Several may read one file at once (pread)."""

    def __init__(self, extent: Extent, what: str, offset: int = 0) -> None:
        """``what`` names the file in errors; raises ContentError when ``offset`` lies behind the end."""
        self._handle = extent.handle
        self._what = what
        self._pieces = extent.pieces
        self._at = offset
        self._end = extent.size
        # The first piece that is not yet behind us.
        self._next = 0
        if not 0 <= offset <= extent.size:
            self.close()
            raise ContentError(f"{what} has only {extent.size} bytes, but byte {offset} was requested")

    def read(self, size: int, /) -> bytes:
        """See :class:`msb_pull.source.interface.BlobStream`."""
        while self._next < len(self._pieces) and self._pieces[self._next].end <= self._at:
            self._next += 1
        piece = self._pieces[self._next] if self._next < len(self._pieces) else Piece(self._end, 0, 0)
        if self._at < piece.at:
            data = bytes(min(size, piece.at - self._at, _MAX_ZEROS))
        else:
            data = self._stored(piece, size)
        self._at += len(data)
        return data

    def _stored(self, piece: Piece, size: int) -> bytes:
        into = self._at - piece.at
        try:
            data = os.pread(self._handle, min(size, piece.size - into), piece.start + into)
        except OSError as error:
            raise unreadable(error, self._what) from error
        if not data and self._at < self._end and size > 0:
            raise ContentError(f"{self._what} became shorter while it was read")
        return data

    def close(self) -> None:
        """Closes the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> FileBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalImage(Documents, Protocol):
    """An image that was found among files: its documents, its blobs, and what it is recorded under."""

    @property
    def reference(self) -> Reference:
        """What to record it under."""

    def attached(self) -> Attached | None:
        """See :class:`msb_pull.source.interface.Source`."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there."""

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
            cause = f"its digest is {resolved.digest}"
            hint = "record it under a name without a digest: --as NAME:TAG"
            raise ContentError(f"{self._label}: this is not {image.reference}", cause=cause, hint=hint)
        return resolved

    def open_blob(self, descriptor: Descriptor, offset: int) -> BlobStream:
        """See :class:`msb_pull.source.interface.Source`."""
        return FileBlob(self._image().open(descriptor), f"{self._label}: blob {descriptor.digest.short}", offset)

    def obeying(self, cancel: Cancel) -> contextlib.AbstractContextManager[None]:
        """See :class:`msb_pull.source.interface.Source`; a file keeps nobody waiting."""
        return contextlib.nullcontext()

    def attached(self) -> Attached | None:
        """See :class:`msb_pull.source.interface.Source`."""
        return self._image().attached()

    def lacks(self, descriptor: Descriptor) -> bool:
        """See :class:`msb_pull.source.interface.Source`."""
        return not self._image().has(descriptor)

    def close(self) -> None:
        """Closes the files."""
        if self._found is not None:
            self._found.close()

    def _image(self) -> LocalImage:
        if self._found is None:
            self._found = self._find()
        return self._found


def open_checked(files: Files, name: str, descriptor: Descriptor) -> Extent:
    """A file that must have the size of its descriptor; raises ContentError."""
    extent = files.open(name)
    if extent.size != descriptor.size:
        os.close(extent.handle)
        cause = f"expected {descriptor.size} bytes, found {extent.size}"
        raise ContentError(f"{files.label}: {name} has a different size than announced", cause=cause, hint=COPY_AGAIN)
    return extent


def unreadable(error: OSError, what: str) -> LocalError:
    """Says of a file of the user's, which does not lie in the store, why it cannot be read."""
    if isinstance(error, PermissionError):
        return LocalError(f"{what}: {error.strerror}", hint="check that you may read it")
    return local_error(OSError(error.errno, error.strerror), what)
