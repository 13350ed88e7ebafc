"""Move one resolved image into the store: fetch what is missing, settle and publish bottom first, record."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, ContentError
from msb_pull.ground.pools import StoppingPool
from msb_pull.ground.running import Cancel
from msb_pull.image.digest import chain_id
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.standing import belongs_on
from msb_pull.layer.settle.settle import Settled, settle
from msb_pull.layer.tree.kept import keep_aside
from msb_pull.layer.unpack.unpack import UnpackOptions
from msb_pull.store.index.rows import ImageRecord
from msb_pull.store.keys import LayerKey
from msb_pull.store.locks import Busy
from msb_pull.work.pull.fetch import FetchedLayer, LayerFetcher, LayerTask
from msb_pull.work.pull.plan import LayerOutcome, PullOptions, PullResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from msb_pull.ground.events import Observer
    from msb_pull.image.digest import Digest
    from msb_pull.source.interface import ResolvedImage, Source
    from msb_pull.store.store import Store


@dataclass(slots=True)
class _Layer:
    """One distinct layer of the image on its way into the store."""

    task: LayerTask
    position: int
    chain: str
    key: LayerKey
    present: bool
    lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    future: Future[FetchedLayer | None] | None = None
    fetched: int = 0
    elsewhere: bool = False
    let_go: bool = False
    published: bool = False

    @property
    def digest(self) -> Digest:
        return self.task.descriptor.digest


class Transfer:
    """The work on one resolved image. ``keys`` name its layers in the store where that is settled already."""

    def __init__(
        self,
        resolved: ResolvedImage,
        source: Source,
        store: Store,
        options: PullOptions,
        observer: Observer,
        cancel: threading.Event,
        keys: Mapping[Digest, LayerKey] | None = None,
    ) -> None:
        self._resolved = resolved
        self._keys = keys or {}
        self._source = source
        self._store = store
        self._options = options
        self._observer = observer
        self._cancel = cancel
        self._failed = threading.Event()
        self._fetcher: LayerFetcher | None = None
        self._name = str(resolved.reference)
        self._layers: list[_Layer] = []

    def plan_only(self, started: float) -> PullResult:
        """Says what would be fetched; writes nothing."""
        self._plan()
        return self._result(started)

    def run(self, started: float) -> PullResult:
        """Fetches, settles, publishes and records."""
        with self._store.lock_shared(self._store_waits, self._cancel):
            # Not before: what is there may be removed by whoever is waited for.
            missing = self._plan()
            # Even with nothing missing: a layer may have to be made again for this base, as it had before a crash.
            self._store.sweep()
            self._drop_partials()
            self._place_all(missing)
            self._record()
        result = self._result(started)
        done = sum(layer.present for layer in self._layers)
        self._observer(
            events.ImageDone(
                self._name, result.pinned, result.size, result.fetched, result.seconds, len(self._layers), done
            )
        )
        return result

    def fetch_again(self) -> None:
        """Fetches and publishes what the options name, for whoever holds the store; records nothing."""
        self._store.sweep()
        self._place_all(self._plan())

    def _distinct_layers(self) -> list[_Layer]:
        """The layers in manifest order, each digest once, with the ChainID of what lies below it (image-spec)."""
        layers: dict[str, _Layer] = {}
        chain = ""
        pairs = zip(self._resolved.manifest.layers, self._resolved.config.diff_ids, strict=True)
        for position, (descriptor, diff_id) in enumerate(pairs):
            key = str(descriptor.digest)
            if key not in layers:
                layers[key] = self._planned(LayerTask(descriptor, diff_id), position, chain)
            chain = chain_id(chain, str(diff_id))
        return list(layers.values())

    def _planned(self, task: LayerTask, position: int, chain: str) -> _Layer:
        """A layer that looks different on this base may lie in the store under a name of its own."""
        digest = task.descriptor.digest
        own = LayerKey.on(digest, chain)
        key = self._keys.get(digest) or (own if self._is_there(own) else LayerKey(digest))
        return _Layer(task, position, chain, key, self._is_there(key))

    def _is_there(self, key: LayerKey) -> bool:
        """Whether a layer need not be fetched."""
        options = self._options
        return not options.force and str(key) not in options.refetch and self._store.has_layer(key)

    def _plan(self) -> list[_Layer]:
        """Looks at what is there and announces the work; returns the missing layers."""
        self._layers = self._distinct_layers()
        planned = tuple(events.PlannedLayer(str(x.digest), x.task.descriptor.size, x.present) for x in self._layers)
        self._observer(events.PullPlanned(self._name, str(self._resolved.platform), planned))
        return [layer for layer in self._layers if not layer.present]

    def _drop_partials(self) -> None:
        """A layer that got its name in the last moment before an interruption may have left its download."""
        for layer in self._layers:
            if layer.present:
                self._store.partial_path(layer.digest).unlink(missing_ok=True)

    def _store_waits(self, holder: str) -> None:
        self._observer(events.StoreWaiting(self._name, holder))

    def _place_all(self, missing: list[_Layer]) -> None:
        """Fetches what is missing and goes through all layers, bottom first, so that each finds those below."""
        with contextlib.ExitStack() as resources:
            for layer in self._layers:
                resources.enter_context(layer.lock)
                resources.enter_context(layer.resources)
            pool = resources.enter_context(StoppingPool(self._options.jobs, self._failed))
            for layer in sorted(missing, key=lambda x: -x.task.descriptor.size):
                self._submit(pool, layer)
            for layer in self._layers:
                if layer.future is not None:
                    self._finish(pool, layer)
                if layer.present and not self._fits(layer):
                    # The same blob on another base: what it took from the layers below is not what this image shows.
                    layer.key, layer.present = LayerKey.on(layer.digest, layer.chain), False
                    layer.published = layer.let_go = False
                    self._submit(pool, layer)
                    self._finish(pool, layer)

    def _submit(self, pool: StoppingPool, layer: _Layer) -> None:
        if self._fetcher is None:
            # Only a pull that writes needs to know what the file system can do.
            self._fetcher = self._make_fetcher()
        layer.future = pool.submit(self._fetch, self._fetcher, layer)

    def _make_fetcher(self) -> LayerFetcher:
        options = self._options
        self._store.check_space(sum(x.task.descriptor.size for x in self._layers if not x.present))
        xattrs = self._store.check_file_system(need_xattrs=not options.allow_no_xattr)
        return LayerFetcher(
            self._store,
            self._source,
            UnpackOptions(max_entries=options.max_entries, max_bytes=options.max_layer_size, xattrs=xattrs),
            max_window=options.max_window,
            image=self._name,
            observer=self._observer,
            cancel=Cancel(self._cancel, self._failed),
        )

    def _fits(self, layer: _Layer) -> bool:
        """Whether a layer that is there belongs on top of this image's lower layers."""
        if layer.key.variant or self._keys:
            return True
        try:
            notes = Notes.load(self._store.notes_path(layer.key))
            if notes.chain == layer.chain or not notes.derived:
                return True
            return belongs_on(self._store.record_path(layer.key), notes, self._lowers(layer))
        except ContentError:
            # Nothing can be said of a damaged one, and this image can do without it.
            return False
        except FileNotFoundError:
            # Another process swaps it for a new one this moment.
            self._wait_for_lock(layer)
            layer.lock.close()
            return self._store.has_layer(layer.key) and self._fits(layer)

    def _lowers(self, layer: _Layer) -> list[Path]:
        """The directories of the layers below, nearest first."""
        keys = {x.digest: x.key for x in self._layers}
        below = self._resolved.manifest.layers[: layer.position]
        return [self._store.layer_dir(keys[x.digest]) for x in reversed(below)]

    def _fetch(self, fetcher: LayerFetcher, layer: _Layer) -> FetchedLayer | None:
        """Runs in the pool. None when another process has made the layer meanwhile, or is making it.

        A thread of the pool never waits for another process, which may in turn be waiting for a layer that stands
        behind this one in the queue. A layer that takes nothing from those below is published at once.
        """
        if not layer.elsewhere:
            try:
                layer.lock.enter_context(
                    self._store.lock_layer(layer.digest, lambda holder: None, self._cancel, wait=False)
                )
            except Busy:
                layer.elsewhere = True
                return None
        if self._is_there(layer.key):
            layer.lock.close()
            return None
        fetched = fetcher.fetch(layer.task, layer.resources)
        if not fetched.report.needs_lowers:
            self._publish(layer, fetched)
        return fetched

    def _wait_for_lock(self, layer: _Layer) -> None:
        """Waits until no other process makes a layer.

        By now all layers below are published and no longer locked. Where images stack the same layers the other way
        round, two processes could wait for each other in a circle; so whoever has waited a while keeps what it has
        unpacked, but lets others make it too.
        """
        waits_long = False

        def waiting(holder: str) -> None:
            nonlocal waits_long
            waits_long = True
            self._observer(events.LayerWaiting(self._name, str(layer.digest), holder))

        def look() -> None:
            self._raise_if_over()
            for other in self._layers if waits_long else ():
                done = other.future is not None and other.future.done()
                if done and not (other.elsewhere or other.published):
                    other.let_go = True
                    other.lock.close()

        layer.lock.enter_context(self._store.lock_layer(layer.digest, waiting, _Watch(look)))

    def _finish(self, pool: StoppingPool, layer: _Layer) -> None:
        """In the main thread, bottom first: waits for a layer, and settles it on those below unless that is done."""
        fetched = self._await(layer)
        if layer.elsewhere:
            self._wait_for_lock(layer)
            self._submit(pool, layer)
            fetched = self._await(layer)
            layer.elsewhere = False
        elif layer.let_go and fetched is not None:
            self._wait_for_lock(layer)
            if self._is_there(layer.key) and self._fits(layer):
                fetched = None
        if fetched is None:
            layer.present = True
        else:
            layer.fetched = fetched.fetched
            if not layer.published:
                self._publish(layer, fetched)
        layer.lock.close()
        layer.resources.close()
        size = layer.task.descriptor.size
        self._observer(events.LayerDone(self._name, str(layer.digest), size, layer.fetched, present=layer.present))

    def _await(self, layer: _Layer) -> FetchedLayer | None:
        """Waits for one layer, but raises as soon as any of them fails."""
        assert layer.future is not None
        while not layer.future.done():
            pending = [x.future for x in self._layers if x.future is not None and not x.future.done()]
            wait(pending, timeout=0.2, return_when="FIRST_COMPLETED")
            self._raise_if_over()
        return layer.future.result()

    def _raise_if_over(self) -> None:
        """Raises what ends this pull: a signal, or the error of any layer."""
        if self._cancel.is_set():
            raise Cancelled("interrupted")
        for layer in self._layers:
            if layer.future is not None and layer.future.done() and layer.future.exception() is not None:
                layer.future.result()

    def _publish(self, layer: _Layer, fetched: FetchedLayer) -> None:
        report = fetched.report
        lowers = self._lowers(layer) if report.needs_lowers else ()
        settled = settle(fetched.staging.path, report, lowers, max_bytes=self._options.max_layer_size)
        layer.key = self._key_for(layer, settled)
        diff_id = str(layer.task.diff_id)
        notes = Notes.of(report, settled.derived, diff_id=diff_id, tar_bytes=fetched.tar_bytes, chain=layer.chain)
        notes.save(fetched.staging.notes)
        self._observer(events.Logged(self._name, 1, f"layer {layer.digest.short}: unpacked under {report.jailed}"))
        kept = keep_aside(fetched.staging.path, fetched.staging.kept)
        for warning in (*report.warnings, *settled.warnings, *kept):
            self._observer(events.Warned(self._name, f"layer {layer.digest.short}: {warning}"))
        self._store.publish(fetched.staging, layer.key, replace=True)
        if self._source.remote:
            self._store.partial_path(layer.digest).unlink(missing_ok=True)
        layer.published = True
        layer.lock.close()

    def _key_for(self, layer: _Layer, settled: Settled) -> LayerKey:
        """The plain name, unless a layer holds it that another base made different."""
        if self._keys:
            return layer.key
        plain = LayerKey(layer.digest)
        if not self._store.has_layer(plain):
            return plain
        try:
            notes = Notes.load(self._store.notes_path(plain))
        except ContentError:
            return plain
        same = notes.chain == layer.chain or notes.derived == settled.derived
        return plain if same else LayerKey.on(layer.digest, layer.chain)

    def _record(self) -> None:
        resolved = self._resolved
        keys = {layer.digest: layer.key for layer in self._layers}
        self._store.register(needed=True)
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
                    keys=tuple(keys[x.digest] for x in resolved.manifest.layers),
                )
            )

    def _result(self, started: float) -> PullResult:
        resolved = self._resolved
        by_digest = {str(layer.digest): layer for layer in self._layers}
        outcomes = []
        for descriptor in resolved.manifest.layers:
            layer = by_digest[str(descriptor.digest)]
            path = str(self._store.layer_dir(layer.key))
            outcomes.append(LayerOutcome(str(descriptor.digest), descriptor.size, layer.fetched, layer.present, path))
        return PullResult(
            reference=self._name,
            pinned=resolved.reference.pinned(resolved.digest),
            digest=str(resolved.digest),
            platform=str(resolved.platform),
            layers=tuple(outcomes),
            size=sum(x.task.descriptor.size for x in self._layers),
            fetched=sum(x.fetched for x in self._layers),
            seconds=time.monotonic() - started,
            changed=not all(x.present for x in self._layers),
            dry_run=self._options.dry_run,
        )


class _Watch:
    """A flag for those who wait for a lock: asking it raises what makes waiting pointless."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def is_set(self) -> bool:
        self._look()
        return False
