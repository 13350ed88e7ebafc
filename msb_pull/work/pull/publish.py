"""The end of a layer's way: settled on those below it, described by its notes, and given its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.ground import events
from msb_pull.layer.notes import Notes
from msb_pull.layer.settle.settle import settle
from msb_pull.layer.tree.kept import keep_aside
from msb_pull.work.pull.placing import State

if TYPE_CHECKING:
    from msb_pull.ground.limits import Limits
    from msb_pull.ground.running import Job
    from msb_pull.source.interface import Source
    from msb_pull.store.store import Store
    from msb_pull.work.pull.bases import Bases
    from msb_pull.work.pull.placing import Placing


class Publisher:
    """Publishes the layers of one image."""

    def __init__(self, store: Store, source: Source, bases: Bases, limits: Limits, image: str, job: Job) -> None:
        self._store = store
        self._source = source
        self._bases = bases
        self._limits = limits
        self._image = image
        self._job = job

    def publish(self, placing: Placing) -> None:
        """Publishes a layer that was fetched and whose lock is held, and gives up the lock.

        A thread of the pool calls it for a layer that takes nothing from those below, which need not be there then;
        for others the main thread does. Raises ContentError, LocalError, OSError.
        """
        fetched = placing.fetched
        assert fetched is not None
        report, staging = fetched.report, fetched.staging
        lowers = self._bases.lowers(placing.position) if report.needs_lowers else ()
        settled = settle(staging.path, report, lowers, max_bytes=self._limits.max_bytes)
        placing.key = self._bases.key_for(placing, settled)
        diff_id = str(placing.wanted.diff_id)
        notes = Notes.of(report, settled.derived, diff_id=diff_id, tar_bytes=fetched.tar_bytes, chain=placing.chain)
        notes.save(staging.notes)
        short = f"layer {placing.digest.short}"
        self._job.tell(events.Logged(self._image, 1, f"{short}: unpacked under {report.jailed}"))
        kept = keep_aside(staging.path, staging.kept)
        for warning in (*report.warnings, *settled.warnings, *kept):
            self._job.warn(self._image, f"{short}: {warning}")
        self._store.publish(staging, placing.key, replace=True)
        if self._source.remote:
            self._store.partial_path(placing.digest).unlink(missing_ok=True)
        placing.state = State.PUBLISHED
        placing.unlock()
