"""Payloads that a later entry of the same layer overwrites: kept beside the record, to make the stream again from.

While a layer is written they lie in a folder at its top that no entry can name, since the child that writes it reaches
nothing else. Their names do not say which entry they belong to: size and checksum in the record do.
"""

from __future__ import annotations

import os
import stat

from msb_pull.ground.below import create_file, open_directory, open_file
from msb_pull.ground.remove import listed
from msb_pull.layer.tree.holes import crc_of, first_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from msb_pull.layer.tar.entry import Entry
    from msb_pull.layer.tar.record import Payload

    Segments = tuple[tuple[int, int], ...]

# All that begins so is AUFS's and left out.
FOLDER = b".wh..wh.kept"
# Above this size the user is told where the bytes went: no directory shows them.
_MUCH = 64 << 20


class Keeper:
    """Takes what must go out of a layer's tree, whose top directory is open as ``top``; payloads are kept.

    ``filled`` returns once the files that have been made have their contents.
    """

    def __init__(self, top: int) -> None:
        self.filled: Callable[[], None] = lambda: None
        self._top = top
        self._next = -1

    def discard(self, directory: int, name: bytes) -> None:
        """Removes an entry of an open directory that is not itself a directory; raises OSError."""
        self.filled()
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(facts.st_mode) and facts.st_size and facts.st_nlink == 1:
            os.rename(name, self._place(), src_dir_fd=directory, dst_dir_fd=self._top)
        else:
            os.unlink(name, dir_fd=directory)

    def write(self, entry: Entry, chunk: Callable[[], memoryview]) -> None:
        """Keeps the payload of an entry that makes no file, as the stream has it; raises OSError, LayerError."""
        if not entry.stored:
            return
        with os.fdopen(create_file(self._place(), self._top), "wb") as file:
            left = entry.stored
            while left:
                piece = chunk()
                left -= len(piece)
                file.write(piece)

    def _place(self) -> bytes:
        """A name that is free, relative to the top."""
        if self._next < 0:
            try:
                os.mkdir(FOLDER, 0o700, dir_fd=self._top)
                self._next = 0
            except FileExistsError:
                # Settling goes on where unpacking ended.
                folder = open_directory(FOLDER, self._top)
                try:
                    self._next = len(listed(folder))
                finally:
                    os.close(folder)
        self._next += 1
        return FOLDER + b"/%d" % (self._next - 1)


def keep_aside(tree: Path, place: Path) -> list[str]:
    """Moves what was kept out of a finished tree to ``place``, if there is any; returns warnings. Raises OSError."""
    before = os.stat(tree)
    try:
        os.rename(os.path.join(tree, os.fsdecode(FOLDER)), place)
    except FileNotFoundError:
        return []
    os.utime(tree, ns=(before.st_atime_ns, before.st_mtime_ns))
    with os.scandir(place) as found:
        size = sum(entry.stat(follow_symlinks=False).st_blocks for entry in found) * 512
    return (
        [f"{size // 1_000_000} MB that its later entries overwrite are kept, so that it can be verified"]
        if size > _MUCH
        else []
    )


class Kept:
    """The payloads kept of one layer, told apart by size and checksum; ``left`` names those that nothing asked for.

    ``folder`` is open, -1 where nothing is kept.
    """

    def __init__(self, folder: str) -> None:
        self.left: dict[bytes, None] = {}
        self._sizes: dict[int, list[bytes]] = {}
        # Of files by their size, and how they are read: checksums, and the names with each, the first one last.
        self._checksums: dict[tuple[int, Segments], dict[int, list[bytes]]] = {}
        self.folder = -1
        try:
            self.folder = open_directory(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in sorted((name for name, _ in listed(self.folder)), key=lambda name: (len(name), name)):
            size = os.stat(name, dir_fd=self.folder, follow_symlinks=False).st_size
            self._sizes.setdefault(size, []).append(name)
            self.left[name] = None

    def take(self, payload: Payload, size: int) -> tuple[bytes, Payload] | None:
        """The name of the file with the payload of a file of ``size``, and how it lies there; each file once.

        It was written as a file of that size, or, where the entry made no file, as the stream has it. None where there
        is none. Raises OSError.
        """
        place, index, expected, stored, sparse = payload
        for length, segments in ((size, sparse), (stored, None)):
            names = self._with(length, segments if segments is not None else ((0, stored),)).get(expected, [])
            while names:
                if (name := names.pop()) in self.left:
                    del self.left[name]
                    return name, (place, index, expected, stored, segments)
        return None

    def superfluous(self) -> Iterator[bytes]:
        """The names in ``left`` with content (a file that is one hole has no payload); raises OSError."""
        for name in self.left:
            handle = open_file(name, self.folder)
            try:
                if first_data(handle, (), os.fstat(handle).st_size) is not None:
                    yield name
            finally:
                os.close(handle)

    def close(self) -> None:
        """Closes the folder."""
        if self.folder >= 0:
            os.close(self.folder)

    def _with(self, size: int, segments: Segments) -> dict[int, list[bytes]]:
        """The files of a size by their checksums; each is read once for all payloads that lie alike."""
        if (size, segments) not in self._checksums:
            found = self._checksums[size, segments] = {}
            for name in reversed(self._sizes.get(size, ())):
                if name in self.left:
                    found.setdefault(self._checksum(name, segments), []).append(name)
        return self._checksums[size, segments]

    def _checksum(self, name: bytes, segments: Segments) -> int:
        handle = open_file(name, self.folder)
        try:
            return crc_of(handle, segments)
        finally:
            os.close(handle)
