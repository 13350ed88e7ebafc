"""Repair: fetches layers that verify found damaged again and swaps them in, and writes damaged records anew."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import Cancelled, ContentError, MsbPullError, NotFoundError
from msb_pull.ground.sizes import counted
from msb_pull.store.keys import LayerKey
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import RowsReport, VerifyReport, verify_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.index.rows import ImageRecord
    from msb_pull.store.store import Store
    from msb_pull.work.pull.plan import PullOptions


def repair_layers(
    store: Store,
    report: VerifyReport,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
) -> VerifyReport:
    """Fetches the damaged layers again from where their images came from and swaps them in; verifies them anew.

    A reader finds the old directory or the new one at every moment. Damaged records are written anew from what the
    manifest's digest proves, and nothing else is recorded. What cannot be mended stands in the report's ``failures``,
    its damage stays in the report; images that have gone meanwhile, or have become others, are passed over. Raises
    Cancelled.
    """
    started = time.monotonic()
    failures = _record_again(store, report.rows)
    damaged = {layer.digest for layer in report.layers if layer.verdict is Verdict.DAMAGED}
    failures += _fetch_damaged(store, report.images, damaged, client, options, job)
    there = _still_there(store, report.images)
    doubted = damaged | {layer.digest for layer in report.layers if layer.suspect}
    again = verify_layers(store, there, doubted, job)
    fresh = {layer.digest: layer for layer in again.layers}
    mended = {digest for digest in damaged if digest in fresh and fresh[digest].verdict is not Verdict.DAMAGED}
    # What nothing needs any more is no damage.
    left = [x for x in report.layers if x.digest not in doubted or x.digest in fresh]
    # What was found is told though it is mended.
    layers = tuple(x if x.digest in mended else fresh.get(x.digest, x) for x in left)
    still = {rows.reference for rows in again.rows}
    written = tuple(rows.reference for rows in report.rows if rows.reference in there and rows.reference not in still)
    seconds = report.seconds + time.monotonic() - started
    return replace(
        report,
        layers=layers,
        repaired=tuple(sorted(mended)),
        seconds=seconds,
        failures=tuple(failures),
        rows=tuple(rows for rows in report.rows if rows.reference in there),
        mended=written,
    )


def _still_there(store: Store, references: Sequence[str]) -> list[str]:
    with store.database(create=False) as database:
        return sorted(set(references).intersection(database.references()))


def _record_again(store: Store, rows: Sequence[RowsReport]) -> list[MsbPullError]:
    failures: list[MsbPullError] = []
    for damaged in rows:
        try:
            with store.database(create=True) as database:
                if not database.record_again(damaged.reference):
                    raise ContentError(
                        f"{damaged.reference}: neither its rows nor their copy prove themselves",
                        hint="`msb-pull pull --force` records it anew",
                    )
        except MsbPullError as error:
            failures.append(error)
    return failures


def _fetch_damaged(
    store: Store,
    references: Sequence[str],
    damaged: Collection[str],
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
) -> list[MsbPullError]:
    """Tries one image after the other until each damaged layer is fetched; returns what went wrong."""
    failures: list[MsbPullError] = []
    left, needed = set(damaged), set[str]()
    for reference in references if damaged else ():
        mine: set[str] = set()
        try:
            # Not before the lock is held, or another version of the image would be meant.
            with store.lock_shared(job.tell_waiting, job.cancel):
                image = _proven(store, reference)
                mine = set() if image is None else left & _forms(image)
                needed |= mine
                if image is None or not mine or image.source != "registry":
                    continue
                for keys in _keys(image, mine):
                    _fetch_again(store, image, keys, client(), options, job)
                left -= mine
                needed -= mine
        except Cancelled:
            raise
        except MsbPullError as error:
            failures.append(error)
            needed -= mine
    if needed:
        failures.append(
            NotFoundError(
                f"no image that came from a registry has {counted(len(needed), 'damaged layer')}",
                hint="pull its image again from the folder or archive with --force",
            )
        )
    return failures


def _forms(image: ImageRecord) -> set[str]:
    """The names that an image's layers may have in the store."""
    return {str(name) for key in image.layer_keys for name in (key, LayerKey(key.digest))}


def _keys(image: ImageRecord, wanted: Collection[str]) -> Iterator[dict[Digest, LayerKey]]:
    """Under which name to fetch each layer; twice, where two forms of one of them are ``wanted``."""
    left = set(wanted)
    while left:
        keys = {key.digest: key if str(key) in left else LayerKey(key.digest) for key in image.layer_keys}
        keys = {digest: key for digest, key in keys.items() if str(key) in left}
        if not keys:
            return
        yield keys
        left.difference_update(map(str, keys.values()))


def _proven(store: Store, reference: str) -> ImageRecord | None:
    with store.database(create=False) as database:
        return next((image.record for image in database.prove([reference])), None)


def _fetch_again(
    store: Store,
    image: ImageRecord,
    keys: dict[Digest, LayerKey],
    client: RegistryClient,
    options: PullOptions,
    job: Job,
) -> None:
    """Fetches the layers that ``keys`` names, by the manifest and config that are recorded, whatever the tag means."""
    # Verifying needs none of this, and loading it takes longer than verifying a small image.
    from msb_pull.image.reference import Reference
    from msb_pull.source.interface import ResolvedImage
    from msb_pull.work.pull.transfer import Transfer

    reference = Reference.parse(image.reference)
    resolved = ResolvedImage(
        reference=reference,
        digest=image.manifest_digest,
        platform=image.platform,
        manifest_bytes=image.manifest_bytes,
        manifest=image.manifest,
        config_bytes=image.config_bytes,
        config=image.config,
        source="registry",
    )
    options = replace(options, refetch=frozenset(map(str, keys.values())))
    names = {key.digest: key for key in image.layer_keys} | keys
    with closing(client.source(reference)) as source:
        transfer = Transfer(resolved, source, store, options, job.observer, job.cancel, names)  # type: ignore[arg-type]
        transfer.fetch_again()
