"""Reads images and their layers from the rows, ours and those that Microsandbox wrote."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from msb_pull.ground.errors import LocalError
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.platform import Platform
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.index.rows import stored_platform

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.store.index.layer_rows import Run

# A row of ours counts while the manifest it was written with is still the image's: Microsandbox replaces manifests
# under the same reference and leaves our table alone.
_SELECT = """SELECT i.id, i.reference, i.size_bytes, coalesce(i.modified_at, i.created_at), o.manifest_digest,
    o.platform, o.manifest, o.config, o.layers_json, o.source, o.pulled_at, i.last_used_at,
    EXISTS (SELECT 1 FROM manifests m WHERE m.image_id = i.id AND m.id IS NOT o.manifest_id)
    FROM images i LEFT JOIN msb_pull_images o ON o.reference = i.reference AND o.image_id = i.id
    AND EXISTS (SELECT 1 FROM manifests m WHERE m.id = o.manifest_id AND m.image_id = i.id)"""
_LINKED = """SELECT DISTINCT l.digest, l.diff_id, l.size_bytes, l.media_type FROM layers l
    JOIN manifest_layers ml ON ml.layer_id = l.id JOIN manifests m ON m.id = ml.manifest_id
    WHERE m.image_id = ? ORDER BY l.id"""
_DIGESTS = """SELECT DISTINCT l.digest FROM layers l JOIN manifest_layers ml ON ml.layer_id = l.id
    JOIN manifests m ON m.id = ml.manifest_id JOIN images i ON i.id = m.image_id WHERE i.reference = ?"""
_REACHED = "SELECT l.digest FROM layers l WHERE l.id IN (SELECT layer_id FROM manifest_layers)"
_OWN = "SELECT layers_json FROM msb_pull_images WHERE reference IN (SELECT reference FROM images)"
_CONFIG_PLATFORM = """SELECT c.os, c.architecture, c.os_variant FROM configs c
    JOIN manifests m ON m.id = c.manifest_id WHERE m.image_id = ? ORDER BY c.id LIMIT 1"""


class StoredLayer(NamedTuple):
    """A layer as recorded; ``size`` is compressed bytes, ``key`` its name in the store."""

    key: LayerKey
    diff_id: Digest
    size: int
    media_type: str

    @property
    def digest(self) -> Digest:
        """The compressed blob's digest."""
        return self.key.digest


class StoredImage(NamedTuple):
    """An image as recorded, layers bottom first with repeats. Microsandbox's own images lack the optional facts.

    ``shared`` says that another program has rows for the image, all of them or some beside ours. ``used_at`` is the
    last use that the rows know of, if only its pull.
    """

    reference: str
    digest: Digest | None
    platform: Platform | None
    manifest_bytes: bytes | None
    config_bytes: bytes | None
    layers: tuple[StoredLayer, ...]
    size_bytes: int
    pulled_at: datetime
    used_at: datetime
    source: str | None
    shared: bool = False


def find_image(run: Run, reference: str) -> StoredImage | None:
    """The image recorded under a canonical reference; raises LocalError when its rows make no sense."""
    rows = run(f"{_SELECT} WHERE i.reference = ?", (reference,)).fetchall()
    return _image(run, rows[0], {}) if rows else None


def read_images(run: Run, warn: Callable[[str], None]) -> list[StoredImage]:
    """All images by reference; ``warn`` hears of those whose rows make no sense, which are left out."""
    found = []
    known: dict[str, tuple[StoredLayer, ...]] = {}
    for row in run(f"{_SELECT} ORDER BY i.reference").fetchall():
        try:
            found.append(_image(run, row, known))
        except LocalError as error:
            warn(error.message)
    return found


def references(run: Run) -> list[str]:
    """The names of all images, without the cost of their facts."""
    return [text for (text,) in run("SELECT reference FROM images ORDER BY reference").fetchall()]


def reached(run: Run) -> set[str]:
    """The names in the store of all layers that any image reaches, through whichever program's rows."""
    found = {text for (text,) in run(_REACHED)}
    for (listed,) in run(_OWN):
        found.update(layer["key"] for layer in json.loads(listed))
    return found


def linked_digests(run: Run, reference: str) -> set[str]:
    """The digests of all layers that the tables of Microsandbox link to an image."""
    return {digest for (digest,) in run(_DIGESTS, (reference,))}


def all_digests(run: Run, reference: str) -> set[str]:
    """The digests of all layers of an image, through whichever program's rows."""
    found = linked_digests(run, reference)
    for (listed,) in run("SELECT layers_json FROM msb_pull_images WHERE reference = ?", (reference,)):
        found.update(layer["key"].partition("+")[0] for layer in json.loads(listed))
    return found


def _image(run: Run, row: tuple[Any, ...], known: dict[str, tuple[StoredLayer, ...]]) -> StoredImage:
    image_id, reference, size, changed, digest, platform, manifest, config, listed, source, pulled, used, shared = row
    try:
        pulled_at = _parse_time(pulled or changed)
        if listed is None:
            layers = _linked_layers(run, image_id)
        elif (layers := known.get(listed, ())) == ():
            layers = known[listed] = _own_layers(listed)
        return StoredImage(
            reference=reference,
            digest=Digest.parse(digest) if digest else None,
            platform=stored_platform(platform) if platform else _config_platform(run, image_id),
            manifest_bytes=manifest,
            config_bytes=config,
            layers=layers,
            size_bytes=size,
            pulled_at=pulled_at,
            used_at=max(pulled_at, _parse_time(used)),
            source=source,
            shared=bool(shared),
        )
    except (InvalidDigest, ValueError, KeyError, TypeError) as error:
        raise LocalError(f"oci.db: the rows of {reference!r} are damaged: {error}") from None


def _own_layers(listed: str) -> tuple[StoredLayer, ...]:
    return tuple(
        StoredLayer(LayerKey.parse(x["key"]), Digest.parse(x["diff_id"]), x["size"], x["media_type"])
        for x in json.loads(listed)
    )


def _linked_layers(run: Run, image_id: int) -> tuple[StoredLayer, ...]:
    return tuple(
        StoredLayer(LayerKey(Digest.parse(digest)), Digest.parse(diff_id), size, media_type)
        for digest, diff_id, size, media_type in run(_LINKED, (image_id,))
    )


def _config_platform(run: Run, image_id: int) -> Platform | None:
    row = run(_CONFIG_PLATFORM, (image_id,)).fetchone()
    return Platform(row[0], row[1], row[2] or None).normalized() if row and row[0] and row[1] else None


def _parse_time(text: str | None) -> datetime:
    try:
        return datetime.fromisoformat(text or "").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
