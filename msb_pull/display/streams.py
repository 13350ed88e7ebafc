"""The three standard streams as one value, and what may be written to them."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, NamedTuple, TextIO, cast

from msb_pull.ground.errors import LocalError, UsageError

# SGR codes; names of the few looks the program has.
_LOOKS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

_SECRET_LIMIT = 1 << 20
_STANDARD_OUTPUT = frozenset(("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"))


class OutputClosed(Exception):
    """The reader of standard output has gone (``msb-pull ls | head``)."""


def is_standard_output(name: str) -> bool:
    """Whether the name of an output means standard output: ``-``, and what systems call it."""
    return os.path.normpath(name) in _STANDARD_OUTPUT


class Streams(NamedTuple):
    """What a run reads from and writes to; tests hand in their own."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    @classmethod
    def of_process(cls) -> Streams:
        """Those of this process.

        Of those that were closed before the start, input is empty and standard error is discarded; what
        is written to standard output is an error, as it is for any program.
        """
        _occupy_closed()
        if sys.stdout is None or (type(sys.stdout) is io.TextIOWrapper and sys.stdout.fileno() == 1):
            sys.stdout = _whole_output(sys.stdout)
        return cls(sys.stdin or _nothing(), sys.stdout, sys.stderr or _nothing())


class _Patient(io.RawIOBase):
    """A descriptor that takes all that is written to it in the end, also one that does not block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # The other side has set the pipe so; its reader takes more in a while.
                select.select([], [self._descriptor], [])


def _whole_output(former: TextIO | None) -> TextIO:
    """Standard output that writes every byte or raises OSError.

    Python's own does not under PYTHONUNBUFFERED, where what a short write leaves is lost, nor on a descriptor that
    does not block.
    """
    # A path that is not text is for a program, which needs its exact bytes.
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(1), 1 << 16),
        encoding=former.encoding if former else "utf-8",
        errors="surrogateescape",
        line_buffering=os.isatty(1),
    )


def _occupy_closed() -> None:
    """Puts the null device where a standard descriptor was closed, or the next file opened would be taken for it.

    Opened for reading, it makes writing to standard output fail as a closed one would.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            null = os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def _nothing() -> TextIO:
    return cast("TextIO", open(os.devnull, "r+", encoding="utf-8"))  # lives as long as the process


def read_secret(stream: TextIO) -> str:
    """All of a stream, or the one line that a person types; bytes that are not UTF-8 are kept as they are.

    Raises LocalError when it cannot be read, UsageError for more than a secret can be.
    """
    source = stream if is_terminal(stream) else getattr(stream, "buffer", stream)
    try:
        given = source.readline(_SECRET_LIMIT + 1) if is_terminal(stream) else source.read(_SECRET_LIMIT + 1)
    except OSError as error:
        raise LocalError(f"standard input: {(error.strerror or str(error)).lower()}") from error
    if len(given) > _SECRET_LIMIT:
        raise UsageError(f"standard input: more than {_SECRET_LIMIT} bytes cannot be credentials")
    return given if isinstance(given, str) else given.decode("utf-8", "surrogateescape")


def write_out(stream: TextIO, text: str) -> None:
    """Writes and flushes a result; after OutputClosed or LocalError nothing more is written at exit either."""
    try:
        stream.write(_encodable(stream, text))
        stream.flush()
    except BrokenPipeError:
        give_up(stream)
        raise OutputClosed from None
    except OSError as error:
        give_up(stream)
        raise output_error(error) from error


def output_error(error: OSError) -> LocalError:
    """What it means that standard output takes nothing more."""
    return LocalError(f"standard output: {(error.strerror or str(error)).lower()}")


def write_aside(stream: TextIO, text: str) -> None:
    """Writes what is only for a person; work goes on when it cannot be read."""
    try:
        stream.write(_encodable(stream, text))
        stream.flush()
    except BrokenPipeError:
        give_up(stream)
    except (OSError, ValueError):
        # A terminal that has gone (EIO) or a full disk behind 2>file: nobody can be told.
        return


def give_up(stream: TextIO) -> None:
    """Points a stream that nobody reads at the null device: Python flushes it at exit and would show it again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _encodable(stream: TextIO, text: str) -> str:
    encoding = stream.encoding or "ascii"
    try:
        text.encode(encoding, stream.errors or "strict")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def painted(text: str, look: str, color: bool) -> str:
    """``text`` in one of the few looks, or unchanged."""
    return f"\x1b[{_LOOKS[look]}m{text}\x1b[0m" if color and text else text


def columns(stream: TextIO) -> int:
    """How wide a terminal is now, 0 where nobody knows."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 0


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal."""
    try:
        return stream.isatty()
    except ValueError:
        return False
