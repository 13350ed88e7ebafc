"""Repair: fetches layers again that verify found damaged and swaps them in, and rewrites damaged records."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import Cancelled, ContentError, MsbPullError, NotFoundError, local_error
from msb_pull.ground.sizes import counted
from msb_pull.layer.proof.task import DERIVED
from msb_pull.store.index.keys import LayerKey
from msb_pull.work.claims import Claims, untrue
from msb_pull.work.verify.layers import LayerReport, Verdict
from msb_pull.work.verify.verify import RowsReport, VerifyReport, recorded_layers, verify_images

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence, Set

    from msb_pull.ground.running import Job
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.index.database import Database
    from msb_pull.store.index.rows import ImageRecord
    from msb_pull.store.store import Store
    from msb_pull.work.pull.plan import PullOptions


def repair_layers(
    store: Store, report: VerifyReport, client: Callable[[], RegistryClient], options: PullOptions, job: Job
) -> VerifyReport:
    """Fetches the damaged layers again from where their images came from, swaps them in and verifies them.

    A reader finds the old directory or the new one at every moment. Damaged records are rewritten from what the
    manifest's digest proves, and an image whose layer has turned out to be right only for the base of another image
    gets a form of its own. What cannot be repaired is in the report's ``failures``, and its damage stays in the
    report; images that have been removed or replaced meanwhile are skipped. Raises Cancelled.
    """
    started = time.monotonic()
    work = _Repair(store, client, options, job)
    work.record_again(report.rows)
    damaged = {layer.digest for layer in report.layers if layer.verdict is Verdict.DAMAGED}
    work.fetch_damaged(report.images, damaged)
    doubted = damaged | {layer.digest for layer in report.layers if layer.suspect}
    again = _verify_again(store, report.images, doubted, job)
    if divided := {name for layer in again.damaged if _is_right_elsewhere(layer) for name in layer.images}:
        work.place_again(sorted(divided))
        again = _verify_again(store, report.images, doubted, job)
    there = again.images
    rows = tuple(x for x in report.rows if x.reference in there)
    still = {x.reference for x in again.rows}
    layers, repaired = _outcome(report.layers, damaged, doubted, {layer.digest: layer for layer in again.layers})
    return replace(
        report,
        layers=layers,
        repaired=repaired,
        seconds=report.seconds + time.monotonic() - started,
        failures=tuple(work.failures),
        rows=rows,
        mended=tuple(x.reference for x in rows if x.reference not in still),
    )


def _verify_again(store: Store, references: Sequence[str], only: Collection[str], job: Job) -> VerifyReport:
    """Verifies the layers of those images that are still there."""
    while True:
        with store.database(create=False) as database:
            there = sorted(set(references).intersection(database.references()))
        try:
            return verify_images(store, there, job, only=only)
        except NotFoundError:
            # Removed in this moment.
            continue


def _outcome(
    layers: Sequence[LayerReport], damaged: set[str], doubted: set[str], fresh: dict[str, LayerReport]
) -> tuple[tuple[LayerReport, ...], tuple[str, ...]]:
    """What is reported of each layer in the end, and which are repaired; ``fresh`` is what was found after that."""
    repaired = {digest for digest in damaged if digest in fresh and fresh[digest].verdict is not Verdict.DAMAGED}
    # What nothing needs any more is not damage.
    left = (x for x in layers if x.digest not in doubted or x.digest in fresh)
    # What was found is reported even though it is repaired.
    return tuple(x if x.digest in repaired else fresh.get(x.digest, x) for x in left), tuple(sorted(repaired))


def _is_right_elsewhere(layer: LayerReport) -> bool:
    """Whether all that is wrong with a layer is the base that it was made on: another image has one in its place."""
    return all(damage.kind == DERIVED for damage in layer.damages)


@dataclass(frozen=True, slots=True)
class _Repair:
    """One repair; ``failures`` are what went wrong so far."""

    store: Store
    client: Callable[[], RegistryClient]
    options: PullOptions
    job: Job
    failures: list[MsbPullError] = field(default_factory=list)

    def record_again(self, rows: Sequence[RowsReport]) -> None:
        """Rewrites damaged records, and makes short links again."""
        for damaged in rows:
            try:
                with self.store.database(create=True) as database:
                    if not damaged.links_alone:
                        self._check_claims(database, damaged.reference)
                    if not damaged.links_alone and not database.record_again(damaged.reference):
                        raise ContentError(
                            f"{damaged.reference}: neither its rows nor their copy can be proven",
                            hint="`msb-pull pull --force` records it again",
                        )
                    image = database.find(damaged.reference)
                self.store.make_links(x.key for x in (image.layers if image else ()) if self.store.has_layer(x.key))
            except MsbPullError as error:
                self.failures.append(error)
            except OSError as error:
                self.failures.append(local_error(error, self.store.layers))

    def _check_claims(self, database: Database, reference: str) -> None:
        """Raises ContentError for an image that says of a blob what is not so: its row is that of others as well."""
        proofs = {x.reference: x.record for x in database.prove(None) if x.record is not None}
        if (mine := proofs.get(reference)) is None:
            return
        claims = Claims(self.store, map(recorded_layers, proofs.values()))
        for layer in recorded_layers(mine):
            if claims.refuting(layer) is not None:
                raise untrue(reference, layer.key)

    def fetch_damaged(self, references: Sequence[str], damaged: Set[str]) -> None:
        """Tries one image after the other until each damaged layer is fetched."""
        left = set(damaged)
        needed: dict[str, ImageRecord] = {}

        def fetch(image: ImageRecord) -> None:
            mine = left & _forms(image)
            if image.source != "registry":
                needed.update(dict.fromkeys(mine, image))
                return
            for name in mine:
                needed.pop(name, None)
            for keys, wanted in _keys(image, mine):
                self._fetch(image, keys, replace(self.options, refetch=wanted))
            left.difference_update(mine)

        self._each(references if damaged else (), fetch)
        if needed:
            image = next(iter(needed.values()))
            self.failures.append(
                NotFoundError(
                    f"{counted(len(needed), 'damaged layer')} cannot be fetched: no image from a registry has them",
                    hint=f"pull {image.reference} again with --force, from {image.source}",
                )
            )

    def place_again(self, references: Sequence[str]) -> None:
        """Decides again which form of each layer an image has, and records that."""

        def place(image: ImageRecord) -> None:
            if image.source == "registry":
                self._fetch(image, (), self.options)

        self._each(references, place)

    def _each(self, references: Sequence[str], repair: Callable[[ImageRecord], None]) -> None:
        """Calls ``repair`` for each image that is proven, with the store locked."""
        for reference in references:
            try:
                # Not before the lock is held, or another version of the image would be meant.
                with self.store.lock_shared(self.job.tell_waiting, self.job.cancel):
                    with self.store.database(create=False) as database:
                        proven = database.prove([reference])
                    if proven and proven[0].record is not None:
                        repair(proven[0].record)
            except Cancelled:
                raise
            except MsbPullError as error:
                self.failures.append(error)

    def _fetch(self, image: ImageRecord, keys: Sequence[LayerKey], options: PullOptions) -> None:
        """Fetches what the options name, by the manifest and config that are recorded, whatever the tag means.

        ``keys`` are the layers of the image by position, none if that is to be decided again.
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
        with closing(self.client().source(reference)) as source:
            Transfer(resolved, source, self.store, options, self.job, keys).fetch_again()


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
