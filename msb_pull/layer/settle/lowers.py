"""What layers lying on each other show as one image, without following any of their symlinks on this machine."""

from __future__ import annotations

import errno
import os
import stat

from msb_pull.ground.below import open_directory, open_file
from msb_pull.ground.remove import listed
from msb_pull.layer.rules import OPAQUE, BadPath, join, resolve, whiteout_of
from msb_pull.layer.settle.directories import Directories, Inside, facts_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

_MAX_SHOWN = 1 << 14


class Shown:
    """What stands at a path of the merged view: its facts, the layer they are from, and those that go on inside it.

    Layers are numbers, the nearest first; -1 is the own one.
    """

    __slots__ = ("facts", "layer", "layers", "path")

    def __init__(self, path: bytes, facts: os.stat_result, layer: int, layers: tuple[int, ...]) -> None:
        self.path = path
        self.facts = facts
        self.layer = layer
        self.layers = layers

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.facts.st_mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.facts.st_mode)


class MergedView:
    """The merged view of layer directories, nearest first; whiteouts and opaque directories count (image-spec).

    ``own`` is a layer on top of them, of which the directories ``implied`` exist only because something lies in them:
    what the others show there counts for more.
    """

    def __init__(
        self,
        lowers: Sequence[Path | str],
        *,
        own: Path | Inside | None = None,
        implied: Collection[bytes] = frozenset(),
    ) -> None:
        self._directories = Directories(lowers, own)
        # Of directories of the own layer: whether they or one above them are opaque.
        self._hiding: dict[bytes, bool] = {}
        self._shown: dict[bytes, Shown | None] = {}
        self._implied = implied

    def __enter__(self) -> MergedView:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes every descriptor."""
        self._directories.close()

    def look(self, path: bytes) -> Shown | None:
        """What ``path`` shows, no symlink followed (not even on the way); None if nothing stands there."""
        if path in self._shown:
            return self._shown[path]
        # From the top down, without recursion however deep the path.
        known, pending = path, []
        while known and known not in self._shown:
            known, _, part = known.rpartition(b"/")
            pending.append(part)
        shown = self._shown[known] if known in self._shown else self._top()
        while pending:
            part = pending.pop()
            known = join(known, part)
            shown = self._child(shown, part, known) if shown is not None and shown.is_directory else None
            # Nothing changes meanwhile, so forgetting costs only time.
            if len(self._shown) >= _MAX_SHOWN:
                self._shown.clear()
            self._shown[known] = shown
        return shown

    def resolve(self, path: bytes) -> bytes | None:
        """Follows the symlinks of the view (:func:`rules.resolve`); None for a loop or a way through a file."""
        try:
            real = resolve(path, self._look_on_the_way)
        except BadPath:
            return None
        # A file that ".." left again does not block the path.
        shown = self.look(b"")
        for part in real.split(b"/") if real else ():
            if shown is not None and not shown.is_directory:
                return None
            shown = None if shown is None else self.look(join(shown.path, part))
        return None if shown is not None and not shown.is_directory else real

    def _look_on_the_way(self, path: bytes) -> bytes | bool | None:
        shown = self.look(path)
        if shown is None:
            return None
        return self.read_link(shown) if shown.is_symlink else shown.is_directory

    def read_link(self, shown: Shown) -> bytes:
        """The target of a symlink, byte for byte."""
        directory, name = self._parent(shown)
        return directory.read_link(name) if isinstance(directory, Inside) else os.readlink(name, dir_fd=directory)

    def open(self, shown: Shown) -> int:
        """A descriptor to read a file or directory of the layer that shows it."""
        if not shown.path:
            top = self._directories.root(shown.layer)
            assert not isinstance(top, Inside)
            # The caller closes what it gets, and this one is needed to the end.
            return os.dup(top)
        directory, name = self._parent(shown)
        assert not isinstance(directory, Inside)
        return open_file(name, directory)

    def own_hides(self, path: bytes) -> bool:
        """Whether an opaque directory of the own layer lies on the way to ``path``."""
        if not path:
            return False
        pending = []
        parent = path.rpartition(b"/")[0]
        while parent and parent not in self._hiding:
            pending.append(parent)
            parent = parent.rpartition(b"/")[0]
        if parent not in self._hiding:
            pending.append(parent)
        # From the top down, each once: looking upwards from every path would be quadratic in its depth.
        hides = self._hiding.get(parent, False)
        while pending:
            parent = pending.pop()
            if not hides:
                directory = self._directories.at(-1, parent)
                hides = directory is not None and facts_at(directory, OPAQUE) is not None
            self._hiding[parent] = hides
        return hides

    def own_has(self, path: bytes) -> bool:
        """Whether the own layer has a directory at ``path``."""
        return self._directories.at(-1, path) is not None

    def own_directories(self, path: bytes) -> Iterator[bytes]:
        """The directories of the own layer at and below ``path``, parents first."""
        pending = [path]
        while pending:
            here = pending.pop()
            directory = self._directories.at(-1, here)
            if directory is None:
                continue
            yield here
            if isinstance(directory, Inside):
                names = directory.directories()
            else:
                names = [name for name, is_directory in listed(directory) if is_directory]
            pending += [join(here, name) for name in sorted(names)]

    def _top(self) -> Shown | None:
        layers = self._directories.layers()
        if not layers:
            return None
        first = layers[0]
        # A top that no entry describes looks as the layer below has it.
        if first == -1 and b"" in self._implied and len(layers) > 1:
            first = layers[1]
        inside: list[int] = []
        for layer in layers:
            inside.append(layer)
            if facts_at(self._directories.root(layer), OPAQUE) is not None:
                break
        top = self._directories.root(first)
        facts = top.look(b"") if isinstance(top, Inside) else os.fstat(top)
        return Shown(b"", facts, first, tuple(inside))

    def _parent(self, shown: Shown) -> tuple[int | Inside, bytes]:
        parent, _, name = shown.path.rpartition(b"/")
        directory = self._directories.at(shown.layer, parent)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "a lower layer changed", os.fsdecode(shown.path))
        return directory, name

    def _child(self, parent: Shown, part: bytes, path: bytes) -> Shown | None:
        inside: list[int] = []
        first: tuple[os.stat_result, int] | None = None
        fallback: tuple[os.stat_result, int] | None = None
        for layer in parent.layers:
            directory = self._directories.at(layer, parent.path)
            if directory is None:
                continue
            facts = facts_at(directory, part)
            if facts is not None and not stat.S_ISDIR(facts.st_mode):
                # Below a directory a file is hidden; below one that is only implied, a symlink shows where it leads.
                if first is None and (fallback is None or stat.S_ISLNK(facts.st_mode)):
                    return Shown(path, facts, layer, ())
                break
            if facts is not None:
                inside.append(layer)
                if layer == -1 and path in self._implied:
                    # No entry says how it looks, so any layer below that has it knows better.
                    fallback = facts, layer
                else:
                    first = first or (facts, layer)
                if self._is_opaque(directory, part, path):
                    # What lies below shows through in nothing but the facts of an implied directory itself.
                    if first is None:
                        beneath = self._beneath(parent, part, path)
                        if beneath is not None and beneath.is_symlink:
                            return beneath
                        if beneath is not None and beneath.is_directory:
                            first = beneath.facts, beneath.layer
                    break
            # A whiteout hides what lies below its own layer, not what stands beside it.
            if facts_at(directory, whiteout_of(part)) is not None:
                break
        first = first or fallback
        return Shown(path, *first, tuple(inside)) if first is not None else None

    def _beneath(self, parent: Shown, part: bytes, path: bytes) -> Shown | None:
        # Without the own layer its marker does not end the search, which asks what the directory looked like before.
        layers = tuple(layer for layer in parent.layers if layer != -1)
        return self._child(Shown(parent.path, parent.facts, parent.layer, layers), part, path)

    def _is_opaque(self, directory: int | Inside, name: bytes, path: bytes) -> bool:
        if isinstance(directory, Inside):
            within = directory.enter(path)
            return within is not None and within.look(OPAQUE) is not None
        inner = open_directory(name, directory)
        try:
            return facts_at(inner, OPAQUE) is not None
        finally:
            os.close(inner)
