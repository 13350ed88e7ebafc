"""What an image can be exported as: one row a format, and which of them the name of an output means."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from msb_pull.ground.errors import UsageError
from msb_pull.ground.running import processors
from msb_pull.ground.text import visible, visible_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from msb_pull.store.index.stored import StoredImage
    from msb_pull.work.export.tree import Inode


class Task(NamedTuple):
    """What a writer is asked beside the tree: the ``image``, the ``name`` of the output ("" for a stream), how owners
    are kept (``stat``, of a folder), how many bytes a file system is to have (``size``, None to choose), whom
    to tell of the bytes of each piece of content, and of what is left out."""

    image: StoredImage
    name: str
    stat: str
    size: int | None
    progress: Callable[[int], None]
    warn: Callable[[str], None]


class Sink(Protocol):
    """What takes the bytes of a file, in order."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class Format(NamedTuple):
    """A format. ``write`` takes the tree, a file (or what is no more than a pipe, where ``streamed``; where it is a
    ``folder``, the descriptor of an empty one) and the task, and returns how many bytes it wrote. Of a ``sized`` one
    the user chooses how large it is."""

    name: str
    suffixes: tuple[str, ...]
    streamed: bool
    write: Callable[[Sequence[Inode], Any, Task], int]
    folder: bool = False
    sized: bool = False


def _tar(inodes: Sequence[Inode], out: BinaryIO, task: Task) -> int:
    from msb_pull.work.export.tar import write_tar

    with _compressed(out, task.name) as sink:
        # Of a stream nobody knows where it stands, or whether it only takes what is appended.
        plain = bool(task.name) and isinstance(sink, _Counted) and _is_file(out)
        handle = out.fileno() if plain else None
        size = write_tar(inodes, sink, task.progress, aside=_aside(out), handle=handle)
    return size if plain else sink.count


def _is_file(out: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(out.fileno()).st_mode)
    except (AttributeError, OSError):
        # A stream in memory, or any object that takes bytes.
        return False


def _aside(out: BinaryIO) -> bool:
    """Whether a thread is to write. A pipe is read beside this by itself, and may make its writer wait."""
    return processors() > 1 and _is_file(out)


def _file(inodes: Sequence[Inode], out: BinaryIO, task: Task) -> int:
    sink = _Counted(out)
    for offset, piece in inodes[-1].pieces():
        sink.zeros(offset - sink.count)
        sink.write(piece)
        task.progress(len(piece))
    sink.zeros(inodes[-1].size - sink.count)
    return sink.count


def _directory(inodes: Sequence[Inode], root: int, task: Task) -> int:
    from msb_pull.work.export.directory import write_directory

    return write_directory(inodes, root, task.stat, task.progress)


def _erofs(inodes: Sequence[Inode], out: BinaryIO, task: Task) -> int:
    from msb_pull.disk.erofs.attributes import foreign
    from msb_pull.disk.erofs.write import write_image

    _warn_of(inodes, "EROFS", foreign, task)
    return write_image(out, inodes, uuid=_identity(task.image), progress=task.progress, aside=_aside(out))


def _ext4(inodes: Sequence[Inode], out: BinaryIO, task: Task) -> int:
    from msb_pull.disk.ext4.attributes import foreign
    from msb_pull.disk.ext4.write import write_image

    if not _is_file(out):
        raise UsageError(f"{visible(task.name)}: ext4 can be written to a regular file alone")
    _warn_of(inodes, "ext4", foreign, task)
    return write_image(out, inodes, uuid=_identity(task.image), size=task.size, progress=task.progress)


def _warn_of(
    inodes: Sequence[Inode], name: str, foreign: Callable[[Mapping[bytes, bytes]], list[bytes]], task: Task
) -> None:
    for inode in inodes:
        if inode.xattrs and (lost := foreign(inode.xattrs)):
            names = ", ".join(map(visible_bytes, lost))
            task.warn(f'"{visible_bytes(inode.path)}": {name} has no place for {names}; left out')


def _identity(image: StoredImage) -> bytes:
    """A UUID: the same image has the same one wherever its file system is made. Of the form that stands for hashes."""
    named = bytearray(hashlib.sha256(str(image.digest or image.reference).encode()).digest()[:16])
    named[6], named[8] = named[6] & 0x0F | 0x80, named[8] & 0x3F | 0x80
    return bytes(named)


def _squashfs(inodes: Sequence[Inode], out: BinaryIO, task: Task) -> int:
    from msb_pull.work.export.squashfs import foreign, write_squashfs
    from msb_pull.work.export.tar import write_tar

    _warn_of(inodes, "SquashFS", foreign, task)
    for inode in inodes:
        if lost := foreign(inode.xattrs):
            inode.xattrs = {name: value for name, value in inode.xattrs.items() if name not in lost}
    return write_squashfs(out, lambda pipe: write_tar(inodes, pipe, task.progress))


# The last regular file alone, as it is; nobody has to ask for it by this name.
FILE = Format("file", (), True, _file)
TAR = Format("tar", (".tar", ".tar.gz", ".tgz", ".tar.zst"), True, _tar)
DIRECTORY = Format("dir", (), False, _directory, folder=True)
EROFS = Format("erofs", (".erofs",), False, _erofs)
SQUASHFS = Format("squashfs", (".squashfs", ".sqfs"), False, _squashfs)
EXT4 = Format("ext4", (".ext4", ".img", ".raw"), False, _ext4, sized=True)
FORMATS = {form.name: form for form in (TAR, DIRECTORY, EROFS, SQUASHFS, EXT4)}


def format_of(name: str, asked: str | None, *, folder: bool = False, stream: bool = False) -> Format:
    """The format that was asked for, or that the name of the output means, or a folder's, or a tar for a ``stream``.

    Raises UsageError.
    """
    if asked is not None:
        if asked not in FORMATS:
            raise UsageError(f"--format: {asked!r} is not one of {', '.join(FORMATS)}")
        return FORMATS[asked]
    for form in FORMATS.values():
        if name.lower().endswith(form.suffixes):
            return form
    if folder:
        return DIRECTORY
    if stream:
        return TAR
    raise UsageError(
        f"{visible(name)}: the name does not tell the format", hint=f"name one with --format: {', '.join(FORMATS)}"
    )


# Compression

_ZEROS = 1 << 18


class _Counted:
    """Writes whole pieces, and counts them."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.count = 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self.count += len(view)
        # A raw file may take less than it is given.
        while view:
            view = view[self._out.write(view) :]

    def zeros(self, count: int) -> None:
        while count:
            self.write(bytes(min(count, _ZEROS)))
            count -= min(count, _ZEROS)


class _Compressing:
    def __init__(self, out: _Counted, compressor: Any) -> None:
        self._out = out
        self._compressor = compressor

    def write(self, data: bytes | memoryview) -> None:
        self._out.write(self._compressor.compress(data))

    def close(self) -> None:
        self._out.write(self._compressor.flush())

    @property
    def count(self) -> int:
        return self._out.count


@contextlib.contextmanager
def _compressed(out: BinaryIO, name: str) -> Iterator[_Counted | _Compressing]:
    """Compresses as the name of the output says."""
    counted = _Counted(out)
    compressor: Any
    if name.lower().endswith((".gz", ".tgz")):
        from isal import isal_zlib

        compressor = isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31)
    elif name.lower().endswith(".zst"):
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        compressor = zstd.ZstdCompressor()
    else:
        yield counted
        return
    compressing = _Compressing(counted, compressor)
    yield compressing
    compressing.close()
