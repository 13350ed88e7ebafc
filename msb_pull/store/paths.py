"""The names of everything in a store, and what has them."""

from __future__ import annotations

import contextlib
import enum
import os
import stat
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError
from msb_pull.image.digest import InvalidDigest
from msb_pull.store.homes import Homes
from msb_pull.store.index.keys import LayerKey, copies_in, signature_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from msb_pull.image.digest import Digest

    Name = Digest | LayerKey

SUFFIX = ".extracted"
_SHORT = 12


class LayerState(enum.StrEnum):
    """What the store knows of a layer's directory; ``OCCUPIED`` is a name that a symlink or a file has taken."""

    ABSENT = "absent"
    COMPLETE = "complete"
    EMPTIED = "emptied"
    FOREIGN = "foreign"
    OCCUPIED = "occupied"


class Paths:
    """``<layers>/<digest>.extracted`` for each layer, and ``<layers>/.msb-pull/`` for all that is ours alone.

    A digest that was parsed is all that ever makes a path.
    """

    def __init__(self, home: Path, layers: Path) -> None:
        self.home = home
        self.layers = layers
        self.database_path = home / "oci.db"
        self.own = layers / ".msb-pull"
        self.homes = Homes(home, layers, self.own)

    def layer_dir(self, layer: Name) -> Path:
        """The directory of a layer, there or not."""
        return self.layers / f"{layer}{SUFFIX}"

    def record_path(self, layer: Name) -> Path:
        """The record of a layer: its tar stream without payloads."""
        return self.own / "records" / f"{layer}.tar"

    def notes_path(self, layer: Name) -> Path:
        """What is known of a layer beside its record."""
        return self.own / "records" / f"{layer}.json"

    def kept_path(self, layer: Name) -> Path:
        """A folder with the payloads that later entries of the layer overwrite; most layers have none."""
        return self.own / "records" / f"{layer}.kept"

    def partial_path(self, layer: Name) -> Path:
        """What has arrived of a blob so far."""
        return self.own / "partial" / str(layer)

    def kept_signature(self, reference: str, limit: int) -> bytes | None:
        """What was checked of the signatures of an image; None where nothing is kept, or more than ``limit`` bytes."""
        path = self.homes.copies / signature_name(reference)
        try:
            # A FIFO in its place would be waited for.
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                data = file.read(limit + 1)
        except OSError:
            return None
        return data if len(data) <= limit else None

    def has_kept_signature(self, reference: str) -> bool:
        """Whether anything is kept of the signatures of an image."""
        # Unlike Path.exists this takes a folder that may not be entered for one without it.
        return os.path.exists(self.homes.copies / signature_name(reference))  # noqa: PTH110

    def link_path(self, layer: Name) -> Path:
        """A short symlink to the layer's directory, without a colon, for mount options.

        The one that is there, else the shortest name that no other layer has.
        """
        target = self.link_target(layer)
        there = (path for path in self._short_names(layer) if _read_link(path) == target)
        free = (path for path in self._short_names(layer) if not self._is_anothers(path, layer))
        return next(there, None) or next(free, self.own / "l" / layer.hex)

    def _short_names(self, layer: Name) -> Iterator[Path]:
        for length in (*range(_SHORT, len(layer.hex), 4), len(layer.hex)):
            yield self.own / "l" / layer.hex[:length]

    def link_target(self, layer: Name) -> str:
        """What a layer's short link says."""
        return f"../../{layer}{SUFFIX}"

    def has_link(self, layer: Name) -> bool:
        """Whether a layer's short link is there and leads to it."""
        return _read_link(self.link_path(layer)) == self.link_target(layer)

    def make_link(self, layer: Name) -> Path:
        """Makes the short link of a layer if it is missing or leads elsewhere; raises OSError."""
        target = self.link_target(layer)
        while True:
            link = self.link_path(layer)
            try:
                link.symlink_to(target)
            except FileExistsError:
                if _read_link(link) == target:
                    return link
                # Another process may have made another layer's meanwhile.
                if not self._is_anothers(link, layer):
                    link.unlink(missing_ok=True)
                elif len(link.name) == len(layer.hex):
                    raise
            else:
                return link

    def make_links(self, layers: Iterable[Name]) -> None:
        """Makes what is missing or wrong of the short links of layers; raises OSError."""
        for layer in layers:
            self.make_link(layer)

    def _is_anothers(self, path: Path, layer: Name) -> bool:
        """Whether a short name is that of another layer whose digits begin alike, or of no symlink at all."""
        target = _read_link(path)
        if target is None:
            return os.path.lexists(path)
        name = target.removeprefix("../../").removesuffix(SUFFIX)
        try:
            other = LayerKey.parse(name)
        except InvalidDigest:
            return False
        return target == self.link_target(other) != self.link_target(layer) and other.hex.startswith(path.name)

    def layers_there(self) -> list[LayerKey]:
        """The names of all layers that have a directory, whoever made it; raises OSError."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.layers) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(InvalidDigest):
                        found.append(LayerKey.parse(entry.name.removesuffix(SUFFIX)))
        return sorted(found)

    def has_layer(self, layer: Name) -> bool:
        """Whether a layer is complete: published by us, and so verified twice, and not emptied since."""
        return self.layer_state(layer) is LayerState.COMPLETE

    def has_directory(self, layer: Name) -> bool:
        """Whether a layer's directory can be used, whoever made it."""
        return self.layer_state(layer) in (LayerState.COMPLETE, LayerState.FOREIGN)

    def layer_state(self, layer: Name) -> LayerState:
        """What has a layer's name. A directory without our notes is not ours."""
        directory, notes = self.layer_dir(layer), self.notes_path(layer)
        mode = _mode(directory)
        if mode is None:
            return LayerState.ABSENT
        if not stat.S_ISDIR(mode):
            return LayerState.OCCUPIED
        noted = _mode(notes)
        if noted is None or not stat.S_ISREG(noted):
            return LayerState.FOREIGN
        # Content of a layer lies in its directory, or is kept beside its record.
        emptied = _is_empty(directory) and _mode(self.kept_path(layer)) is None and _tells_of_content(notes)
        return LayerState.EMPTIED if emptied else LayerState.COMPLETE

    def refuse_symlink(self, layer: Name) -> None:
        """Raises LocalError when a layer's name is taken by something that is not a directory."""
        if self.layer_state(layer) is LayerState.OCCUPIED:
            hint = "find out what made it, and remove it"
            raise LocalError(f"{self.layer_dir(layer)}: not a directory but a symlink or a file", hint=hint)

    @property
    def has_images(self) -> bool:
        """Whether there is a database, or what one can be made from."""
        if self.database_path.exists():
            return True
        try:
            return any(copies_in(self.homes.copies))
        except OSError:
            return False


def _mode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_empty(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def _tells_of_content(notes: Path) -> bool:
    import json

    try:
        return bool(json.loads(notes.read_bytes())["content_bytes"] > 0)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # What is wrong with them is for verify to say.
        return False


def _read_link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
