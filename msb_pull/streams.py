"""The three standard streams as one value, and what may be written to them."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from typing import BinaryIO, TextIO, cast

from msb_pull.errors import LocalError, UsageError
from msb_pull.escape import visible as visible
from msb_pull.escape import visible_bytes as visible_bytes

# SGR codes; names of the few looks the program has.
_LOOKS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

_SECRET_LIMIT = 1 << 20


class OutputClosed(Exception):
    """Whoever read standard output has gone (``msb-pull ls | head``)."""


@dataclass(frozen=True, slots=True)
class Streams:
    """What a run reads from and writes to; tests hand in their own."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    @classmethod
    def of_process(cls) -> Streams:
        """Those of this process; one that was closed before the start is replaced by the null device."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A path that is no text is for a program, which needs its very bytes.
            sys.stdout.reconfigure(errors="surrogateescape")
        if sys.stdin is None or sys.stdout is None or sys.stderr is None:
            null = cast("TextIO", open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115 - lives as long as we do
            return cls(sys.stdin or null, sys.stdout or null, sys.stderr or null)
        return cls(sys.stdin, sys.stdout, sys.stderr)

    @property
    def binary_stdout(self) -> BinaryIO:
        """Standard output for an archive."""
        return self.stdout.buffer


def read_secret(stream: TextIO) -> str:
    """All of a stream, or the one line that a person types; bytes that are no UTF-8 are kept as they are.

    Raises LocalError when it cannot be read, UsageError for more than a secret can be.
    """
    source = stream if is_terminal(stream) else getattr(stream, "buffer", stream)
    try:
        given = source.readline(_SECRET_LIMIT + 1) if is_terminal(stream) else source.read(_SECRET_LIMIT + 1)
    except OSError as error:
        raise LocalError(f"standard input: {(error.strerror or str(error)).lower()}") from error
    if len(given) > _SECRET_LIMIT:
        raise UsageError(f"standard input: more than {_SECRET_LIMIT} bytes are no credentials")
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
    """Writes what is only for a person; when nobody can read it, the work goes on all the same."""
    try:
        stream.write(_encodable(stream, text))
        stream.flush()
    except BrokenPipeError:
        give_up(stream)
    except (OSError, ValueError):
        # A terminal that has gone (EIO) or a full disk behind 2>file: there is no one left to tell.
        return


def give_up(stream: TextIO) -> None:
    """Leads a stream that nobody reads into the void: Python flushes it at exit, and would show the error again."""
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
    """``text`` in one of the few looks, or as it is."""
    return f"\x1b[{_LOOKS[look]}m{text}\x1b[0m" if color and text else text


def wants_color(stream: TextIO, chosen: bool | None) -> bool:
    """What was chosen, else whether the stream is a terminal."""
    return is_terminal(stream) if chosen is None else chosen


def is_terminal(stream: TextIO) -> bool:
    """Whether a person sits at the other end."""
    try:
        return stream.isatty()
    except ValueError:
        return False
