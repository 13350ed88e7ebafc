"""Verify: proves that what lies on disk is still what the registry signed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull import events
from msb_pull.errors import MsbPullError, NotFoundError
from msb_pull.proof import LayerCheck, LayerReport, Verdict, run_checks

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Iterable, Sequence

    from msb_pull.events import Observer
    from msb_pull.store.database import StoredImage, StoredLayer
    from msb_pull.store.keys import LayerKey
    from msb_pull.store.store import Store

__all__ = ["LayerReport", "Verdict", "VerifyReport", "stored_images", "verify_images", "verify_layers"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was verified; ``repaired`` lists layers that were fetched again, ``failures`` why others could not be."""

    images: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    repaired: tuple[str, ...]
    seconds: float
    failures: tuple[MsbPullError, ...] = ()

    @property
    def damaged(self) -> list[LayerReport]:
        """The layers with damage that is still there."""
        return [x for x in self.layers if x.verdict is Verdict.DAMAGED and x.digest not in self.repaired]

    @property
    def unprovable(self) -> list[LayerReport]:
        """The layers that nobody can vouch for."""
        return [x for x in self.layers if x.verdict is Verdict.UNPROVABLE]

    @property
    def unreadable(self) -> list[LayerReport]:
        """The layers that this user may not read, at least in part."""
        return [x for x in self.layers if x.verdict is Verdict.UNREADABLE]


def verify_images(
    store: Store,
    references: Sequence[str],
    *,
    quick: bool = False,
    jobs: int = 2,
    observer: Observer,
    cancel: threading.Event,
) -> VerifyReport:
    """Verifies the layers of the named images (canonical references), of all images when none is named.

    A layer that several images share is verified once, ``jobs`` layers at a time. Writes nothing. Raises NotFoundError
    for an unknown image, LocalError, Cancelled.
    """
    return verify_layers(store, references, None, quick=quick, jobs=jobs, observer=observer, cancel=cancel)


def verify_layers(
    store: Store,
    references: Sequence[str],
    only: Collection[str] | None,
    *,
    quick: bool = False,
    jobs: int = 2,
    observer: Observer,
    cancel: threading.Event,
) -> VerifyReport:
    """As :func:`verify_images`, but only those layers of the images that ``only`` names (None for all)."""
    started = time.monotonic()
    with store.lock_shared(lambda holder: observer(events.StoreWaiting("", holder)), cancel):
        # Not before: what is removed while this waits for the lock is no damage.
        images = stored_images(store, references)
        wanted = [x for x in _distinct(images) if only is None or str(x[0].key) in only]
        ours = {layer.key for image in images if image.digest is not None for layer in image.layers}
        checks = [
            LayerCheck(store, layer, names, layer.key in ours, quick, observer, cancel) for layer, names in wanted
        ]
        reports = run_checks(checks, jobs)
    return VerifyReport(tuple(image.reference for image in images), tuple(reports), (), time.monotonic() - started)


def stored_images(store: Store, references: Sequence[str]) -> list[StoredImage]:
    """The named images as recorded, all of them when none is named; raises NotFoundError."""
    with store.database(create=False) as database:
        if not references:
            return database.images()
        images = []
        for reference in references:
            image = database.find(reference)
            if image is None:
                raise NotFoundError(f"{reference}: not in the store", hint="`msb-pull ls` shows what is")
            images.append(image)
        return images


def _distinct(images: Iterable[StoredImage]) -> list[tuple[StoredLayer, tuple[str, ...]]]:
    layers: dict[LayerKey, StoredLayer] = {}
    names: dict[LayerKey, list[str]] = {}
    for image in images:
        for layer in image.layers:
            layers.setdefault(layer.key, layer)
            users = names.setdefault(layer.key, [])
            if image.reference not in users:
                users.append(image.reference)
    return [(layer, tuple(names[key])) for key, layer in layers.items()]
