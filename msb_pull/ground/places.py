"""The folders of the user, of whom a container may have none, or another one; and how files of the user are read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def home(environ: Mapping[str, str]) -> Path | None:
    """The home folder, None where neither HOME nor the system's list of users names one. It need not exist."""
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return None


def config_home(environ: Mapping[str, str]) -> Path | None:
    """The folder for configuration (XDG Base Directory Specification, which has relative paths ignored)."""
    base = environ.get("XDG_CONFIG_HOME", "").strip()
    if base.startswith("/"):
        return Path(base)
    return folder / ".config" if (folder := home(environ)) else None


def open_regular(path: Path) -> int:
    """A descriptor to read a file that the user named or may have, symlinks followed; /dev/null counts as an empty one.

    Anything else that is no regular file is refused, and not waited for as a pipe would be. Raises OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        facts = os.fstat(handle)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(facts.st_mode) and not os.path.samestat(facts, os.stat(os.devnull)):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_regular(path: Path, limit: int) -> bytes:
    """What such a file holds; of one that is larger than ``limit`` one byte more than that. Raises OSError."""
    with open(open_regular(path), "rb") as file:
        return file.read(limit + 1)
