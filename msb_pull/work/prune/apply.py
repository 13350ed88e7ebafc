"""Removes what was planned and may still go, while nothing else is at work on the store."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import local_error
from msb_pull.ground.events import Removing
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.locks import Busy
from msb_pull.store.paths import LayerState
from msb_pull.work.prune.plan import (
    PrunePlan,
    dead_links,
    elsewhere,
    old_partials,
    plan_to_fit,
    refuse_lost,
    stray_records,
    version,
)
from msb_pull.work.prune.podman import hide_from_podman
from msb_pull.work.prune.usage import measure, remember, remembered
from msb_pull.work.select import lost_images

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from msb_pull.ground.running import Job
    from msb_pull.store.store import Store
    from msb_pull.work.prune.budget import Fit
    from msb_pull.work.prune.plan import Removal
    from msb_pull.work.prune.usage import Usage


# Images that are forgotten at a time: each takes a descriptor meanwhile.
_BATCH = 64


def apply_prune(store: Store, plan: PrunePlan, job: Job, *, wait: bool = True, now: float | None = None) -> PrunePlan:
    """Removes what was planned and may still go; returns what was removed.

    Holds the whole store meanwhile, so that no pull is under way. Raises LocalError when it is in use and ``wait`` is
    False, ContentError where the database has been lost, Cancelled between two removals.
    """
    with store.lock_exclusive(job.tell_waiting, job.cancel, wait=wait):
        still = {x.name for x in old_partials(store, now)}
        plan = replace(plan, partials=tuple(x for x in plan.partials if x.name in still))
        return _remove(store, plan, job)


def prune_to_fit(store: Store, fit: Fit, job: Job, *, wait: bool = True) -> PrunePlan:
    """Removes what has to go so that the store fits; returns what was removed, with what is left.

    It is planned while the store is held, so that no other pull makes it grow again before. Raises what
    :func:`apply_prune` does.
    """
    with store.lock_exclusive(job.tell_waiting, job.cancel, wait=wait):
        return _fit(store, fit, job, measure(store))


def prune_after_pull(store: Store, fit: Fit, job: Job) -> PrunePlan | None:
    """The same where that is needed, without waiting and without walking through what was measured before.

    None where the store fits, or where another command is at work on it: the last one of several pulls makes it fit.
    """
    usage = measure(store, remembered(store))
    remember(store, usage)
    if not fit.budget.excess(store, usage.total):
        return None
    try:
        with store.lock_exclusive(job.tell_waiting, job.cancel, wait=False):
            removed = _fit(store, fit, job, measure(store, remembered(store)))
    except Busy as error:
        job.log("", f"the store takes more than it may, but {error.message}: its last pull makes it fit")
        return None
    # Nobody was asked, so nobody has heard of it before.
    for remark in removed.remarks:
        job.warn("", remark)
    return removed


def _fit(store: Store, fit: Fit, job: Job, usage: Usage) -> PrunePlan:
    done = PrunePlan((), (), (), (), 0)
    remarks: list[str] = []
    while True:
        plan = plan_to_fit(store, fit, usage=usage)
        removed = _remove(store, plan, job)
        done = _joined(done, removed)
        # Somebody has begun to use these since they were chosen.
        used = set(plan.images).difference(removed.images)
        remarks.extend(plan.remarks)
        if not used:
            return replace(done, left=plan.left, over=plan.over, remarks=tuple(dict.fromkeys(remarks)))
        fit, usage = fit.without(used), measure(store, _sizes(usage))


def _sizes(usage: Usage) -> dict[str, tuple[tuple[int, int], int]]:
    return {name: (stamp, usage.layers[name]) for name, stamp in usage.stamps.items()}


def _joined(one: PrunePlan, other: PrunePlan) -> PrunePlan:
    return PrunePlan(
        tuple(sorted({*one.images, *other.images})),
        one.layers + other.layers,
        one.partials + other.partials,
        one.records + other.records,
        one.leftovers + other.leftovers,
        one.leftover_size + other.leftover_size,
    )


def _remove(store: Store, plan: PrunePlan, job: Job) -> PrunePlan:
    """Removes what may go of a plan, for a caller that holds the store alone."""
    if plan.layers and not plan.everything:
        refuse_lost(lost_images(store))
    others = elsewhere(store).layers if plan.layers or plan.images else set()
    images = _forget(store, plan, job)
    with store.database(create=False) as database:
        reached = database.layer_digests() | others
    layers = _still_there(store, (x for x in plan.layers if x.name not in reached))
    hide_from_podman(store, images, (layer.name for layer in layers), job)
    _remove_layers(store, layers, job)
    still = set(stray_records(store, reached))
    records = tuple(item for item in plan.records if item in still)
    leftovers = _remove_files(store, (*plan.partials, *records))
    return PrunePlan(images, layers, plan.partials, records, leftovers, plan.leftover_size)


def _forget(store: Store, plan: PrunePlan, job: Job) -> tuple[str, ...]:
    """Removes the rows of the planned images that were not pulled again meanwhile, and that nobody uses."""
    gone: list[str] = []
    for start in range(0, len(plan.images), _BATCH):
        with store.database(create=True) as database, contextlib.ExitStack() as alone:
            batch = []
            none_has_all = alone.enter_context(store.uses.alone(None, job))
            for reference in plan.images[start : start + _BATCH]:
                free = alone.enter_context(store.uses.alone(reference, job))
                image = database.find(reference) if free and none_has_all else None
                if image is not None and not image.shared and version(image) in plan.versions:
                    batch.append(reference)
            database.remove(batch)
            gone += batch
    return tuple(gone)


def _still_there(store: Store, planned: Iterable[Removal]) -> tuple[Removal, ...]:
    """Another prune or rm may have been faster; what it took was not freed here."""
    gone = (LayerState.ABSENT, LayerState.OCCUPIED)
    return tuple(layer for layer in planned if store.layer_state(LayerKey.parse(layer.name)) not in gone)


def _remove_layers(store: Store, layers: Collection[Removal], job: Job) -> None:
    for number, layer in enumerate(layers, 1):
        job.cancel.check()
        job.tell(Removing("", layer.name, number, len(layers)))
        remove_layer(store, LayerKey.parse(layer.name))
    if layers and store.database_path.exists():
        with store.database(create=True) as database:
            database.forget_layers(layer.name.partition("+")[0] for layer in layers)


def _remove_files(store: Store, files: Iterable[Removal]) -> int:
    """Removes files of ours, leftovers of interrupted runs and dead links; returns how many of the latter two."""
    try:
        for item in files:
            path = store.own / item.name
            if path.is_dir() and not path.is_symlink():
                store.trash(path)
            else:
                path.unlink(missing_ok=True)
        leftovers = store.sweep()
        for link in dead_links(store):
            link.unlink(missing_ok=True)
            leftovers += 1
        store.sweep_locks()
    except OSError as error:
        raise local_error(error, store.layers) from error
    return leftovers


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
