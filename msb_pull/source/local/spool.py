"""Archives without random access, from standard input or compressed: they go through a temporary file.

An archive's index may stand at its end, so nothing can be unpacked before all of it is there. The file never has a
name (or loses it at once), so nothing of it is left behind, however the program ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from isal import igzip_lib

from msb_pull.ground.errors import ContentError, LocalError, NotFoundError, UsageError, local_error
from msb_pull.ground.magic import LONGEST, compression_of, gzip_header_is_whole
from msb_pull.source.local.files import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from msb_pull.ground.running import Cancel

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK = 1 << 20
# What decompressing one archive may take: zstd a window of 128 MiB, xz the dictionary of its level 9 and more.
_MAX_WINDOW_LOG = 27
_MAX_MEMORY = 1 << 28
# Until a read would block no longer than this, the flag that asks to stop is looked at.
_PATIENCE = 0.2


def open_archive_file(path: str, label: str, scratch: Path, cancel: Cancel, stdin: int = 0) -> int:
    """Opens an archive for random access; if compressed or not a regular file, it is first copied to ``scratch``.

    gzip and zstd are recognised by their first bytes, bzip2 and xz too where Python has them. ``-`` is standard input.
    The caller closes the descriptor. Raises NotFoundError, UsageError, ContentError, LocalError, Cancelled.
    """
    handle = _open(path, label, stdin)
    try:
        whole = stat.S_ISREG(os.fstat(handle).st_mode) and os.lseek(handle, 0, os.SEEK_CUR) == 0
        if whole and not compression_of(os.pread(handle, LONGEST, 0)):
            handle, plain = -1, handle
            return plain
        return _spool(handle, label, scratch, cancel)
    finally:
        if handle >= 0:
            os.close(handle)


def _open(path: str, label: str, stdin: int) -> int:
    if path == "-":
        if os.isatty(stdin):
            raise UsageError(
                f"{label}: standard input is a terminal", hint="pipe an archive into it, or name a file instead of -"
            )
        try:
            return os.dup(stdin)
        except OSError as error:
            raise LocalError(f"{label}: there is no standard input", cause=error.strerror) from None
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise NotFoundError(f"{label}: this is a folder", hint=f"for an OCI layout, write oci:{path}")
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise LocalError(f"{label}: this is not a file")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{label}: no such file") from None
    except OSError as error:
        raise unreadable(error, label) from error


def _spool(handle: int, label: str, scratch: Path, cancel: Cancel) -> int:
    pieces = _chunks(handle, label, cancel)
    head = b""
    while len(head) < LONGEST and (chunk := next(pieces, b"")):
        head += chunk
    if not head:
        raise ContentError(f"{label}: it is empty", cause="the program before the pipe may have failed")
    found = compression_of(head)
    inflate = _Inflater(found, label) if found else None
    where = scratch if scratch.is_dir() else None
    # Twice: once the file is closed and gone, what is free says nothing of why the disk was full.
    with _told(where), tempfile.TemporaryFile(dir=where, prefix="spool-") as out, _told(where):
        while head:
            for piece in inflate.feed(head) if inflate else (head,):
                cancel.check()
                out.write(piece)
            head = next(pieces, b"")
        if inflate:
            inflate.finish()
        out.flush()
        return os.dup(out.fileno())


@contextlib.contextmanager
def _told(where: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise local_error(error, where or tempfile.gettempdir()) from error


def _chunks(handle: int, label: str, cancel: Cancel) -> Iterator[bytes]:
    while True:
        cancel.check()
        # Waiting for a pipe inside read() would make Ctrl-C wait as well.
        if not select.select([handle], [], [], _PATIENCE)[0]:
            continue
        try:
            chunk = os.read(handle, _CHUNK)
        except BlockingIOError:
            continue
        except OSError as error:
            raise unreadable(error, label) from error
        # Ctrl-C ends the program before the pipe as well: its end is not the end of the archive.
        cancel.check()
        if not chunk:
            return
        yield chunk


class _Inflater:
    """Every stream of a compressed file, one behind the other; zero padding may follow, nothing else."""

    def __init__(self, name: str, label: str) -> None:
        self._name = name
        self._label = label
        self._make = _decompressor(name, label)
        self._stream = self._make()
        self._fresh = False
        # The header of a gzip member is held back until it is whole.
        self._held: bytes | None = b"" if name == "gzip" else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields what ``data`` inflates to, in pieces of at most 1 MiB; raises ContentError."""
        while True:
            if self._stream.eof:
                data = (self._stream.unused_data + data if not self._fresh else data).lstrip(b"\0")
                self._fresh = True
                if not data:
                    return
                self._stream, self._fresh = self._make(), False
                self._held = b"" if self._name == "gzip" else None
            try:
                if self._held is not None:
                    self._held += data
                    if not gzip_header_is_whole(self._held):
                        return
                    data, self._held = self._held, None
                piece = self._stream.decompress(data, _CHUNK)
            except _damage() as error:
                raise self._refused(error) from None
            data = b""
            if piece:
                yield piece
            if not self._stream.eof and self._stream.needs_input:
                return

    def _refused(self, error: Exception) -> ContentError:
        # zstd and xz say so when a stream wants more memory than they were allowed, and nothing else of memory.
        if "memory" in str(error).lower():
            what = f"its {self._name} stream wants more memory than an archive may take"
            return ContentError(f"{self._label}: {what}", cause=str(error), hint="unpack the archive first")
        return ContentError(f"{self._label}: its {self._name} stream is damaged", cause=str(error))

    def finish(self) -> None:
        """Raises ContentError when the last stream was cut."""
        if not self._stream.eof:
            raise ContentError(f"{self._label}: its {self._name} stream is cut off")


def _decompressor(name: str, label: str) -> Callable[[], Any]:
    """What makes a decompressor; all four have the same methods (``decompress(data, max_length)``, ``eof``, …)."""
    if name == "gzip":
        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if name == "zstd":
        return lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
    try:
        if name == "bzip2":
            from bz2 import BZ2Decompressor

            return BZ2Decompressor
        from lzma import FORMAT_XZ, LZMADecompressor

        return lambda: LZMADecompressor(format=FORMAT_XZ, memlimit=_MAX_MEMORY)
    except ImportError:
        raise ContentError(f"{label}: this Python cannot read {name}", hint="unpack the archive first") from None


def _damage() -> tuple[type[Exception], ...]:
    """What decompressors raise."""
    found: list[Any] = [OSError, EOFError, ValueError, igzip_lib.IsalError, zstd.ZstdError]
    with contextlib.suppress(ImportError):
        from lzma import LZMAError

        found.append(LZMAError)
    return tuple(found)
