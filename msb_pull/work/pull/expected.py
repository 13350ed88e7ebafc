"""Which layers a pull asks for before it has the config of its image.

Only those that the store cannot have: what it has, or could make a layer from, is decided by the config. And no more
than can be worked on at once, since an answer that nobody reads is soon broken off.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from msb_pull.store.index.keys import layers_noted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.ground.running import Job
    from msb_pull.image.manifest import Descriptor, Manifest
    from msb_pull.source.registry.registry import Expect
    from msb_pull.store.store import Store
    from msb_pull.work.pull.plan import PullOptions
    from msb_pull.work.pull.sharing import Together

# As the pool counts them.
_SMALL = 1 << 20


class Places:
    """How many layers the images of one command may ask for early; any thread may take some."""

    def __init__(self, job: Job) -> None:
        self._guard = threading.Lock()
        self._all = job.at_once
        self._large = job.large_at_once

    def take(self, layers: Iterable[Descriptor]) -> list[Descriptor]:
        """The first ones that there is still a place for, which they keep: later ones find the pool busy."""
        taken = []
        with self._guard:
            for layer in layers:
                large = layer.size >= _SMALL
                if self._all and (self._large or not large):
                    self._all -= 1
                    self._large -= large
                    taken.append(layer)
        return taken


def expected(store: Store, options: PullOptions, together: Together | None, job: Job) -> Expect | None:
    """What tells, of a manifest, which layers will be asked for first; None where that is not to be known early."""
    if options.dry_run or options.pins:
        return None
    places = together.places if together is not None else Places(job)

    def choose(manifest: Manifest) -> tuple[list[Descriptor], bool]:
        try:
            return _missing(manifest, store, options.force, places)
        except OSError:
            # Whoever needs what cannot be read says so.
            return [], False

    return choose


def _missing(manifest: Manifest, store: Store, force: bool, places: Places) -> tuple[list[Descriptor], bool]:
    layers = {layer.digest: layer for layer in manifest.layers}
    noted = set() if force else {key.digest for key in layers_noted(store.own / "records")}
    # What arrived in part is resumed, and what has other addresses may not be at the registry.
    missing = [
        layer
        for digest, layer in layers.items()
        if digest not in noted and not layer.urls and not store.partial_path(digest).exists()
    ]
    # Any other layer of the store may have the content of one that is missing, which then is not fetched.
    return places.take(sorted(missing, key=lambda layer: -layer.size)), layers.keys() >= noted
