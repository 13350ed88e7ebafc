"""The layers of an image as their records and notes have them, for whoever recreates something from the store."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from msb_pull.ground import events
from msb_pull.ground.below import open_directory
from msb_pull.ground.errors import ContentError, NotFoundError
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import content_paths, expected_tree
from msb_pull.layer.proof.stream import Listener, stream
from msb_pull.layer.tar.record import Record
from msb_pull.layer.tree.kept import Kept
from msb_pull.work.claims import contradicts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msb_pull.ground.running import Job
    from msb_pull.layer.proof.node import Node
    from msb_pull.store.index.keys import LayerKey
    from msb_pull.store.index.stored import StoredLayer
    from msb_pull.store.store import Store


def recorded_layer(
    store: Store, layer: StoredLayer, job: Job, *, whole_links: bool = False
) -> tuple[Record, dict[bytes, Node]]:
    """The record of a layer, which has been read, and what it says must stand in its directory.

    With ``whole_links`` names that the image links share one node, also where the file system took copies. Waits
    while another process swaps the layer. Raises NotFoundError where it is not complete, ContentError, also where it is
    what another image says of the same blob.
    """
    if store.has_layer(layer.key):
        with contextlib.suppress(FileNotFoundError):
            return _loaded(store, layer, whole_links)
    # While it is swapped for a new one it counts as missing.

    def waits(holder: str) -> None:
        job.tell(events.LayerWaiting("", str(layer.digest), holder))

    with store.lock_layer(layer.digest, waits, job.cancel):
        if store.has_layer(layer.key):
            return _loaded(store, layer, whole_links)
    raise NotFoundError(
        f"layer {layer.digest.short} is not in the store, or has no record to recreate it from",
        hint="`msb-pull verify --repair` or `msb-pull pull --force` fetches it",
    )


def _loaded(store: Store, layer: StoredLayer, whole_links: bool) -> tuple[Record, dict[bytes, Node]]:
    if contradicts(store, layer.key, layer.diff_id):
        raise ContentError(
            f"layer {layer.digest.short} does not have the diff_id that this image says",
            hint="`msb-pull verify --repair` repairs it",
        )
    return load_layer(store, layer.key, whole_links=whole_links)


def load_layer(store: Store, key: LayerKey, *, whole_links: bool = False) -> tuple[Record, dict[bytes, Node]]:
    """The same of a layer that must be there, and without waiting; raises FileNotFoundError, ContentError."""
    record, notes = Record(store.record_path(key)), Notes.load(store.notes_path(key))
    if whole_links:
        notes.copied = []
    return record, expected_tree(record, notes)


def layer_stream(store: Store, key: LayerKey, record: Record, nodes: dict[bytes, Node]) -> Iterator[memoryview]:
    """The tar stream of a layer, made again from its record, which has been read, and its directory.

    A piece is valid until the next one is asked for. Raises ContentError for what has been damaged; that the stream has
    the right digest is for the caller to find out.
    """

    def refuse(path: bytes, expected: str, found: str) -> None:
        raise ContentError(
            f'layer {key.short}: "{visible_bytes(path)}" is damaged (expected {expected}, found {found})',
            hint="`msb-pull verify --repair` repairs it",
        )

    root = open_directory(store.layer_dir(key))
    kept = Kept(os.fspath(store.kept_path(key)))
    try:
        yield from stream(record, root, content_paths(nodes), Listener(refuse), kept=kept)
    finally:
        kept.close()
        os.close(root)
