"""What a view is to show of a stored image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.ground.errors import NotFoundError
from msb_pull.image.digest import Digest
from msb_pull.layer.notes import Notes
from msb_pull.store.podman.shown import ShownImage, ShownLayer
from msb_pull.work.podman.readable import check_readable

if TYPE_CHECKING:
    from msb_pull.store.index.stored import StoredImage, StoredLayer
    from msb_pull.store.store import Store


def shown_image(store: Store, image: StoredImage) -> ShownImage:
    """What to show of a stored image.

    Raises NotFoundError where a layer is not complete, or the image has no documents; ContentError where podman cannot
    read them.
    """
    if image.manifest_bytes is None or image.config_bytes is None or image.digest is None:
        raise NotFoundError(
            f"{image.reference}: only Microsandbox has recorded it, and without its manifest",
            hint=f"`msb-pull pull --force {image.reference}` records it",
        )
    created = check_readable(image.reference, image.manifest_bytes, image.config_bytes)
    return ShownImage(
        image.reference,
        image.digest,
        Digest.of(image.config_bytes),
        len(image.manifest_bytes),
        len(image.config_bytes),
        created,
        tuple(_shown_layer(store, image.reference, layer) for layer in image.layers),
    )


def _shown_layer(store: Store, reference: str, layer: StoredLayer) -> ShownLayer:
    if not store.has_layer(layer.key):
        raise NotFoundError(
            f"{reference}: layer {layer.digest.short} is not complete",
            hint=f"`msb-pull pull --force {reference}` fetches it",
        )
    notes = Notes.load(store.notes_path(layer.key))
    return ShownLayer(layer.key, layer.diff_id, notes.tar_bytes, layer.size, layer.media_type)
