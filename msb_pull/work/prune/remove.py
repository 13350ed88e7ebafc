"""``rm``: forgets images, and removes the layers that nothing else reaches."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from msb_pull.ground.events import Removing
from msb_pull.store.paths import LayerState
from msb_pull.work.prune.apply import remove_layer
from msb_pull.work.prune.plan import PrunePlan, Removal, elsewhere
from msb_pull.work.prune.podman import hide_from_podman, shown_by_podman
from msb_pull.work.select import stored_images

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.store.index.keys import LayerKey
    from msb_pull.store.store import Store


def remove_images(store: Store, references: Sequence[str], job: Job) -> PrunePlan:
    """Forgets images (canonical references) and removes the layers that nothing else reaches; returns what went.

    Raises NotFoundError before anything is removed when one is unknown, LocalError when it cannot be known what another
    home needs, Cancelled.
    """
    with store.lock_exclusive(job.tell_waiting, job.cancel):
        mine = {layer.key for image in stored_images(store, references) for layer in image.layers}
        others = elsewhere(store).layers
        for text in shown_by_podman(store, references, ()):
            job.warn("", text)
        job.cancel.check()
        hide_from_podman(store, references, (), job)
        with store.database(create=True) as database:
            database.remove(references)
            reached = database.layer_digests() | others
        images, layers, remarks = tuple(dict.fromkeys(references)), [], []
        gone = f"{images[0]} is removed" if len(images) == 1 else f"{len(images)} images are removed"
        going = sorted(key for key in mine if str(key) not in reached)
        hide_from_podman(store, (), map(str, going), job)
        _mark(store, going)
        for number, key in enumerate(going, 1):
            state = store.layer_state(key)
            if state is LayerState.ABSENT:
                continue
            job.cancel.check(f"{gone}; `msb-pull prune` removes the layers that are left")
            job.tell(Removing("", str(key), number, len(going)))
            if state is LayerState.OCCUPIED:
                remarks.append(f"{store.layer_dir(key)}: not a directory but a symlink or a file; it was left as it is")
            else:
                layers.append(Removal(str(key), store.disk_usage(key)))
            remove_layer(store, key)
    return PrunePlan(images, tuple(layers), (), (), 0, remarks=tuple(remarks))


def _mark(store: Store, keys: Iterable[LayerKey]) -> None:
    """Lets prune recognize the directories of Microsandbox, too, if an interruption leaves some of them.

    Where a full disk does not even take an empty file, only that is lost.
    """
    for key in keys:
        if store.layer_state(key) is LayerState.FOREIGN:
            with contextlib.suppress(OSError):
                store.record_path(key).touch(mode=0o600)
