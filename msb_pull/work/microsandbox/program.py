"""``msb``, the program of Microsandbox: where it is, what it has, and one ``msb load`` that is fed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError, UsageError, raise_if_exhausted
from msb_pull.image.reference import Reference

if TYPE_CHECKING:
    from msb_pull.ground.running import Cancel

# What ``--to`` and events call it.
PLACE = "microsandbox"
NAME = "msb"
_INSTALL = "install Microsandbox (`curl -fsSL https://install.microsandbox.dev | sh`), or name its program with --msb"
# Where that script puts it; a shell that was open before does not look there.
_INSTALLED = "~/.microsandbox/bin"
_TOO_OLD = "Microsandbox before 0.5.5 has no `load`; `msb --version` says what is installed"
# What clap, which reads its arguments, ends with where it does not know one.
_UNKNOWN_ARGUMENT = 2
# How long what happens elsewhere (an interruption, its end) may go unheard, in seconds.
_SLICE = 0.05
# How long it may take nothing at all, in seconds: it only copies what it reads to a disk.
_PATIENCE = 120.0
_ANSWER_SECONDS = 60
_ANSWER_LIMIT = 64 << 20
_LAST_WORDS = 4096
# Bytes of what it says that are kept, and how often that much is taken at once.
_MOST_SAID = 64 << 10
_PIECES_SAID = 32
_PIECE = 1 << 20
# What the pipe may hold where it can be told: the feeding thread then asks for the interpreter's lock less often, for
# which the threads of the pull wait too.
_PIPE = 1 << 20


def find_msb(given: str) -> str:
    """The path of Microsandbox's program, from its name or its path; raises UsageError that says how to get it."""
    folders = [*os.get_exec_path(), os.path.expanduser(_INSTALLED)]  # noqa: PTH111 - kept as text
    found = shutil.which(os.path.expanduser(given), path=os.pathsep.join(folders))  # noqa: PTH111
    if found is None:
        raise UsageError(f"{given}: no such program", hint=_INSTALL)
    return found


def has_image(program: str, reference: str, digest: str, cancel: Cancel) -> bool | None:
    """Whether Microsandbox lists an image under this name, however it was typed, with this manifest.

    None where the program cannot say. Raises LocalError when it cannot be run or does not answer, Cancelled.
    """
    try:
        listed = json.loads(_answer([program, "image", "ls", "--format", "json"], cancel))
        same = [image["reference"] for image in listed if image["digest"] == digest]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return any(_canonical(name) == reference for name in same)


def check_loaded(program: str, reference: str, digest: str, cancel: Cancel) -> None:
    """Raises LocalError where the program says that it has loaded an image, and does not list it; Cancelled."""
    if has_image(program, reference, digest, cancel) is False:
        raise LocalError(
            f"{Path(program).name} load ended as if all were well, but {reference} is not in its list",
            hint=f"`{Path(program).name} image ls` shows what it has; is it Microsandbox's program?",
        )


def _answer(command: list[str], cancel: Cancel) -> bytes:
    """What a short command says, nothing where it fails or says too much; whatever it started ends with it."""
    with tempfile.TemporaryFile() as said:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise _not_run(command[0], error) from error
        try:
            end = time.monotonic() + _ANSWER_SECONDS
            while not _ended(child):
                cancel.check()
                if os.fstat(said.fileno()).st_size > _ANSWER_LIMIT:
                    return b""
                if time.monotonic() > end:
                    raise LocalError(f"{command[0]} does not answer", cause="`image ls` took too long")
        finally:
            _kill(child)
        return b"" if child.returncode else os.pread(said.fileno(), _ANSWER_LIMIT, 0)


def _ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_SLICE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends a program that still runs, with all of its session."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _canonical(name: object) -> str | None:
    try:
        return str(Reference.parse(name)) if isinstance(name, str) else None
    except UsageError:
        return None


class Loading:
    """One ``msb load``, from its start to its end, which takes an archive as it is written.

    What leaves the ``with`` block before :meth:`finish` has returned kills it; since the files without which it takes
    an archive for none come last, it has loaded nothing then. ``folder`` is where it keeps what it reads until all is
    there. For one thread at a time.
    """

    def __init__(self, program: str, folder: Path | None, cancel: Cancel, *, patience: float = _PATIENCE) -> None:
        self._program = program
        self._folder = folder
        self._cancel = cancel
        self._patience = patience
        self._said = b""

    def __enter__(self) -> Loading:
        command = [self._program, "load", "--quiet"]
        if self._folder is not None:
            command = ["/usr/bin/env", f"TMPDIR={self._folder}", *command]
        try:
            # A session of its own: a signal from the terminal is for this process, which then ends the program.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise _not_run(self._program, error) from error
        assert self._child.stdin is not None and self._child.stderr is not None
        self._pipe, self._voice = self._child.stdin, self._child.stderr
        for end in (self._pipe, self._voice):
            os.set_blocking(end.fileno(), False)
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            # Before its input ends.
            _kill(self._child)
        finally:
            self._pipe.close()
            self._voice.close()

    def write(self, data: bytes | memoryview) -> int:
        """Hands bytes over; returns how many. Raises LocalError once the program has ended or takes no more, Cancelled.

        The error has the program's last words.
        """
        view = memoryview(data)
        pipe = self._pipe.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLOUT)
        last = time.monotonic()
        while view:
            self._cancel.check()
            self._hear()
            if not ready.poll(_SLICE * 1000):
                # Something that it started may hold the other end open.
                if self._child.poll() is not None:
                    raise self._failed()
                if time.monotonic() - last > self._patience:
                    raise LocalError(f"{self._name} takes no more of the image", cause=self._last_words())
                continue
            try:
                view = view[os.write(pipe, view[:_PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._failed() from None
            last = time.monotonic()
        return len(data)

    def finish(self) -> None:
        """Ends the archive and waits until the image is loaded; raises LocalError when it is not, Cancelled."""
        self._pipe.close()
        while self._child.poll() is None:
            self._cancel.check()
            self._hear()
            self._cancel.wait(_SLICE)
        if self._child.returncode:
            raise self._failed()

    @property
    def _name(self) -> str:
        return f"{Path(self._program).name} load"

    def _failed(self) -> LocalError:
        # It has closed its input, or is about to end.
        end = time.monotonic() + (self._patience and 1)
        while not (ended := _ended(self._child)) and time.monotonic() < end:
            self._hear()
        if not ended:
            return LocalError(f"{self._name} stopped reading", cause=self._last_words())
        status = self._child.returncode
        how = f"was killed by signal {-status}" if status < 0 else f"failed (status {status})"
        hint = _TOO_OLD if status == _UNKNOWN_ARGUMENT else None
        return LocalError(f"{self._name} {how}", cause=self._last_words(), hint=hint)

    def _last_words(self) -> str | None:
        self._hear()
        lines = self._said[-_LAST_WORDS:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else None

    def _hear(self) -> None:
        """Takes what it has said by now, and keeps the end of it; raises OSError."""
        # What has ended has left no more than a pipe holds; what never ends must not be heard for ever.
        for _ in range(_PIECES_SAID):
            try:
                piece = os.read(self._voice.fileno(), _MOST_SAID)
            except BlockingIOError:
                break
            if not piece:
                break
            self._said = (self._said + piece)[-_MOST_SAID:]


def _not_run(program: str, error: OSError) -> LocalError:
    raise_if_exhausted(error)
    return LocalError(f"{program} cannot be run", cause=error.strerror)
