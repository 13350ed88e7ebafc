"""Moves one resolved image into the store: fetches what is missing, settles and publishes bottom first, records."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import wait
from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled
from msb_pull.ground.pools import StoppingPool
from msb_pull.ground.running import Cancel
from msb_pull.layer.child import Child
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.index.rows import ImageRecord
from msb_pull.work.claims import check_claims
from msb_pull.work.pull.bases import Bases, Publisher
from msb_pull.work.pull.fetch import LayerFetcher
from msb_pull.work.pull.placing import Placing, State
from msb_pull.work.pull.plan import LayerOutcome, PullOptions, PullResult
from msb_pull.work.pull.sharing import Together
from msb_pull.work.pull.twins import Twins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.ground.running import Job
    from msb_pull.source.interface import ResolvedImage, Source
    from msb_pull.store.store import Store
    from msb_pull.work.pull.receiving import Arrived

# How long an error of one layer may go unheard while another one is waited for, in seconds.
_SLICE = 0.1


class Transfer:
    """The work on one resolved image; every method is called by the main thread, but for :meth:`_fetch`.

    ``keys`` name its layers, position by position, where that is settled already; ``together`` is shared with others;
    ``arrived`` hears of each blob.
    """

    def __init__(
        self,
        resolved: ResolvedImage,
        source: Source,
        store: Store,
        options: PullOptions,
        job: Job,
        keys: Sequence[LayerKey] = (),
        together: Together | None = None,
        arrived: Arrived | None = None,
    ) -> None:
        self._resolved = resolved
        self._source = source
        self._store = store
        self._options = options
        self._keys = keys
        self._together = together
        self._arrived = arrived
        self._cancel = job.cancel
        # For this pull alone: it ends, too, once a layer has failed.
        self._job = replace(job, cancel=Cancel(job.cancel))
        self._name = str(resolved.reference)
        self._fetcher: LayerFetcher | None = None
        # Whoever wants layers fetched again wants that of their content as well.
        self._twins = Twins(store, source, off=options.force or bool(options.refetch))
        # All that the pool was given, and so what may hold locks.
        self._started: list[Placing] = []
        # Written by the first thread of the pool that fails. Its future alone would not do: the main thread waits for
        # the lowest layer, and may hear from one that was stopped, which says less, before the one that failed.
        self._failure: BaseException | None = None

    def plan_only(self, started: float) -> PullResult:
        """Says what would be fetched; writes nothing."""
        self._plan()
        return self._result(started)

    def run(self, started: float) -> PullResult:
        """Fetches, settles, publishes and records."""
        with self._store.lock_shared(self._store_waits, self._cancel):
            # Not before: the process that is waited for may remove what is there.
            missing = self._plan()
            # Even with nothing missing: a layer may have to be recreated for this base, as it had before a crash.
            self._store.sweep()
            self._drop_partials()
            self._place_all(missing)
            self._store.make_links(placing.key for placing in self._bases.stack)
            self._record()
        result = self._result(started)
        present = {str(placing.digest): placing.present for placing in self._bases.stack}
        counts = len(present), sum(present.values())
        self._job.tell(
            events.ImageDone(self._name, result.pinned, result.size, result.fetched, result.seconds, *counts)
        )
        return result

    def fetch_again(self) -> None:
        """Fetches and publishes what the options name; the caller holds the store.

        Records nothing where the names of the layers were settled already.
        """
        self._store.sweep()
        self._place_all(self._plan())
        if not self._keys:
            self._record()

    def _plan(self) -> list[Placing]:
        """Looks at what is there and announces the work; returns what can be fetched at once."""
        self._bases = Bases(self._resolved, self._store, self._options, self._keys)
        self._publisher = Publisher(self._store, self._source, self._bases, self._options.limits, self._name, self._job)
        missing = self._bases.missing()
        self._twins.check(self._name, self._resolved.source, [placing.wanted for placing in missing])
        digests = {placing.digest for placing in missing}
        distinct = {str(layer.digest): layer for layer in self._resolved.manifest.layers}
        planned = tuple(events.PlannedLayer(name, x.size, x.digest not in digests) for name, x in distinct.items())
        self._job.tell(events.PullPlanned(self._name, str(self._resolved.platform), planned))
        return missing

    def _drop_partials(self) -> None:
        """A layer that got its name in the last moment before an interruption may have left its download."""
        for placing in self._bases.stack:
            if placing.present:
                self._store.partial_path(placing.digest).unlink(missing_ok=True)

    def _store_waits(self, holder: str) -> None:
        self._job.tell(events.StoreWaiting(self._name, holder))

    def _place_all(self, missing: list[Placing]) -> None:
        """Fetches what is missing, largest first, and goes through all layers, so that each finds those below."""
        with contextlib.ExitStack() as ending:
            together = self._shared = self._together or ending.enter_context(Together(self._job))
            if self._together is not None:
                ending.push(lambda kind, error, trace: self._job.tell(events.ImageFailed(self._name)) if kind else None)
            ending.callback(self._close)
            pool = ending.enter_context(StoppingPool(together.pool, self._job.cancel))
            # The last one to begin should not be the one that takes longest, while the others have nothing left to do.
            for placing in sorted(missing, key=lambda placing: -placing.size):
                self._start(pool, placing)
            for position, placing in enumerate(self._bases.stack):
                self._place(pool, placing)
                fits = self._fits(position)
                placing.unlock()
                if not fits:
                    self._place(pool, self._bases.replace(position))

    def _place(self, pool: StoppingPool, placing: Placing) -> None:
        """Brings one layer to its end; does nothing for one that is there, or was placed at a lower position."""
        if placing.state is State.MISSING:
            self._start(pool, placing)
        if placing.future is not None:
            self._finish(pool, placing)

    def _close(self) -> None:
        for placing in self._started:
            placing.close()

    def _start(self, pool: StoppingPool, placing: Placing) -> None:
        self._started.append(placing)
        self._submit(pool, placing)

    def _submit(self, pool: StoppingPool, placing: Placing) -> None:
        # Only a pull that writes needs to know what the file system can do.
        fetcher = self._fetcher = self._fetcher or self._make_fetcher()
        placing.state = State.FETCHING
        placing.future = pool.submit(placing.size, lambda: self._fetch(fetcher, placing))

    def _make_fetcher(self) -> LayerFetcher:
        options = self._options
        missing = {x.digest: x.size for x in self._bases.stack if not x.present}
        for digest, size in missing.items():
            self._shared.coming.add(digest, size)
        self._store.check_space(sum(missing.values()))
        xattrs = self._store.check_file_system(need_xattrs=not options.allow_no_xattr)
        return LayerFetcher(
            self._store,
            self._source,
            options.limits,
            coming=self._shared.coming,
            # A single one starts sooner without a server.
            start=Child.start if self._together is None and len(missing) == 1 else self._shared.children.child,
            xattrs=xattrs,
            image=self._name,
            job=self._job,
            twins=self._twins,
            arrived=self._arrived,
        )

    def _fits(self, position: int) -> bool:
        """Whether a layer that is there belongs on top of this image's lower layers; it may be locked afterwards."""
        placing = self._bases.stack[position]
        try:
            return self._bases.fits(position)
        except FileNotFoundError:
            # Another process is swapping it for a new one.
            self._wait_for_lock(placing)
        try:
            return self._store.has_layer(placing.key) and self._bases.fits(position)
        except FileNotFoundError:
            # Its record is lost.
            return False

    def _fetch(self, fetcher: LayerFetcher, placing: Placing) -> None:
        """Runs in the pool, and changes the state of the layer at its end.

        A layer that takes nothing from those below is published at once.
        """
        try:
            self._job.cancel.check()
            if not placing.try_lock(self._store, self._job.cancel):
                placing.state = State.ELSEWHERE
            elif self._bases.has_come(placing):
                placing.unlock()
                placing.state = State.PRESENT
            else:
                if not self._take_back(placing):
                    placing.fetched = self._shared.admission.run(
                        lambda: fetcher.fetch(placing.wanted, placing.resources), self._job.cancel
                    )
                assert placing.fetched is not None
                if placing.fetched.report.needs_lowers:
                    placing.arrived()
                else:
                    self._publisher.publish(placing)
        except BaseException as error:
            # Before the others hear of it and end with an error that says less.
            self._failure = self._failure or error
            self._job.cancel.set()
            raise
        finally:
            self._shared.coming.done(placing.digest)

    def _wait_for_lock(self, placing: Placing) -> None:
        """Waits until no other pull makes a layer, and lets go of what others may be waiting for meanwhile."""

        def waiting(holder: str) -> None:
            self._job.tell(events.LayerWaiting(self._name, str(placing.digest), holder))
            for other in self._started:
                other.let_go(self._shared.shelf)

        try:
            placing.wait_for_lock(self._store, waiting, self._job.cancel)
        except Cancelled:
            # A layer that failed sets the same flag; then its error is the reason, not an interruption.
            self._raise_if_over()
            raise
        finally:
            for other in self._started:
                other.keep()

    def _finish(self, pool: StoppingPool, placing: Placing) -> None:
        """Bottom first: waits for a layer, and settles it on those below unless that is done."""
        self._await(placing)
        if placing.state is State.ELSEWHERE:
            self._wait_for_lock(placing)
            self._look_again(pool, placing)
        if placing.state is State.FETCHED:
            self._publisher.publish(placing)
        placing.future = None
        placing.close()
        digest, fetched = str(placing.digest), placing.bytes_fetched
        done = events.LayerDone(self._name, digest, placing.size, fetched, placing.present, placing.reused)
        self._job.tell(done)

    def _look_again(self, pool: StoppingPool, placing: Placing) -> None:
        """Finds out what became of a layer that another pull had, or may have had, now that its lock is held."""
        unpacked = self._take_back(placing)
        if self._bases.has_come(placing) and (not unpacked or self._fits(placing.position)):
            placing.state, placing.fetched = State.PRESENT, None
        elif unpacked:
            placing.state = State.FETCHED
        else:
            self._submit(pool, placing)
            self._await(placing)

    def _take_back(self, placing: Placing) -> bool:
        """Takes what was unpacked of a layer and let go, if that is still worth anything; its lock is held."""
        if not placing.take_from(self._shared.shelf):
            return False
        # Who had the lock meanwhile may have downloaded the blob, and found that it is not what this image says.
        if placing.reused and self._twins.anew().find(placing.wanted) is None:
            placing.drop()
            return False
        return True

    def _await(self, placing: Placing) -> None:
        """Waits for one layer, but raises as soon as any of them fails."""
        assert placing.future is not None
        while not placing.future.done():
            wait([placing.future], timeout=_SLICE)
            self._raise_if_over()
        self._raise_if_over()

    def _raise_if_over(self) -> None:
        """Raises what ends this pull: a signal, or the error of any layer."""
        self._cancel.check()
        if self._failure is not None:
            raise self._failure

    def _record(self) -> None:
        resolved = self._resolved
        self._store.register(needed=True)
        check_claims(self._store, self._name, ((x.key, x.wanted.diff_id) for x in self._bases.stack))
        with self._store.database(create=True) as database:
            database.record(
                ImageRecord(
                    reference=self._name,
                    manifest_digest=resolved.digest,
                    platform=resolved.platform,
                    manifest_bytes=resolved.manifest_bytes,
                    manifest=resolved.manifest,
                    config_bytes=resolved.config_bytes,
                    config=resolved.config,
                    source=resolved.source,
                    keys=tuple(placing.key for placing in self._bases.stack),
                )
            )

    def _result(self, started: float) -> PullResult:
        resolved, stack = self._resolved, self._bases.stack
        planned = {
            x for x in stack if self._options.dry_run and not x.present and self._twins.find(x.wanted) is not None
        }
        outcomes = (
            LayerOutcome(
                digest=str(x.digest),
                size=x.size,
                fetched=x.bytes_fetched,
                present=x.present,
                # What is made from another layer never gets the plain name (Bases.key_for).
                path=str(self._store.layer_dir(LayerKey.on(x.digest, x.chain) if x in planned else x.key)),
                reused=x.reused or x in planned,
            )
            for x in stack
        )
        distinct = dict.fromkeys(stack)
        return PullResult(
            reference=self._name,
            pinned=resolved.reference.pinned(resolved.digest),
            digest=str(resolved.digest),
            platform=str(resolved.platform),
            layers=tuple(outcomes),
            size=sum({x.digest: x.size for x in stack}.values()),
            fetched=sum(x.bytes_fetched for x in distinct),
            seconds=time.monotonic() - started,
            changed=not all(x.present for x in distinct),
            dry_run=self._options.dry_run,
            top=str(resolved.top),
        )
