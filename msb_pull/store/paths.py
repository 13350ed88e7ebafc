"""The names of everything in a store, and what has them."""

from __future__ import annotations

import contextlib
import enum
import os
import stat
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError
from msb_pull.store.homes import Homes
from msb_pull.store.keys import copies_in

if TYPE_CHECKING:
    from pathlib import Path

    from msb_pull.image.digest import Digest
    from msb_pull.store.keys import LayerKey

    Name = Digest | LayerKey

_SHORT = 12


class LayerState(enum.StrEnum):
    """What the store knows of a layer's directory; ``OCCUPIED`` is a name that a symlink or a file has taken."""

    ABSENT = "absent"
    COMPLETE = "complete"
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
        return self.layers / f"{layer}.extracted"

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

    def link_path(self, layer: Name) -> Path:
        """A short symlink to the layer's directory, without a colon, for mount options."""
        target = self.link_target(layer)
        length = _SHORT
        while True:
            path = self.own / "l" / layer.hex[:length]
            if length >= len(layer.hex) or _read_link(path) in (None, target):
                return path
            length += 4

    def link_target(self, layer: Name) -> str:
        """What a layer's short link says."""
        return f"../../{layer}.extracted"

    def make_link(self, layer: Name) -> Path:
        """Makes the short link of a layer if it is missing; raises OSError."""
        link = self.link_path(layer)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(self.link_target(layer))
        return link

    def has_layer(self, layer: Name) -> bool:
        """Whether a layer is complete: published by us, and so verified twice."""
        return self.layer_state(layer) is LayerState.COMPLETE

    def layer_state(self, layer: Name) -> LayerState:
        """What has a layer's name. A directory without our notes is not ours."""
        mode = _mode(self.layer_dir(layer))
        if mode is None:
            return LayerState.ABSENT
        if not stat.S_ISDIR(mode):
            return LayerState.OCCUPIED
        notes = _mode(self.notes_path(layer))
        return LayerState.COMPLETE if notes is not None and stat.S_ISREG(notes) else LayerState.FOREIGN

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


def _read_link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
