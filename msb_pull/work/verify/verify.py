"""Verify: proves that what lies on disk is still what the registry signed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError, MsbPullError, NotFoundError
from msb_pull.layer.proof.task import DERIVED
from msb_pull.store.index.database import Database
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.index.proven import Difference
from msb_pull.store.index.stored import StoredLayer
from msb_pull.work.claims import Claims
from msb_pull.work.verify.layers import LayerCheck, LayerReport, Verdict, run_checks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.store.index.proven import ProvenImage
    from msb_pull.store.index.rows import ImageRecord
    from msb_pull.store.store import Store

# How the places of short links begin in a difference.
LINKS = "l/"


@dataclass(frozen=True, slots=True)
class RowsReport:
    """An image of which something recorded is not what its manifest's digest proves, or a layer has no short link."""

    reference: str
    differences: tuple[Difference, ...]

    @property
    def links_alone(self) -> bool:
        """Whether short links are all that is wrong."""
        return all(x.place.startswith(LINKS) for x in self.differences)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was verified; ``repaired`` lists layers that were fetched again, ``failures`` why others could not be.

    ``rows`` are the images whose records are damaged, ``mended`` those of them that were rewritten. ``unchecked`` says
    what could not be looked at, since nothing tells what it is; ``unsigned`` are the images that are not signed as the
    rules require, and why.
    """

    images: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    repaired: tuple[str, ...]
    seconds: float
    failures: tuple[MsbPullError, ...] = ()
    rows: tuple[RowsReport, ...] = ()
    mended: tuple[str, ...] = ()
    unchecked: tuple[MsbPullError, ...] = ()
    unsigned: tuple[tuple[str, MsbPullError], ...] = ()

    @property
    def misrecorded(self) -> list[RowsReport]:
        """The images whose records are still damaged."""
        return [x for x in self.rows if x.reference not in self.mended]

    @property
    def damaged(self) -> list[LayerReport]:
        """The layers with damage that is still there."""
        return [x for x in self.layers if x.verdict is Verdict.DAMAGED and x.digest not in self.repaired]

    def having(self, verdict: Verdict) -> list[LayerReport]:
        """The layers of which this was found."""
        return [x for x in self.layers if x.verdict is verdict]


def verify_images(
    store: Store, references: Sequence[str], job: Job, *, quick: bool = False, only: Collection[str] | None = None
) -> VerifyReport:
    """Verifies the layers of the named images (canonical references), of all images when none is named.

    ``only`` names the layers to verify (None for all). A layer that several images share is verified once,
    ``job.large_at_once`` layers at a time. Writes nothing. Raises NotFoundError for an unknown image, LocalError,
    Cancelled.
    """
    started = time.monotonic()
    with store.lock_shared(job.tell_waiting, job.cancel):
        # Not before: what is removed while this waits for the lock is not damage.
        proofs = proven_images(store, references, job)
        claims = Claims(store, (layers for image, layers in proofs if image.record is not None))
        wanted = [x for x in _distinct(store, proofs, claims) if only is None or str(x.layer.key) in only]
        checks = [LayerCheck(store, x.layer, tuple(x.images), x.stacks, quick, job) for x in wanted]
        reports = _blamed(wanted, run_checks(checks, job.large_at_once))
        unchecked = () if references else _unread_copies(store)
    rows = tuple(RowsReport(image.reference, tuple(image.differences)) for image, _ in proofs if image.differences)
    names = tuple(image.reference for image, _ in proofs)
    seconds = time.monotonic() - started
    return VerifyReport(names, tuple(reports), (), seconds, rows=rows, unchecked=unchecked)


def _unread_copies(store: Store) -> tuple[LocalError, ...]:
    with store.database(create=False) as database:
        return tuple(database.unread_copies())


def proven_images(
    store: Store, references: Sequence[str], job: Job
) -> list[tuple[ProvenImage, tuple[StoredLayer, ...]]]:
    """The named images, all of them when none is named, with the layers that their manifests prove.

    Of an image that only another program has recorded these are the layers of its rows. A copy beside the layers that
    is missing or another one is rewritten, as are rows of layers in another order, with a warning. Raises
    NotFoundError.
    """
    with store.database(create=False) as database:
        proofs = database.prove(references or None)
        for image in proofs:
            if image.taken_over:
                _warn(job, image, "another program has recorded the same layers again")
        if missing := set(references) - {image.reference for image in proofs}:
            raise NotFoundError(f"{sorted(missing)[0]}: not in the store", hint="`msb-pull ls` shows what is")
        found = [(image, _layers(image, database)) for image in proofs]
    for image, layers in found:
        if image.disordered:
            # An order that another image needed once may be left when that one has gone.
            place = Difference("oci.db: layers", "the order of the manifest", "")
            text = "the rows of its layers were in a different order than its manifest's; corrected"
            _correct(store, image, Database.record_again, place, job, text)
        if image.stale:
            text = "its copy beside the layers was missing or did not match oci.db; rewritten"
            _correct(store, image, Database.copy_again, Difference("images: copy", "what the rows say", ""), job, text)
        if image.record is not None:
            image.differences += _lost_links(store, layers)
    return found


def _warn(job: Job, image: ProvenImage, text: str) -> None:
    job.warn(image.reference, f"{image.reference}: {text}")


def _correct(
    store: Store, image: ProvenImage, how: Callable[[Database, str], object], wrong: Difference, job: Job, text: str
) -> None:
    """Corrects what is recorded of an image, and says so with ``text``; what cannot be corrected is a difference."""
    try:
        with store.database(create=True) as database:
            how(database, image.reference)
    except LocalError as error:
        image.differences.append(replace(wrong, found=error.message))
    else:
        _warn(job, image, text)


def _lost_links(store: Store, layers: Iterable[StoredLayer]) -> Iterator[Difference]:
    """The short links of complete layers that are missing or lead elsewhere."""
    for key in dict.fromkeys(layer.key for layer in layers):
        if store.has_layer(key) and not store.has_link(key):
            link = store.link_path(key)
            there = os.readlink(link) if link.is_symlink() else "nothing"
            yield Difference(f"{LINKS}{link.name}", store.link_target(key), there)


def _layers(image: ProvenImage, database: Database) -> tuple[StoredLayer, ...]:
    record = image.record
    if record is None:
        if image.differences:
            # Nothing proves it, and what its rows name is not signed.
            return ()
        stored = database.find(image.reference)
        return stored.layers if stored else ()
    return recorded_layers(record)


def recorded_layers(record: ImageRecord) -> tuple[StoredLayer, ...]:
    """The layers of an image as its manifest and config name them."""
    names = zip(record.layer_keys, record.manifest.layers, record.config.diff_ids, strict=True)
    return tuple(StoredLayer(key, diff_id, layer.size, layer.media_type) for key, layer, diff_id in names)


def _untrue(layer: StoredLayer, refuting: str) -> Difference:
    return Difference(
        f"config: {layer.digest.short}", f"{layer.diff_id}, as the image says", f"{refuting}, as others say"
    )


@dataclass(slots=True)
class _Wanted:
    """A layer to verify. ``below`` are the names of all layers that lie below it in any image, ``stacks`` where each of
    these lies, nearest first, None if nothing proves the layer to be one of ours."""

    layer: StoredLayer
    images: list[str]
    stacks: list[list[str]] | None
    below: set[str]


def _distinct(
    store: Store, proofs: Iterable[tuple[ProvenImage, tuple[StoredLayer, ...]]], claims: Claims
) -> list[_Wanted]:
    """Each layer once. One of which an image says what is not so is none of that image: others must not suffer."""
    found: dict[LayerKey, _Wanted] = {}
    for image, layers in proofs:
        for position, layer in enumerate(layers):
            if (refuting := claims.refuting(layer)) is not None:
                image.differences.append(_untrue(layer, refuting))
                continue
            wanted = found.setdefault(layer.key, _Wanted(layer, [], None, set()))
            # Where an image has a layer twice, each position has its own stack below.
            if wanted.images[-1:] != [image.reference]:
                wanted.images.append(image.reference)
            if image.record is None:
                continue
            if wanted.stacks is None:
                # What another program says of a layer proves nothing.
                wanted.layer, wanted.stacks = layer, []
            stack = [str(store.layer_dir(x.key)) for x in reversed(layers[:position])]
            wanted.below.update(str(x.key) for x in layers[:position])
            if stack not in wanted.stacks:
                wanted.stacks.append(stack)
    for image, layers in proofs:
        for layer in layers:
            plain = LayerKey(layer.key.digest)
            if plain not in found and store.has_layer(plain) and claims.refuting(layer._replace(key=plain)) is None:
                # Microsandbox, which knows one form of each layer, reads this one. Its base has gone with its image.
                found[plain] = _Wanted(layer._replace(key=plain), [image.reference], [], set())
    return list(found.values())


def _blamed(wanted: Sequence[_Wanted], reports: Sequence[LayerReport]) -> list[LayerReport]:
    """Where a layer does not agree with those below and one of these is damaged, that one is to blame."""
    bad = {report.digest for report in reports if any(damage.kind != DERIVED for damage in report.damages)}
    found = []
    for one, report in zip(wanted, reports, strict=True):
        own = tuple(damage for damage in report.damages if damage.kind != DERIVED)
        if len(own) < len(report.damages) and one.below & bad:
            verdict = Verdict.DAMAGED if own else Verdict.UNCHANGED
            report = replace(report, damages=own, verdict=verdict, suspect=True)
        found.append(report)
    return found
