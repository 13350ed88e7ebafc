"""Programs of others that make a file system of a tar stream: where they are, how they are fed and how they fail."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from msb_pull.ground.errors import LocalError, UsageError, raise_if_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Where programs for administrators lie; an ordinary user's PATH often ends before.
_MORE_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/opt/homebrew/opt/e2fsprogs/sbin")
# What such a program writes at once.
_NO_SPACE = 1 << 20


@dataclass(frozen=True, slots=True)
class Packages:
    """What to install for a program, on the systems that most people have."""

    debian: str
    fedora: str
    homebrew: str

    def __str__(self) -> str:
        return f"{self.debian} (Debian, Ubuntu), {self.fedora} (Fedora) or {self.homebrew} (Homebrew)"


def find_tool(name: str, packages: Packages) -> str:
    """The path of a program; raises UsageError, which names the packages to install."""
    if found := shutil.which(name, path=os.pathsep.join([*os.get_exec_path(), *_MORE_FOLDERS])):
        return found
    raise UsageError(f"{name} is not installed", hint=f"install {packages}")


def feed(command: Sequence[str], out: BinaryIO, write: Callable[[IO[bytes]], object]) -> None:
    """Runs a program that makes the file ``out`` (``/dev/fd/N`` in the command) of what ``write`` puts into a pipe.

    Raises LocalError with the program's last words when it fails, OSError where the disk is full, and what ``write``
    raises once the program has ended.
    """
    with tempfile.TemporaryFile() as said:
        try:
            # A session of its own: a signal from the terminal is for this process, which then ends the program.
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=(out.fileno(),),
                env={"LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
            )
        except OSError as error:
            raise_if_exhausted(error)
            raise LocalError(f"{command[0]}: {error.strerror}") from error
        broken = None
        try:
            pipe = child.stdin
            assert pipe is not None
            try:
                write(pipe)
                pipe.close()
            except BrokenPipeError as error:
                broken = error
            status = child.wait()
        finally:
            _end(child)
        if status or broken:
            space = os.fstatvfs(out.fileno())
            # Some programs call that an I/O error.
            if space.f_bavail * space.f_frsize < _NO_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise LocalError(f"{Path(command[0]).name} failed (status {status})", cause=(lines or [""])[-1])


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
        child.wait()
    if child.stdin is not None and not child.stdin.closed:
        try:
            child.stdin.close()
        except BrokenPipeError:
            # What was still in the buffer has no reader any more.
            return
