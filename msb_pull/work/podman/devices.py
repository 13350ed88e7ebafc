"""Devices and FIFOs of layers, which lie there as empty files, for readers that need the type as a word.

containers-storage and fuse-overlayfs (1.15) take the type of a file from a fourth field of override_stat alone. Other
readers take it from the mode, and pass over what follows the third field.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from msb_pull.ground.below import Trail, open_directory, open_file
from msb_pull.ground.errors import local_error
from msb_pull.layer.attributes import OVERRIDE_STAT, get_attribute, set_attribute, typed_override
from msb_pull.layer.tar.entry import BLK, CHR, FIFO
from msb_pull.layer.tar.record import Record
from msb_pull.work.recorded import recorded_layer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.ground.running import Job
    from msb_pull.store.index.stored import StoredLayer
    from msb_pull.store.store import Store

_SPECIAL = frozenset((CHR, BLK, FIFO))


def show_devices(store: Store, layers: Iterable[StoredLayer], job: Job) -> None:
    """Adds the fourth field to the devices and FIFOs of layers, which few have; raises ContentError, LocalError."""
    for layer in {layer.key: layer for layer in layers}.values():
        job.cancel.check()
        if any(entry.type in _SPECIAL for entry in Record(store.record_path(layer.key)).entries()):
            try:
                _show(store, layer, job)
            except OSError as error:
                raise local_error(error, store.layer_dir(layer.key)) from error


def _show(store: Store, layer: StoredLayer, job: Job) -> None:
    _, nodes = recorded_layer(store, layer, job)
    root = open_directory(store.layer_dir(layer.key))
    trail = Trail(root)
    try:
        for path, node in nodes.items():
            value = typed_override(node.override, node.device)
            if value is None:
                continue
            parent, _, name = path.rpartition(b"/")
            # What is damaged is for verify to say.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                file = open_file(name, trail.reach(parent))
                try:
                    if get_attribute(file, OVERRIDE_STAT) == node.override:
                        set_attribute(file, OVERRIDE_STAT, value)
                finally:
                    os.close(file)
    finally:
        trail.close()
        os.close(root)
