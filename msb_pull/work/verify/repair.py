"""Repair: fetches layers that verify found damaged again and swaps them in, and writes damaged records anew."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import Cancelled, ContentError, MsbPullError, NotFoundError
from msb_pull.ground.sizes import counted
from msb_pull.layer.proof.compare import DERIVED
from msb_pull.store.keys import LayerKey
from msb_pull.work.verify.layers import LayerReport, Verdict
from msb_pull.work.verify.verify import RowsReport, VerifyReport, verify_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence, Set

    from msb_pull.ground.running import Job
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.index.rows import ImageRecord
    from msb_pull.store.store import Store
    from msb_pull.work.pull.plan import PullOptions


def repair_layers(
    store: Store, report: VerifyReport, client: Callable[[], RegistryClient], options: PullOptions, job: Job
) -> VerifyReport:
    """Fetches the damaged layers again from where their images came from and swaps them in; verifies them anew.

    A reader finds the old directory or the new one at every moment. Damaged records are written
    again from what the manifest's digest proves, and an image whose layer has turned out to be right only for the base
    of another image gets a form of its own. What cannot be mended stands in the report's ``failures``,
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
    if divided := {name for layer in again.damaged if _is_right_elsewhere(layer) for name in layer.images}:
        failures += _place_again(store, sorted(divided), client, options, job)
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
                        f"{damaged.reference}: neither its rows nor their copy can be proven",
                        hint="`msb-pull pull --force` records it again",
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
                for keys, wanted in _keys(image, mine):
                    _fetch_again(store, image, keys, client(), replace(options, refetch=wanted), job)
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
                f"no image from a registry has {counted(len(needed), 'damaged layer')}",
                hint="pull its image again from the folder or archive with --force",
            )
        )
    return failures


def _is_right_elsewhere(layer: LayerReport) -> bool:
    """Whether all that is wrong with a layer is the base that it was made on: another image has one in its place."""
    return all(damage.kind == DERIVED for damage in layer.damages)


def _place_again(
    store: Store, references: Sequence[str], client: Callable[[], RegistryClient], options: PullOptions, job: Job
) -> list[MsbPullError]:
    """Decides anew which form of each layer an image has, and records that; returns what went wrong."""
    failures: list[MsbPullError] = []
    for reference in references:
        try:
            with store.lock_shared(job.tell_waiting, job.cancel):
                image = _proven(store, reference)
                if image is not None and image.source == "registry":
                    _fetch_again(store, image, (), client(), options, job)
        except Cancelled:
            raise
        except MsbPullError as error:
            failures.append(error)
    return failures


def _forms(image: ImageRecord) -> set[str]:
    """The names that an image's layers may have in the store."""
    return {str(name) for key in image.layer_keys for name in (key, LayerKey(key.digest))}


def _keys(image: ImageRecord, wanted: Set[str]) -> Iterator[tuple[Sequence[LayerKey], frozenset[str]]]:
    """The names of an image's layers by position, and which of them to fetch.

    A second time where the plain form is ``wanted`` of a layer that the image has in another one.
    """
    names = image.layer_keys
    own = frozenset(map(str, names)).intersection(wanted)
    if own:
        yield names, own
    if plain := frozenset(wanted - own):
        bare = (LayerKey(key.digest) for key in names)
        yield [new if str(new) in plain else key for new, key in zip(bare, names, strict=True)], plain


def _proven(store: Store, reference: str) -> ImageRecord | None:
    with store.database(create=False) as database:
        return next((image.record for image in database.prove([reference])), None)


def _fetch_again(
    store: Store, image: ImageRecord, keys: Sequence[LayerKey], client: RegistryClient, options: PullOptions, job: Job
) -> None:
    """Fetches what the options name, by the manifest and config that are recorded, whatever the tag means.

    ``keys`` are the layers of the image by position, none if that is to be decided anew.
    """
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
    with closing(client.source(reference)) as source:
        Transfer(resolved, source, store, options, job, keys).fetch_again()
