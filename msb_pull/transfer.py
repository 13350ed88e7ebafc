"""Move one resolved image into the store: fetch what is missing, settle and publish bottom first, record."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull import events
from msb_pull.errors import Cancelled
from msb_pull.fetch import FetchedLayer, LayerFetcher, LayerTask
from msb_pull.layer.record import Notes
from msb_pull.layer.settle import settle
from msb_pull.layer.unpack import UnpackOptions
from msb_pull.plan import LayerOutcome, PullOptions, PullResult
from msb_pull.store.database import Database
from msb_pull.store.rows import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.events import Observer
    from msb_pull.image.digest import Digest
    from msb_pull.source.interface import ResolvedImage, Source
    from msb_pull.store.store import Store


@dataclass(slots=True)
class _Layer:
    """One distinct layer of the image on its way into the store."""

    task: LayerTask
    position: int
    chain: str
    present: bool
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    future: Future[FetchedLayer | None] | None = None
    fetched: int = 0

    @property
    def digest(self) -> Digest:
        return self.task.descriptor.digest


class Transfer:
    """The work on one resolved image."""

    def __init__(
        self,
        resolved: ResolvedImage,
        source: Source,
        store: Store,
        options: PullOptions,
        observer: Observer,
        cancel: threading.Event,
    ) -> None:
        self._resolved = resolved
        self._source = source
        self._store = store
        self._options = options
        self._observer = observer
        self._cancel = cancel
        self._failed = threading.Event()
        self._name = str(resolved.reference)
        self._layers = self._distinct_layers()

    def plan_only(self, started: float) -> PullResult:
        """Says what would be fetched; writes nothing."""
        self._announce()
        return self._result(started)

    def run(self, started: float) -> PullResult:
        """Fetches, settles, publishes and records."""
        self._announce()
        missing = [layer for layer in self._layers if not layer.present]
        with self._store.lock_shared(self._store_waits, self._cancel):
            if missing:
                self._store.sweep()
                self._fetch_all(missing)
            self._record()
        result = self._result(started)
        done = sum(layer.present for layer in self._layers)
        self._observer(
            events.ImageDone(
                self._name, result.pinned, result.size, result.fetched, result.seconds, len(self._layers), done
            )
        )
        return result

    def _distinct_layers(self) -> list[_Layer]:
        """The layers in manifest order, each digest once, with the ChainID of what lies below it (image-spec)."""
        layers: dict[str, _Layer] = {}
        chain = ""
        pairs = zip(self._resolved.manifest.layers, self._resolved.config.diff_ids, strict=True)
        for position, (descriptor, diff_id) in enumerate(pairs):
            key = str(descriptor.digest)
            if key not in layers:
                present = self._is_there(descriptor.digest)
                layers[key] = _Layer(LayerTask(descriptor, diff_id), position, chain, present)
            chain = _chain_id(chain, str(diff_id))
        return list(layers.values())

    def _is_there(self, digest: Digest) -> bool:
        """Whether a layer need not be fetched."""
        options = self._options
        return not options.force and str(digest) not in options.refetch and self._store.has_layer(digest)

    def _announce(self) -> None:
        planned = tuple(events.PlannedLayer(str(x.digest), x.task.descriptor.size, x.present) for x in self._layers)
        self._observer(events.PullPlanned(self._name, str(self._resolved.platform), planned))

    def _store_waits(self, holder: str) -> None:
        self._observer(events.StoreWaiting(self._name, holder))

    def _stopped(self) -> bool:
        return self._cancel.is_set() or self._failed.is_set()

    def _fetch_all(self, missing: list[_Layer]) -> None:
        options = self._options
        xattrs = self._store.check_file_system(need_xattrs=not options.allow_no_xattr)
        fetcher = LayerFetcher(
            self._store,
            self._source,
            UnpackOptions(max_entries=options.max_entries, max_bytes=options.max_layer_size, xattrs=xattrs),
            image=self._name,
            observer=self._observer,
            stopped=self._stopped,
        )
        with contextlib.ExitStack() as resources:
            for layer in missing:
                resources.enter_context(layer.resources)
            pool = resources.enter_context(_Pool(min(options.jobs, len(missing)), self._failed))
            for layer in sorted(missing, key=lambda x: -x.task.descriptor.size):
                layer.future = pool.submit(self._fetch, fetcher, layer)
            for layer in missing:
                self._finish(layer, missing)

    def _fetch(self, fetcher: LayerFetcher, layer: _Layer) -> FetchedLayer | None:
        """Runs in the pool. None when another process has made the layer meanwhile."""

        def waiting(holder: str) -> None:
            self._observer(events.LayerWaiting(self._name, str(layer.digest), holder))

        layer.resources.enter_context(self._store.lock_layer(layer.digest, waiting, self._cancel))
        if self._is_there(layer.digest):
            return None
        return fetcher.fetch(layer.task, layer.resources)

    def _finish(self, layer: _Layer, missing: Sequence[_Layer]) -> None:
        """In the main thread, bottom first: waits for a layer, settles it on those below, publishes it."""
        fetched = self._await(layer, missing)
        if fetched is None:
            layer.present = True
        else:
            layer.fetched = fetched.fetched
            self._publish(layer, fetched)
        layer.resources.close()
        size = layer.task.descriptor.size
        self._observer(events.LayerDone(self._name, str(layer.digest), size, layer.fetched, present=layer.present))

    def _await(self, layer: _Layer, missing: Sequence[_Layer]) -> FetchedLayer | None:
        """Waits for one layer, but raises as soon as any of them fails."""
        assert layer.future is not None
        while not layer.future.done():
            if self._cancel.is_set():
                raise Cancelled("interrupted")
            pending = [x.future for x in missing if x.future is not None and not x.future.done()]
            wait(pending, timeout=0.2, return_when="FIRST_COMPLETED")
            for other in missing:
                if other.future is not None and other.future.done() and other.future.exception() is not None:
                    other.future.result()
        return layer.future.result()

    def _publish(self, layer: _Layer, fetched: FetchedLayer) -> None:
        report = fetched.report
        below = self._resolved.manifest.layers[: layer.position]
        lowers = [self._store.layer_dir(x.digest) for x in reversed(below)]
        settled = settle(fetched.staging.path, report, lowers)
        Notes.of(
            report,
            settled,
            diff_id=str(layer.task.diff_id),
            tar_bytes=fetched.tar_bytes,
            chain=layer.chain,
        ).save(fetched.staging.notes)
        for warning in report.warnings:
            self._observer(events.Warned(self._name, f"layer {layer.digest.short}: {warning}"))
        self._store.publish(fetched.staging, layer.digest, replace=True)
        if self._source.remote:
            self._store.partial_path(layer.digest).unlink(missing_ok=True)

    def _record(self) -> None:
        resolved = self._resolved
        with Database.open(self._store.database_path, create=True) as database:
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
                )
            )

    def _result(self, started: float) -> PullResult:
        resolved = self._resolved
        by_digest = {str(layer.digest): layer for layer in self._layers}
        outcomes = []
        for descriptor in resolved.manifest.layers:
            layer = by_digest[str(descriptor.digest)]
            path = str(self._store.layer_dir(descriptor.digest))
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


class _Pool:
    """A thread pool that stops its work before it lets an error pass."""

    def __init__(self, size: int, failed: threading.Event) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="layer")
        self._failed = failed
        self.submit = self._pool.submit

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._failed.set()
        self._pool.shutdown(wait=True, cancel_futures=error is not None)


def _chain_id(below: str, diff_id: str) -> str:
    if not below:
        return diff_id
    return "sha256:" + hashlib.sha256(f"{below} {diff_id}".encode()).hexdigest()
