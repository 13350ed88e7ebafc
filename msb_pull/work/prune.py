"""Give space back: remove what no image reaches, images that are not wanted, and what interruptions left."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.errors import local_error
from msb_pull.ground.remove import disk_usage
from msb_pull.image.digest import InvalidDigest
from msb_pull.store.homes import Elsewhere
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.paths import LayerState
from msb_pull.work.select import stored_images

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store
    from msb_pull.work.select import Selection

_PARTIAL_AGE = 7 * 86400


@dataclass(frozen=True, slots=True)
class Removal:
    """A layer or a file to remove; ``size`` is the bytes on the disk that it gives back."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What would be removed: images by reference, layers by name, files of ours that belong to nothing.

    ``leftovers`` counts what interrupted runs left in staging, and dangling short links; ``leftover_size`` in bytes.
    ``versions`` says which version of each image was meant: one that was pulled again meanwhile stays. ``remarks`` say
    what stays: for the sake of a home that cannot be looked into, or since it is no directory.
    """

    images: tuple[str, ...]
    layers: tuple[Removal, ...]
    partials: tuple[Removal, ...]
    records: tuple[Removal, ...]
    leftovers: int
    leftover_size: int = 0
    versions: frozenset[tuple[str, str, str]] = frozenset()
    remarks: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes given back."""
        listed = sum(item.size for items in (self.layers, self.partials, self.records) for item in items)
        return listed + self.leftover_size

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.images or self.layers or self.partials or self.records or self.leftovers)


def plan_prune(store: Store, selection: Selection | None, *, now: float | None = None) -> PrunePlan:
    """Looks, and changes nothing. With ``selection`` the images it takes are to go too.

    Left alone: images that another program has recorded too, every layer that a remaining row or an image of another
    home reaches, and every directory that neither a record of ours nor an image that goes knows. ``now`` is seconds
    since 1970. Raises LocalError where layers would go and it cannot be known what another home needs.
    """
    with store.database(create=False) as database:
        stored = database.images()
        reached = database.layer_digests() - _layer_names(stored)
    doomed = _doomed(stored, selection, store) if selection is not None else []
    names = {image.reference for image in doomed}
    kept = reached | _layer_names(image for image in stored if image.reference not in names)
    known = _layer_names(doomed) - kept
    there = [(key, str(key)) for key in store.layers_there()]
    going = [key for key, name in there if name in known or (name not in kept and _is_ours(store, key))]
    remarks: tuple[str, ...] = ()
    # Without a layer to remove, other homes need not be readable.
    if going or doomed:
        elsewhere = _elsewhere(store)
        kept |= elsewhere.layers
        remarks = elsewhere.remarks(set(map(str, going)))
    layers = [Removal(str(key), store.disk_usage(key)) for key in going if str(key) not in kept]
    views = _shown_by_podman(store, names, (layer.name for layer in layers))
    leftovers = store.places.leftovers()
    return PrunePlan(
        images=tuple(sorted(names)),
        layers=tuple(layers),
        partials=tuple(_old_partials(store, time.time() if now is None else now)),
        records=tuple(_stray_records(store, kept)),
        leftovers=len(leftovers) + len(_dead_links(store)),
        leftover_size=sum(_size(path) for path in leftovers),
        versions=frozenset(_version(image) for image in doomed),
        remarks=(*remarks, *views),
    )


def apply_prune(store: Store, plan: PrunePlan, job: Job, *, wait: bool = True, now: float | None = None) -> PrunePlan:
    """Removes what was planned and may still go; returns what was removed.

    Holds the whole store meanwhile, so that no pull is under way. Raises LocalError when it is in use and ``wait`` is
    False, Cancelled between two removals.
    """
    with store.lock_exclusive(job.tell_waiting, job.cancel, wait=wait):
        elsewhere = _elsewhere(store).layers if plan.layers or plan.images else set()
        images = _forget(store, plan)
        with store.database(create=False) as database:
            reached = database.layer_digests() | elsewhere
        planned = [layer for layer in plan.layers if layer.name not in reached]
        # Another prune or rm may have been faster; what it took was not freed here.
        gone = (LayerState.ABSENT, LayerState.OCCUPIED)
        layers = [layer for layer in planned if store.layer_state(LayerKey.parse(layer.name)) not in gone]
        _hide_from_podman(store, images, (layer.name for layer in layers), job)
        for layer in layers:
            job.cancel.check()
            remove_layer(store, LayerKey.parse(layer.name))
        if layers and store.database_path.exists():
            with store.database(create=True) as database:
                database.forget_layers(layer.name.partition("+")[0] for layer in layers)
        still = {*_old_partials(store, time.time() if now is None else now), *_stray_records(store, reached)}
        partials = [item for item in plan.partials if item in still]
        records = [item for item in plan.records if item in still]
        try:
            for item in (*partials, *records):
                path = store.own / item.name
                if path.is_dir() and not path.is_symlink():
                    store.trash(path)
                else:
                    path.unlink(missing_ok=True)
            leftovers = store.sweep()
            for link in _dead_links(store):
                link.unlink(missing_ok=True)
                leftovers += 1
        except OSError as error:
            raise local_error(error, store.layers) from error
    return PrunePlan(images, tuple(layers), tuple(partials), tuple(records), leftovers, plan.leftover_size)


def remove_images(store: Store, references: Sequence[str], job: Job) -> PrunePlan:
    """Forgets images (canonical references) and removes the layers that nothing else reaches; returns what went.

    Raises NotFoundError before anything is removed when one is unknown, LocalError when it cannot be known what another
    home needs, Cancelled.
    """
    with store.lock_exclusive(job.tell_waiting, job.cancel):
        mine = {layer.key for image in stored_images(store, references) for layer in image.layers}
        elsewhere = _elsewhere(store).layers
        for text in _shown_by_podman(store, references, ()):
            job.warn("", text)
        job.cancel.check()
        _hide_from_podman(store, references, (), job)
        with store.database(create=True) as database:
            database.remove(references)
            reached = database.layer_digests() | elsewhere
        unreached = sorted(key for key in mine if str(key) not in reached)
        _hide_from_podman(store, (), map(str, unreached), job)
        images, layers, remarks = tuple(dict.fromkeys(references)), [], []
        gone = f"{images[0]} is removed" if len(images) == 1 else f"{len(images)} images are removed"
        for key in unreached:
            state = store.layer_state(key)
            if state is LayerState.ABSENT:
                continue
            job.cancel.check(f"{gone}; `msb-pull prune` removes the layers that are left")
            if state is LayerState.OCCUPIED:
                remarks.append(f"{store.layer_dir(key)}: not a directory but a symlink or a file; it was left as it is")
            else:
                layers.append(Removal(str(key), store.disk_usage(key)))
            remove_layer(store, key)
    return PrunePlan(images, tuple(layers), (), (), 0, remarks=tuple(remarks))


def _elsewhere(store: Store) -> Elsewhere:
    """What other homes need; raises LocalError where that, or all that this one needs, cannot be known."""
    with store.database(create=False) as database:
        for error in database.unread_copies():
            raise error
    return Elsewhere(store.homes)


def _shown_by_podman(store: Store, images: Iterable[str], layers: Iterable[str]) -> list[str]:
    """What to say of images that podman shows, and will no longer."""
    if not (store.own / "podman").is_dir():
        return []
    from msb_pull.store.podman.views import Leaving, remarks

    return remarks(store, Leaving(frozenset(images), frozenset(layers)))


def _hide_from_podman(store: Store, images: Iterable[str], layers: Iterable[str], job: Job) -> None:
    """Before anything goes podman must not see it any more; raises LocalError."""
    if (store.own / "podman").is_dir():
        from msb_pull.store.podman.views import Leaving, hide

        hide(store, Leaving(frozenset(images), frozenset(layers)), job)


def remove_layer(store: Store, key: LayerKey) -> None:
    """Removes a layer: notes, directory, short link and record; raises LocalError.

    Without its notes it counts as missing, so that what an interruption leaves is not taken for complete; while
    there is a record, the next prune recognizes it as ours.
    """
    try:
        link = store.link_path(key)
        store.notes_path(key).unlink(missing_ok=True)
        if store.layer_state(key) not in (LayerState.ABSENT, LayerState.OCCUPIED):
            store.trash(store.layer_dir(key))
        link.unlink(missing_ok=True)
        store.record_path(key).unlink(missing_ok=True)
        if store.kept_path(key).is_dir():
            store.trash(store.kept_path(key))
    except OSError as error:
        raise local_error(error, store.layers) from error


def _forget(store: Store, plan: PrunePlan) -> tuple[str, ...]:
    """Removes the rows of the planned images that were not pulled again meanwhile."""
    if not plan.images:
        return ()
    with store.database(create=True) as database:
        there = [database.find(reference) for reference in plan.images]
        gone = tuple(
            image.reference for image in there if image and not image.shared and _version(image) in plan.versions
        )
        database.remove(gone)
    return gone


def _doomed(stored: Sequence[StoredImage], selection: Selection, store: Store) -> list[StoredImage]:
    """The images that are to go: only ours, which no other program has recorded too."""
    return [x for x in stored if x.digest is not None and not x.shared and selection.takes(x, store)]


def _layer_names(images: Iterable[StoredImage]) -> set[str]:
    return {str(layer.key) for image in images for layer in image.layers}


def _version(image: StoredImage) -> tuple[str, str, str]:
    return image.reference, str(image.digest), image.pulled_at.isoformat()


def _is_ours(store: Store, key: LayerKey) -> bool:
    """Whether msb-pull made a directory, even if an interruption left it without notes."""
    return store.notes_path(key).is_file() or store.record_path(key).is_file()


def _old_partials(store: Store, now: float) -> list[Removal]:
    """Downloads that have not continued for a week."""
    return [
        Removal(f"partial/{entry.name}", _size(entry.path))
        for entry in _scan(store.own / "partial")
        if now - entry.stat(follow_symlinks=False).st_mtime > _PARTIAL_AGE
    ]


def _stray_records(store: Store, kept: set[str]) -> list[Removal]:
    """Records and notes of layers whose directories are gone, and what is left of files that were being written."""
    found = []
    for entry in _scan(store.own / "records"):
        try:
            key = LayerKey.parse(entry.name.rpartition(".")[0])
        except InvalidDigest:
            continue
        if str(key) not in kept and store.layer_state(key) is LayerState.ABSENT:
            found.append(Removal(f"records/{entry.name}", _size(entry.path)))
    return found


def _dead_links(store: Store) -> list[Path]:
    links = (entry for entry in _scan(store.own / "l") if entry.is_symlink())
    return [Path(link.path) for link in links if not os.path.exists(link.path)]  # noqa: PTH110


def _size(path: str | Path) -> int:
    try:
        return disk_usage(path)
    except FileNotFoundError:
        return 0


def _scan(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return ()
