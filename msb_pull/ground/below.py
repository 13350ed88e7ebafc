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


# Directories that are kept open on the way to the one that was asked for last.
_DEPTH = 32


class Trail:
    """Opens directories below an open one, at any depth, each from the nearest one above it that is open still.

    So a walk depth first, or through the files of an archive, opens hardly any twice.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: list[tuple[bytes, int]] = []

    def reach(self, path: bytes) -> int:
        """A descriptor of the directory at a path ("" is the root's), valid until the next call; raises OSError."""
        ones = self._open
        if ones and ones[-1][0] == path:
            return ones[-1][1]
        while ones and ones[-1][0] and path != ones[-1][0] and not path.startswith(ones[-1][0] + b"/"):
            os.close(ones.pop()[1])
        if not ones:
            ones.append((b"", os.dup(self._root)))
        above, current = ones[-1]
        rest = path[len(above) + 1 if above else 0 :]
        for name in rest.split(b"/") if rest else ():
            above, current = above + b"/" + name if above else name, open_directory(name, current)
            ones.append((above, current))
            if len(ones) > _DEPTH:
                # The top stays, and the way back up begins near here.
                os.close(ones.pop(1)[1])
        return current

    def close(self) -> None:
        """Closes all but the root; may be called again."""
        while self._open:
            os.close(self._open.pop()[1])
