"""What images say of the content of one blob, and what lies there of it: at most one of them can be right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.layer.noted import noted_diff_id
from msb_pull.store.index.keys import LayerKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.image.digest import Digest
    from msb_pull.store.index.stored import StoredLayer
    from msb_pull.store.store import Store


def contradicts(store: Store, key: LayerKey, diff_id: Digest) -> bool:
    """Whether a layer that is there has another content than an image says; notes that are damaged say nothing."""
    noted = noted_diff_id(store.notes_path(key))
    return noted is not None and noted != str(diff_id)


def check_claims(store: Store, name: str, layers: Iterable[tuple[LayerKey, Digest]]) -> None:
    """Raises ContentError where a layer that an image has is not what the image says of it.

    Where it was made from another one, somebody else may have downloaded its blob since.
    """
    for key, diff_id in layers:
        if contradicts(store, key, diff_id):
            raise untrue(name, key)


def untrue(name: str, key: LayerKey) -> ContentError:
    """The error of an image that says of a blob what is not so."""
    return ContentError(
        f"{name}: layer {key.short} has another content than this image says",
        cause="another image says otherwise, and that is what lies there",
        hint=f"do not trust it; `msb-pull rm {name}` removes it if it is here",
    )


class Claims:
    """What several images say of their layers."""

    def __init__(self, store: Store, images: Iterable[Iterable[StoredLayer]]) -> None:
        self._store = store
        self._said: dict[Digest, set[str]] = {}
        for layers in images:
            for layer in layers:
                self._said.setdefault(layer.digest, set()).add(str(layer.diff_id))

    def refuting(self, layer: StoredLayer) -> str | None:
        """The ``diff_id`` of what is there for a layer, where another image says just that, and its own does not."""
        said, own = self._said.get(layer.digest, set()), str(layer.diff_id)
        if not said - {own}:
            return None
        # What has the plain name was downloaded, and so knows better.
        for key in (LayerKey(layer.digest), layer.key):
            noted = noted_diff_id(self._store.notes_path(key))
            if noted in said:
                return noted if noted != own else None
        return None
