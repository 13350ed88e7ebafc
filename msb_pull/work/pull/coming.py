"""What the images of one command still have to fetch, and what of it they ask for before they have their configs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError
from msb_pull.ground.running import SMALL
from msb_pull.store.index.keys import layers_noted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor, Manifest
    from msb_pull.source.registry.early import Expect
    from msb_pull.store.store import Store

# Connections that an image begins with: for its documents, and for its first layer.
_FIRST = 2


class Coming:
    """The layers that are still to be fetched and their compressed sizes; any thread may call anything."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sizes: dict[Digest, int] = {}

    def add(self, digest: Digest, size: int) -> None:
        """One more is to be fetched."""
        with self._guard:
            self._sizes[digest] = size

    def done(self, digest: Digest) -> None:
        """One of them is fetched, or failed."""
        with self._guard:
            self._sizes.pop(digest, None)

    def leader(self) -> Digest | None:
        """The layer that is larger than all others together, if one is: it is waited for alone in the end."""
        with self._guard:
            if not self._sizes:
                return None
            largest = max(self._sizes, key=self._sizes.__getitem__)
            return largest if 2 * self._sizes[largest] > sum(self._sizes.values()) else None

    def fewer_than(self, processors: int) -> bool:
        """Whether there are so few that a processor is free for more than inflating and writing one of them each."""
        with self._guard:
            return len(self._sizes) < processors


class Allowance:
    """How many connections the images of one command may open early; any thread may take some.

    There are as many as layers are fetched at once later: a server that allows no more gets no more.
    """

    def __init__(self, job: Job) -> None:
        self._guard = threading.Lock()
        self._all = job.at_once
        self._large = job.large_at_once

    def enter(self) -> bool:
        """Takes one for the documents of an image, and one for its first layer; False where they are not left."""
        with self._guard:
            if self._all < _FIRST:
                return False
            self._all -= _FIRST
            return True

    def take(self, layers: Iterable[Descriptor]) -> list[Descriptor]:
        """The first layers, of an image that has entered, that there is still a connection for.

        They keep it: later ones find the pool busy.
        """
        taken: list[Descriptor] = []
        with self._guard:
            for layer in layers:
                large = layer.size >= SMALL
                if (self._all or not taken) and (self._large or not large):
                    self._all -= bool(taken)
                    self._large -= large
                    taken.append(layer)
        return taken


def expected(store: Store, allowance: Allowance, *, force: bool, need_xattrs: bool) -> Expect | None:
    """What tells, of a manifest, which layers are likely to be fetched first, and whether all will be.

    Only the config tells which of them another layer of the store can stand in for. ``force``: none is to.
    ``need_xattrs``: see :meth:`msb_pull.store.store.Store.check_file_system`. None where no connection is left.
    """
    if not allowance.enter():
        return None

    def choose(manifest: Manifest) -> tuple[list[Descriptor], bool]:
        try:
            missing, certain = _missing(manifest, store, force=force)
            store.check_space(sum(layer.size for layer in missing))
            store.check_file_system(need_xattrs=need_xattrs)
        except (OSError, LocalError):
            # Whoever needs what cannot be read, or has no place for it, says so.
            return [], False
        return allowance.take(missing), certain

    return choose


def _missing(manifest: Manifest, store: Store, *, force: bool) -> tuple[list[Descriptor], bool]:
    layers = {layer.digest: layer for layer in manifest.layers}
    noted = set() if force else {key.digest for key in layers_noted(store.own / "records")}
    # What arrived in part is resumed, and what has other addresses may not be at the registry.
    missing = [
        layer
        for digest, layer in layers.items()
        if digest not in noted and not layer.urls and not store.partial_path(digest).exists()
    ]
    # Any other layer of the store may have the content of one that is missing, and who is unpacking there may bring it.
    certain = layers.keys() >= noted and not any(store.places.folder.glob("*/tree"))
    return sorted(missing, key=lambda layer: -layer.size), certain
