"""What the layers below show, as one image, without following any of their symlinks on this machine."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_MAX_HOPS = 40


class Shown:
    """What stands at a path of the merged view: its facts, and the layers (nearest first) that contribute to it."""

    __slots__ = ("facts", "layers", "path")

    def __init__(self, path: bytes, facts: os.stat_result, layers: tuple[int, ...]) -> None:
        self.path = path
        self.facts = facts
        self.layers = layers

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.facts.st_mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.facts.st_mode)


class LowerView:
    """The merged view of layer directories, nearest first; whiteouts and opaque directories count (image-spec)."""

    def __init__(self, lowers: Sequence[Path]) -> None:
        self._roots = [os.open(path, _OPEN_DIR) for path in lowers]

    def __enter__(self) -> LowerView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for root in self._roots:
            os.close(root)

    def look(self, path: bytes) -> Shown | None:
        """What ``path`` shows, no symlink followed (not even on the way); None if nothing stands there."""
        layers = tuple(range(len(self._roots)))
        shown = Shown(b"", os.fstat(self._roots[0]), layers) if layers else None
        if not path:
            return shown
        at = b""
        for part in path.split(b"/"):
            if shown is None or not shown.is_directory:
                return None
            at, parent = (at + b"/" + part if at else part), at
            shown = self._child(parent, part, at, shown.layers)
        return shown

    def resolve(self, path: bytes) -> bytes | None:
        """Follows the symlinks of the view, against its own root; None for a loop or a way through a file.

        What does not exist yet is taken as it is written.
        """
        real: list[bytes] = []
        ahead = path.split(b"/")[::-1]
        hops = 0
        while ahead:
            part = ahead.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                real = real[:-1]
                continue
            here = b"/".join((*real, part))
            shown = self.look(here)
            if shown is not None and shown.is_symlink:
                hops += 1
                if hops > _MAX_HOPS:
                    return None
                target = self.read_link(shown)
                if target.startswith(b"/"):
                    real = []
                ahead.extend(target.split(b"/")[::-1])
                continue
            if shown is not None and not shown.is_directory and ahead:
                return None
            real.append(part)
        return b"/".join(real)

    def read_link(self, shown: Shown) -> bytes:
        """The target of a symlink, byte for byte."""
        directory, name = self._open_parent(shown)
        try:
            return os.readlink(name, dir_fd=directory)
        finally:
            os.close(directory)

    def open(self, shown: Shown) -> int:
        """A descriptor to read a file or directory of the nearest layer that has it."""
        if not shown.path:
            return os.dup(self._roots[shown.layers[0]])
        directory, name = self._open_parent(shown)
        try:
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)

    def _open_parent(self, shown: Shown) -> tuple[int, bytes]:
        parent, _, name = shown.path.rpartition(b"/")
        directory = self._open_directory(shown.layers[0], parent)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "a lower layer changed", os.fsdecode(shown.path))
        return directory, name

    def _child(self, parent: bytes, part: bytes, path: bytes, layers: tuple[int, ...]) -> Shown | None:
        found: list[int] = []
        first: os.stat_result | None = None
        for layer in layers:
            directory = self._open_directory(layer, parent)
            if directory is None:
                continue
            try:
                facts = _facts(directory, part)
                hidden = _facts(directory, _WHITEOUT + part) is not None
                opaque = facts is not None and _facts(directory, part + b"/" + _OPAQUE) is not None
            finally:
                os.close(directory)
            if facts is not None and not stat.S_ISDIR(facts.st_mode):
                return Shown(path, facts, (layer,)) if first is None else Shown(path, first, tuple(found))
            if facts is not None:
                first = first or facts
                found.append(layer)
            if hidden or opaque:
                break
        return Shown(path, first, tuple(found)) if first is not None else None

    def _open_directory(self, layer: int, path: bytes) -> int | None:
        """Opens a directory of one layer component by component; None where there is none."""
        current = os.dup(self._roots[layer])
        for part in path.split(b"/") if path else ():
            try:
                following = os.open(part, _OPEN_DIR, dir_fd=current)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                return None
            finally:
                os.close(current)
            current = following
        return current


def _facts(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        return None
