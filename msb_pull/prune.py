"""Give space back: remove what no image reaches, images that are not wanted, and what interruptions left."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull import events
from msb_pull.errors import ContentError, NotFoundError, local_error
from msb_pull.image.digest import InvalidDigest
from msb_pull.layer.record import Notes
from msb_pull.store.keys import LayerKey
from msb_pull.store.store import LayerState

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from msb_pull.events import Observer
    from msb_pull.select import Selection
    from msb_pull.store.store import Store

_PARTIAL_AGE = 7 * 86400
_SUFFIX = ".extracted"


@dataclass(frozen=True, slots=True)
class Removal:
    """A layer or a file to remove; ``size`` is the bytes it gives back."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What would be removed: images by reference, layers by name, files of ours that belong to nothing."""

    images: tuple[str, ...]
    layers: tuple[Removal, ...]
    partials: tuple[Removal, ...]
    records: tuple[Removal, ...]
    leftovers: int

    @property
    def size(self) -> int:
        """Bytes given back."""
        return sum(item.size for items in (self.layers, self.partials, self.records) for item in items)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.images or self.layers or self.partials or self.records or self.leftovers)


def plan_prune(store: Store, selection: Selection | None, *, now: float | None = None) -> PrunePlan:
    """Looks, and changes nothing. With ``selection`` the images it takes are to go too.

    Left alone: images that only another program has recorded, every layer that a remaining row reaches, and every
    directory without a record of ours.
    """
    with store.database(create=False) as database:
        stored = database.images()
    doomed = {
        image.reference
        for image in stored
        if selection is not None and image.digest is not None and selection.takes(image, store)
    }
    kept = {str(layer.key) for image in stored if image.reference not in doomed for layer in image.layers}
    return _plan(store, sorted(doomed), kept, time.time() if now is None else now)


def apply_prune(
    store: Store,
    plan: PrunePlan,
    *,
    wait: bool = True,
    observer: Observer,
    cancel: threading.Event,
) -> PrunePlan:
    """Removes what was planned and still may go; returns what was removed.

    Holds the whole store meanwhile; raises LocalError when it is in use and ``wait`` is False, Cancelled.
    """
    with store.lock_exclusive(lambda holder: observer(events.StoreWaiting("", holder)), cancel, wait=wait):
        if plan.images:
            with store.database(create=True) as database:
                database.remove(plan.images)
        with store.database(create=False) as database:
            reached = database.layer_digests()
        layers = tuple(x for x in plan.layers if x.name not in reached)
        for layer in layers:
            remove_layer(store, LayerKey.parse(layer.name))
        for item in (*plan.partials, *(x for x in plan.records if _record_digest(x.name) not in reached)):
            (store.own / item.name).unlink(missing_ok=True)
        leftovers = store.sweep()
        _drop_dead_links(store)
    return PrunePlan(plan.images, layers, plan.partials, plan.records, leftovers)


def remove_images(store: Store, references: Sequence[str], *, observer: Observer, cancel: threading.Event) -> PrunePlan:
    """Forgets images (canonical references) and removes the layers that nothing else reaches; returns what went.

    Raises NotFoundError before anything is removed when one is unknown, Cancelled.
    """
    with (
        store.lock_exclusive(lambda holder: observer(events.StoreWaiting("", holder)), cancel),
        store.database(create=store.has_images) as database,
    ):
        mine: dict[str, LayerKey] = {}
        for reference in references:
            image = database.find(reference)
            if image is None:
                raise NotFoundError(f"{reference}: not in the store", hint="`msb-pull ls` shows what is")
            mine.update((str(layer.key), layer.key) for layer in image.layers)
        database.remove(references)
        reached = database.layer_digests()
        layers = []
        for name, key in mine.items():
            if name not in reached and store.layer_state(key) is not LayerState.ABSENT:
                layers.append(Removal(name, _layer_size(store, key)))
                remove_layer(store, key)
    return PrunePlan(tuple(references), tuple(layers), (), (), 0)


def remove_layer(store: Store, key: LayerKey) -> None:
    """Takes a layer away: its directory at once out of sight, then its record, notes and short link."""
    try:
        link = store.link_path(key)
        if store.layer_state(key) in (LayerState.COMPLETE, LayerState.FOREIGN):
            store.trash(store.layer_dir(key))
        link.unlink(missing_ok=True)
        store.notes_path(key).unlink(missing_ok=True)
        store.record_path(key).unlink(missing_ok=True)
    except OSError as error:
        raise local_error(error, store.layers) from error


def _plan(store: Store, images: Sequence[str], kept: set[str], now: float) -> PrunePlan:
    layers = []
    for key in _layers_there(store):
        if str(key) not in kept and store.layer_state(key) is LayerState.COMPLETE:
            layers.append(Removal(str(key), _layer_size(store, key)))
    gone = {layer.name for layer in layers}
    partials = [
        Removal(f"partial/{entry.name}", entry.stat(follow_symlinks=False).st_size)
        for entry in _scan(store.own / "partial")
        if now - entry.stat(follow_symlinks=False).st_mtime > _PARTIAL_AGE
    ]
    records = [
        Removal(f"records/{entry.name}", entry.stat(follow_symlinks=False).st_size)
        for entry in _scan(store.own / "records")
        if (name := _record_digest(entry.name)) is not None
        and name not in kept | gone
        and not (store.layers / f"{name}{_SUFFIX}").exists()
    ]
    leftovers = len({entry.name.removesuffix(".lock") for entry in _scan(store.own / "staging")})
    return PrunePlan(tuple(images), tuple(layers), tuple(partials), tuple(records), leftovers)


def _layers_there(store: Store) -> list[LayerKey]:
    found = []
    for entry in _scan(store.layers):
        if entry.name.endswith(_SUFFIX):
            try:
                found.append(LayerKey.parse(entry.name.removesuffix(_SUFFIX)))
            except InvalidDigest:
                continue
    return sorted(found)


def _record_digest(name: str) -> str | None:
    stem = name.removeprefix("records/").rpartition(".")[0]
    try:
        return str(LayerKey.parse(stem))
    except InvalidDigest:
        return None


def _layer_size(store: Store, key: LayerKey) -> int:
    try:
        return Notes.load(store.notes_path(key)).content_bytes
    except (ContentError, OSError):
        return 0


def _drop_dead_links(store: Store) -> None:
    for entry in _scan(store.own / "l"):
        if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
            os.unlink(entry.path)  # noqa: PTH108


def _scan(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return ()
