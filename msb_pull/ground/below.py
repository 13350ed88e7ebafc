"""Opens and stats entries of an open directory, one name at a time and never through a symlink.

A path from an image means nothing on this machine: following it could lead anywhere. So each step is one name
below the descriptor of the step before. Without a directory, ``name`` is a path of our own, whose last part alone must
not be a symlink. Everything here raises OSError.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    Name = bytes | str | os.PathLike[str]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO in place of a file must not make its reader wait for a writer.
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT = (errno.ENOENT,)
# A whiteout is four bytes longer than the name it hides, so some could never be made.
ABSENT_OR_TOO_LONG = (errno.ENOENT, errno.ENAMETOOLONG)


def open_directory(name: Name, directory: int | None = None) -> int:
    """A descriptor of the directory ``name``."""
    return os.open(name, DIRECTORY, dir_fd=directory)


def open_file(name: Name, directory: int | None = None) -> int:
    """A descriptor to read ``name``, whatever it is but a symlink."""
    return os.open(name, FILE, dir_fd=directory)


def create_file(name: Name, directory: int | None = None) -> int:
    """A descriptor to write a new file, which no other user may read yet."""
    return os.open(name, CREATE, 0o600, dir_fd=directory)


def opener(path: str, flags: int) -> int:
    """For :func:`open`: reads as :func:`open_file` does."""
    return os.open(path, flags | FILE)


def look(name: Name, directory: int, absent: tuple[int, ...] = _ABSENT) -> os.stat_result | None:
    """The status of ``name``, of a symlink itself; None for an error in ``absent``."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in absent:
            raise
        return None
