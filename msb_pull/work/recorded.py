"""The layers of an image as their records and notes have them, for whoever recreates something from the store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from msb_pull.ground import events
from msb_pull.ground.errors import NotFoundError
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import expected_tree
from msb_pull.layer.tar.record import Record

if TYPE_CHECKING:
    from msb_pull.ground.running import Job
    from msb_pull.layer.proof.node import Node
    from msb_pull.store.index.stored import StoredLayer
    from msb_pull.store.store import Store


def recorded_layer(
    store: Store, layer: StoredLayer, job: Job, *, whole_links: bool = False
) -> tuple[Record, dict[bytes, Node]]:
    """The record of a layer, which has been read, and what it says must stand in its directory.

    With ``whole_links`` names that the image links share one node, also where the file system took copies. Waits
    while another process swaps the layer. Raises NotFoundError where it is not complete, ContentError.
    """
    if store.has_layer(layer.key):
        with contextlib.suppress(FileNotFoundError):
            return _load(store, layer, whole_links)
    # While it is swapped for a new one it counts as missing.

    def waits(holder: str) -> None:
        job.tell(events.LayerWaiting("", str(layer.digest), holder))

    with store.lock_layer(layer.digest, waits, job.cancel):
        if store.has_layer(layer.key):
            return _load(store, layer, whole_links)
    raise NotFoundError(
        f"layer {layer.digest.short} is not in the store, or has no record to recreate it from",
        hint="`msb-pull verify --repair` or `msb-pull pull --force` fetches it",
    )


def _load(store: Store, layer: StoredLayer, whole_links: bool) -> tuple[Record, dict[bytes, Node]]:
    record, notes = Record(store.record_path(layer.key)), Notes.load(store.notes_path(layer.key))
    if whole_links:
        notes.copied = []
    return record, expected_tree(record, notes)
