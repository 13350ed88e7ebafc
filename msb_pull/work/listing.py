"""What the store holds, as plain values: a list of images, and all about one of them. Nothing here uses a network."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import LocalError, NotFoundError, UsageError
from msb_pull.layer.notes import Notes
from msb_pull.store.paths import LayerState
from msb_pull.work.merge import ListedFile, merge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from msb_pull.image.reference import Reference
    from msb_pull.store.index.keys import LayerKey
    from msb_pull.store.index.stored import StoredImage, StoredLayer
    from msb_pull.store.store import Store
    from msb_pull.work.select import Selection

# The states of a layer.
COMPLETE, UNPROVEN, MISSING = "complete", "unproven", "missing"
SORTS = ("name", "size", "pulled")


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One line of the list. ``size`` is compressed bytes; ``digest`` and ``platform`` are None where unknown."""

    reference: str
    digest: str | None
    platform: str | None
    layers: int
    size: int
    pulled_at: datetime
    complete: bool


@dataclass(frozen=True, slots=True)
class InspectedLayer:
    """One layer, bottom first. ``unpacked`` (bytes of its files) and ``entries`` are None without a record.

    ``state`` is ``complete``, ``unproven`` (another program's directory) or ``missing`` (or emptied); ``link``
    is the short name, None where it is missing or leads elsewhere.
    """

    digest: str
    diff_id: str
    media_type: str
    size: int
    unpacked: int | None
    entries: int | None
    state: str
    path: Path
    link: Path | None


@dataclass(frozen=True, slots=True)
class InspectedSignature:
    """A signature that was checked when the image was pulled: by whom, of what, which rule asked for it, and when."""

    signer: str
    signed: str
    rule: str
    checked_at: datetime | None


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """An image with its layers in the manifest's order; ``config`` is the inner object of its configuration.

    ``signatures`` are those that were checked and kept; `verify` checks them again.
    """

    reference: str
    digest: str | None
    platform: str | None
    size: int
    pulled_at: datetime
    source: str | None
    created: str | None
    config: Mapping[str, Any]
    layers: tuple[InspectedLayer, ...]
    signatures: tuple[InspectedSignature, ...] = ()

    def directories(self) -> list[str]:
        """The layer directories, bottom first; raises NotFoundError when one is missing."""
        for layer in self.layers:
            if layer.state not in (COMPLETE, UNPROVEN):
                raise NotFoundError(
                    f"{self.reference}: layer {layer.digest.partition(':')[2][:12]} is missing",
                    hint=f"`msb-pull pull {self.reference}` completes the image",
                )
        return [str(layer.path) for layer in self.layers]

    def lowerdir(self) -> str:
        """The layers for ``fuse-overlayfs -o lowerdir=``, top first, each once.

        By the short links, whose paths need no escaping. The kernel's overlayfs knows neither the whiteouts nor the
        owners of a store. Raises NotFoundError when a layer is missing or has no link, LocalError when no mount option
        can hold them.
        """
        self.directories()
        links = dict.fromkeys(self._link(layer) for layer in reversed(self.layers))
        # Each reader of the option has other rules for escaping; this program cannot know which one it will be.
        if any(character in link for link in links for character in ":,\\"):
            raise LocalError(
                f"{next(iter(links)).rpartition('/')[0]}: this path cannot be used in a mount option",
                cause="it holds a colon, a comma or a backslash",
                hint="keep the store in another folder, or bind-mount it at one",
            )
        return ":".join(links)

    def _link(self, layer: InspectedLayer) -> str:
        if layer.link is not None:
            return str(layer.link)
        foreign = layer.state == UNPROVEN
        force = "--force " if foreign else ""
        raise NotFoundError(
            f"{self.reference}: layer {layer.digest.partition(':')[2][:12]} has no short link",
            cause="another program unpacked it, under a name that mount options cannot hold"
            if foreign
            else "its link is lost or leads elsewhere",
            hint=f"`msb-pull pull {force}{self.reference}` recreates it",
        )


def list_images(store: Store, selection: Selection, sort: str) -> list[ListedImage]:
    """The images that ``selection`` takes; by name, by size (largest first) or by time (newest first)."""
    if sort not in SORTS:
        raise UsageError(f"--sort: {sort!r} is not one of {', '.join(SORTS)}")
    with store.database(create=False) as database:
        stored = database.images()
    known: dict[LayerKey, bool] = {}
    images = [_listed(image, store, known) for image in stored if selection.takes(image, store)]
    images.sort(key=lambda image: image.reference)
    if sort == "size":
        images.sort(key=lambda image: -image.size)
    elif sort == "pulled":
        images.sort(key=lambda image: image.pulled_at, reverse=True)
    return images


def inspect_image(store: Store, reference: Reference) -> InspectedImage:
    """All about one image; raises NotFoundError when the store does not have it."""
    image = find_image(store, reference)
    config = _configuration(image)
    inner = config.get("config")
    return InspectedImage(
        reference=image.reference,
        digest=str(image.digest) if image.digest else None,
        platform=str(image.platform) if image.platform else None,
        size=image.size_bytes,
        pulled_at=image.pulled_at,
        source=image.source,
        created=config.get("created") if isinstance(config.get("created"), str) else None,
        config=inner if isinstance(inner, dict) else {},
        layers=tuple(_inspected(store, layer) for layer in image.layers),
        signatures=_signatures(store, image) if store.has_kept_signature(image.reference) else (),
    )


def list_files(store: Store, reference: Reference) -> list[ListedFile]:
    """The merged tree of an image; raises NotFoundError for an image or a record that is not there, ContentError."""
    image = find_image(store, reference)
    layers = []
    for layer in image.layers:
        record, notes = store.record_path(layer.key), store.notes_path(layer.key)
        if not record.exists() or not notes.exists():
            raise NotFoundError(
                f"{image.reference}: layer {layer.digest.short} has no record",
                cause="another program unpacked it, or it is not complete",
                hint=f"`msb-pull pull --force {image.reference}` recreates it",
            )
        layers.append((str(layer.digest), record, notes))
    return merge(layers)


def find_image(store: Store, reference: Reference) -> StoredImage:
    """The row of one image; raises NotFoundError, with the nearest name as the hint."""
    with store.database(create=False) as database:
        image = database.find(str(reference))
        known = [] if image is not None else database.references()
    if image is not None:
        return image
    near = difflib.get_close_matches(str(reference), known, n=1)
    raise NotFoundError(
        f"{reference}: not in the store",
        hint=f"did you mean {near[0]}?" if near else f"`msb-pull {reference}` pulls it",
    )


def _listed(image: StoredImage, store: Store, known: dict[LayerKey, bool]) -> ListedImage:
    # Images share layers: each is looked at once.
    for layer in image.layers:
        if layer.key not in known:
            known[layer.key] = store.has_directory(layer.key)
    return ListedImage(
        reference=image.reference,
        digest=str(image.digest) if image.digest else None,
        platform=str(image.platform) if image.platform else None,
        layers=len(image.layers),
        size=image.size_bytes,
        pulled_at=image.pulled_at,
        complete=all(known[layer.key] for layer in image.layers),
    )


def _inspected(store: Store, layer: StoredLayer) -> InspectedLayer:
    unpacked = entries = None
    there = store.layer_state(layer.key)
    if there is LayerState.COMPLETE:
        notes = Notes.load(store.notes_path(layer.key))
        unpacked, entries = notes.content_bytes, notes.entries
    return InspectedLayer(
        digest=str(layer.digest),
        diff_id=str(layer.diff_id),
        media_type=layer.media_type,
        size=layer.size,
        unpacked=unpacked,
        entries=entries,
        state={LayerState.COMPLETE: COMPLETE, LayerState.FOREIGN: UNPROVEN}.get(there, MISSING),
        path=store.layer_dir(layer.key),
        link=store.link_path(layer.key) if store.has_link(layer.key) else None,
    )


def _signatures(store: Store, image: StoredImage) -> tuple[InspectedSignature, ...]:
    from msb_pull.trust.statements import Refused
    from msb_pull.work.signed import kept_proof

    try:
        proof = kept_proof(store, image)
    except Refused:
        # `verify` says so.
        return ()
    kept = proof.signatures if proof is not None else ()
    when = proof.checked_at if proof is not None else None
    return tuple(InspectedSignature(x.signer, str(x.signed), x.rule, when) for x in kept)


def _configuration(image: StoredImage) -> Mapping[str, Any]:
    document = json.loads(image.config_bytes or b"{}")
    return document if isinstance(document, dict) else {}
