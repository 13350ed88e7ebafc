"""What a store takes and what could go, for whoever asks: plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, LocalError
from msb_pull.work.prune.budget import file_system
from msb_pull.work.prune.plan import plan_prune
from msb_pull.work.prune.usage import measure

if TYPE_CHECKING:
    from msb_pull.store.store import Store
    from msb_pull.work.prune.budget import Budget


@dataclass(frozen=True, slots=True)
class Amount:
    """How many of something there are, and the bytes that they take on the disk."""

    count: int
    size: int


@dataclass(frozen=True, slots=True)
class DiskReport:
    """What a store takes, in bytes on the disk.

    ``images`` take what their layers do, each counted once; ``shared`` are the layers that several images have, and
    ``layers`` all there are. ``records`` are what is kept beside layers, ``partial`` unfinished downloads and layers.
    ``reclaimable`` is what goes without an image going, or None where ``trouble`` says why that is not known. ``limit``
    is what the store may take, None for any.
    """

    images: Amount
    layers: Amount
    shared: Amount
    records: Amount
    partial: Amount
    total: int
    reclaimable: int | None
    free: int
    file_system: int
    limit: int | None
    trouble: LocalError | ContentError | None = None


def report_disk(store: Store, budget: Budget) -> DiskReport:
    """Measures a store, in one walk, and changes nothing. Raises LocalError."""
    usage = measure(store)
    with store.database(create=False) as database:
        images = database.images()
    reached = Counter(name for image in images for name in {str(layer.key) for layer in image.layers})
    shared = [usage.layers[name] for name, count in reached.items() if count > 1 and name in usage.layers]
    partial = [*(x.size for x in usage.partials), *([usage.staging] if usage.staging else [])]
    trouble: LocalError | ContentError | None = None
    try:
        reclaimable = plan_prune(store, None, usage=usage).size
    except (LocalError, ContentError) as error:
        reclaimable, trouble = None, error
    size, free = file_system(store)
    return DiskReport(
        images=Amount(len(images), sum(usage.layers.get(name, 0) for name in reached)),
        layers=Amount(len(usage.layers), sum(usage.layers.values())),
        shared=Amount(len(shared), sum(shared)),
        records=Amount(len(usage.records), sum(usage.records.values())),
        partial=Amount(len(partial), sum(partial)),
        total=usage.total,
        reclaimable=reclaimable,
        free=free,
        file_system=size,
        limit=budget.limit(store, usage.total),
        trouble=trouble,
    )
