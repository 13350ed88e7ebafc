"""The directories of layers that lie on each other, kept open while one looks through all of them."""

from __future__ import annotations

import errno
import os
import resource

from msb_pull.ground.below import ABSENT_OR_TOO_LONG, look, open_directory
from msb_pull.layer.rules import join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any

_MAX_OPEN = 64
# The layer has something else on the way, or nothing could exist at that path.
_NO_DIRECTORY = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG))


class Inside:
    """A directory of a layer that is not read from disk; it takes the place of a descriptor."""

    def look(self, name: bytes) -> Any:
        """What stands at a name: something with ``st_mode``, None for nothing."""
        raise NotImplementedError

    def enter(self, path: bytes) -> Inside | None:
        """A directory by its path from the layer's top."""
        raise NotImplementedError

    def read_link(self, name: bytes) -> bytes:
        """The target of a symlink."""
        raise NotImplementedError

    def directories(self) -> Iterable[bytes]:
        """The names of the directories in it."""
        raise NotImplementedError


class Directories:
    """Opens directories of ``lowers`` (nearest first: 0, 1, …) and of ``own`` (-1); raises OSError.

    Descriptors stay open, up to a limit: a walk through a tree visits each directory many times.
    """

    def __init__(self, lowers: Sequence[Path | str], own: Path | Inside | None) -> None:
        self._roots: dict[int, int] = {}
        self._inside = own if isinstance(own, Inside) else None
        self._open: dict[tuple[int, bytes], int] = {}
        # One for each layer is the least that keeps the way to a deep path from being opened again at every step.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self._max_open = max(_MAX_OPEN, min(_MAX_OPEN + len(lowers), most))
        try:
            for layer, path in enumerate(lowers):
                self._roots[layer] = open_directory(path)
            if own is not None and not isinstance(own, Inside):
                self._roots[-1] = open_directory(own)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes every descriptor."""
        for descriptor in (*self._open.values(), *self._roots.values()):
            os.close(descriptor)
        self._open.clear()
        self._roots.clear()

    def layers(self) -> list[int]:
        """The numbers of all layers, the nearest first."""
        return sorted([*self._roots, *([-1] if self._inside else [])])

    def root(self, layer: int) -> int | Inside:
        """The top of a layer."""
        return self._inside if layer == -1 and self._inside is not None else self._roots[layer]

    def at(self, layer: int, path: bytes) -> int | Inside | None:
        """A directory of one layer, opened name by name; None where there is none. It is closed later."""
        if layer == -1 and self._inside is not None:
            return self._inside.enter(path)
        if layer not in self._roots:
            return None
        known, pending = path, []
        while known and (layer, known) not in self._open:
            known, _, part = known.rpartition(b"/")
            pending.append(part)
        current = self._open[layer, known] if known else self._roots[layer]
        while pending:
            part = pending.pop()
            known = join(known, part)
            try:
                current = open_directory(part, current)
            except OSError as error:
                if error.errno not in _NO_DIRECTORY:
                    raise
                return None
            if len(self._open) >= self._max_open:
                # The oldest, which may be a parent: the walk goes on from the descriptor it has just got.
                os.close(self._open.pop(next(iter(self._open))))
            self._open[layer, known] = current
        return current


def facts_at(directory: int | Inside, name: bytes) -> os.stat_result | None:
    """What stands at a name, a symlink as itself; None for nothing."""
    if isinstance(directory, Inside):
        found: os.stat_result | None = directory.look(name)
        return found
    return look(name, directory, ABSENT_OR_TOO_LONG)
