"""Verify: proves that what lies on disk is still what the registry signed, and mends what is not."""

from __future__ import annotations

import enum
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msb_pull import events
from msb_pull.errors import Cancelled, ContentError, MsbPullError, NotFoundError
from msb_pull.layer.check import Damage, check_content, check_tree
from msb_pull.layer.expected import expected_tree
from msb_pull.layer.record import Notes
from msb_pull.sizes import counted
from msb_pull.store.store import LayerState

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterable, Sequence
    from hashlib import _Hash

    from msb_pull.events import Observer
    from msb_pull.plan import PullOptions
    from msb_pull.source.registry import RegistryClient
    from msb_pull.store.database import StoredImage, StoredLayer
    from msb_pull.store.keys import LayerKey
    from msb_pull.store.store import Store

_PROGRESS_INTERVAL = 0.1


class Verdict(enum.StrEnum):
    """What can be said of a layer."""

    PROVEN = "proven"
    UNCHANGED = "unchanged"
    UNPROVABLE = "unprovable"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer: ``proven`` means that its stream was made again and has the signed diff_id, ``unchanged`` that all
    that was compared agrees (quick, or a stream that cannot be made again: ``remark`` says so)."""

    digest: str
    verdict: Verdict
    damages: tuple[Damage, ...]
    remark: str
    bytes: int
    entries: int
    images: tuple[str, ...]


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

    A layer that several images share is verified once. Raises NotFoundError for an unknown image, Cancelled.
    """
    return _verify(store, references, None, quick, jobs, observer, cancel)


def _verify(
    store: Store,
    references: Sequence[str],
    only: Collection[str] | None,
    quick: bool,
    jobs: int,
    observer: Observer,
    cancel: threading.Event,
) -> VerifyReport:
    """Verifies the layers that ``only`` names (None for all) of the images."""
    started = time.monotonic()
    with store.lock_shared(lambda holder: observer(events.StoreWaiting("", holder)), cancel):
        # Not before: what is removed while this waits for the lock is no damage.
        images = stored_images(store, references)
        wanted = [x for x in _distinct(images) if only is None or str(x[0].key) in only]
        checks = [_Check(store, layer, names, quick, observer, cancel) for layer, names in wanted]
        with ThreadPoolExecutor(max(1, min(jobs, len(checks) or 1)), thread_name_prefix="verify") as pool:
            reports = list(pool.map(_Check.run, checks))
    return VerifyReport(tuple(image.reference for image in images), tuple(reports), (), time.monotonic() - started)


def repair_layers(
    store: Store,
    report: VerifyReport,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    *,
    observer: Observer,
    cancel: threading.Event,
) -> VerifyReport:
    """Fetches the damaged layers again from where their images came from and swaps them in; verifies them anew.

    A reader finds the old directory or the new one at every moment. What cannot be mended stands in the report's
    ``failures``, its damage stays in the report. Raises NotFoundError for an image that is gone, Cancelled.
    """
    started = time.monotonic()
    damaged = {layer.digest for layer in report.layers if layer.verdict is Verdict.DAMAGED}
    images = stored_images(store, report.images)
    failures = _fetch_damaged(store, images, damaged, client, options, observer, cancel)
    again = _verify(store, report.images, damaged, False, options.jobs, observer, cancel)
    fresh = {layer.digest: layer for layer in again.layers}
    mended = {digest for digest in damaged if digest in fresh and fresh[digest].verdict is not Verdict.DAMAGED}
    layers = tuple(x if x.digest in mended else fresh.get(x.digest, x) for x in report.layers)
    seconds = report.seconds + time.monotonic() - started
    return VerifyReport(report.images, layers, tuple(sorted(mended)), seconds, tuple(failures))


def _fetch_damaged(
    store: Store,
    images: Sequence[StoredImage],
    damaged: Collection[str],
    client: Callable[[], RegistryClient],
    options: PullOptions,
    observer: Observer,
    cancel: threading.Event,
) -> list[MsbPullError]:
    """Tries one image after the other until each damaged layer is fetched; returns what went wrong."""
    failures: list[MsbPullError] = []
    left, tried = set(damaged), set[str]()
    for image in images:
        mine = left & {str(layer.key) for layer in image.layers}
        if not mine or image.source != "registry":
            continue
        tried |= mine
        try:
            _fetch_again(store, image, client(), replace(options, refetch=frozenset(mine)), observer, cancel)
            left -= mine
        except Cancelled:
            raise
        except MsbPullError as error:
            failures.append(error)
    if lost := left - tried:
        failures.append(
            NotFoundError(
                f"no image that came from a registry has {counted(len(lost), 'damaged layer')}",
                hint="pull its image again from the folder or archive with --force",
            )
        )
    return failures


def _fetch_again(
    store: Store,
    image: StoredImage,
    client: RegistryClient,
    options: PullOptions,
    observer: Observer,
    cancel: threading.Event,
) -> None:
    """A pull of some layers by the manifest and config that are recorded, whatever the tag means by now."""
    # Verifying needs none of this, and loading it takes longer than verifying a small image.
    from msb_pull.image.manifest import Manifest, parse_config, parse_document
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference
    from msb_pull.source.interface import ResolvedImage
    from msb_pull.transfer import Transfer

    assert image.digest is not None and image.manifest_bytes is not None and image.config_bytes is not None
    manifest = parse_document(image.manifest_bytes, None, image.reference)
    assert isinstance(manifest, Manifest)
    reference = Reference.parse(image.reference)
    resolved = ResolvedImage(
        reference=reference,
        digest=image.digest,
        platform=image.platform or Platform.host(),
        manifest_bytes=image.manifest_bytes,
        manifest=manifest,
        config_bytes=image.config_bytes,
        config=parse_config(image.config_bytes, manifest, image.reference),
        source="registry",
    )
    with closing(client.source(reference)) as source:
        Transfer(resolved, source, store, options, observer, cancel).run(time.monotonic())


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


class _Check:
    """The verification of one layer."""

    def __init__(
        self,
        store: Store,
        layer: StoredLayer,
        images: tuple[str, ...],
        quick: bool,
        observer: Observer,
        cancel: threading.Event,
    ) -> None:
        self._store = store
        self._layer = layer
        self._images = images
        self._quick = quick
        self._observer = observer
        self._cancel = cancel
        self._last = 0.0

    def run(self) -> LayerReport:
        """Never raises for what is wrong with the layer; raises Cancelled."""
        state = self._store.layer_state(self._layer.key)
        if state is LayerState.ABSENT:
            return self._report(Verdict.DAMAGED, [Damage(b"", "missing", "a directory", "nothing")])
        if state is not LayerState.COMPLETE:
            what = "a symlink or a file" if state is LayerState.SYMLINK else "written by another program"
            return self._report(Verdict.UNPROVABLE, [], f"no record: {what}")
        try:
            return self._compare()
        except ContentError as error:
            return self._report(Verdict.DAMAGED, [Damage(b"", "record", "a sound record", str(error))])
        except OSError as error:
            path = os.fsencode(error.filename) if error.filename else b""
            return self._report(Verdict.DAMAGED, [Damage(path, "unreadable", "a readable tree", str(error.strerror))])

    def _compare(self) -> LayerReport:
        key, store = self._layer.key, self._store
        notes = Notes.load(store.notes_path(key))
        if notes.diff_id != str(self._layer.diff_id):
            damage = Damage(b"", "record", str(self._layer.diff_id), notes.diff_id)
            return self._report(Verdict.DAMAGED, [damage])
        # Reading a large record takes a while in which nothing else is shown.
        self._tell(0, notes.entries if self._quick else notes.tar_bytes, "entries" if self._quick else "bytes")
        nodes, lost = expected_tree(store.record_path(key), notes)
        root = os.open(store.layer_dir(key), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            attributes = store.check_file_system(need_xattrs=False)
            damages = list(check_tree(root, nodes, attributes=attributes, progress=self._entries(len(nodes))))
            if self._quick:
                return self._report(Verdict.DAMAGED if damages else Verdict.UNCHANGED, damages, "", notes)
            hasher = self._layer.diff_id.hasher()
            known = {damage.path for damage in damages}
            contents = check_content(root, store.record_path(key), nodes, self._bytes(hasher, notes.tar_bytes))
            damages += [damage for damage in contents if damage.path not in known]
        finally:
            os.close(root)
        if damages:
            return self._report(Verdict.DAMAGED, damages, "", notes)
        if lost:
            remark = "entries overwritten within the layer: sizes and checksums agree, the stream cannot be made again"
            return self._report(Verdict.UNCHANGED, [], remark, notes)
        if hasher.hexdigest() != self._layer.diff_id.hex:
            found = f"{self._layer.diff_id.algorithm}:{hasher.hexdigest()}"
            return self._report(Verdict.DAMAGED, [Damage(b"", "stream", str(self._layer.diff_id), found)], "", notes)
        return self._report(Verdict.PROVEN, [], "", notes)

    def _report(
        self, verdict: Verdict, damages: list[Damage], remark: str = "", notes: Notes | None = None
    ) -> LayerReport:
        return LayerReport(
            str(self._layer.key),
            verdict,
            tuple(damages),
            remark,
            notes.content_bytes if notes else 0,
            notes.entries if notes else 0,
            self._images,
        )

    def _entries(self, total: int) -> Callable[[int], None]:
        """Counts entries; only a quick verification shows them, a full one shows bytes."""

        def seen(count: int) -> None:
            self._tell(count, total, "entries") if self._quick else self._stop()

        return seen

    def _bytes(self, hasher: _Hash, total: int) -> Callable[[bytes], None]:
        done = 0

        def take(piece: bytes) -> None:
            nonlocal done
            hasher.update(piece)
            done += len(piece)
            self._tell(done, total, "bytes")

        return take

    def _tell(self, done: int, total: int, unit: str) -> None:
        self._stop()
        now = time.monotonic()
        if done == total or now - self._last >= _PROGRESS_INTERVAL:
            self._last = now
            self._observer(events.CheckProgress("", str(self._layer.key), done, total, unit))

    def _stop(self) -> None:
        if self._cancel.is_set():
            raise Cancelled("interrupted")
