"""Checks what is recorded of an image against the one thing that is trusted: the digest of its manifest."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import raise_if_exhausted
from msb_pull.store.index.backup import UNSOUND, proven_record
from msb_pull.store.index.connect import in_memory
from msb_pull.store.index.layer_rows import each_once, keeps_another_order
from msb_pull.store.index.rows import write_image
from msb_pull.store.index.stored import linked_digests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msb_pull.store.index.backup import Backup
    from msb_pull.store.index.layer_rows import Run
    from msb_pull.store.index.rows import ImageRecord

_OWN = """SELECT o.manifest_digest, o.manifest, o.config, o.platform, o.layers_json, o.source, o.pulled_at,
    o.image_id = i.id AND EXISTS (SELECT 1 FROM manifests m WHERE m.id = o.manifest_id AND m.image_id = i.id)
    FROM msb_pull_images o JOIN images i ON i.reference = o.reference WHERE o.reference = ?"""
_MINE = "JOIN msb_pull_images o ON o.manifest_id = {} WHERE o.reference = ?"
_LAYERS = f"""SELECT DISTINCT l.digest, l.diff_id, l.size_bytes FROM layers l
    JOIN manifest_layers ml ON ml.layer_id = l.id {_MINE.format("ml.manifest_id")} ORDER BY l.id"""
# Column by column what Microsandbox reads, but for numbers of rows and times.
_COMPARED = {
    "manifests": f"SELECT m.schema_version, m.media_type, m.annotations_json FROM manifests m {_MINE.format('m.id')}",
    "configs": "SELECT c.media_type, c.created, c.architecture, c.os, c.os_variant, c.config_env_json, "
    "c.config_cmd_json, c.config_working_dir, c.config_entrypoint_json, c.config_volumes_json, "
    "c.config_exposed_ports_json, c.config_user, c.rootfs_type, c.rootfs_diff_ids_json, c.history_json "
    f"FROM configs c {_MINE.format('c.manifest_id')}",
    "msb_pull_images": "SELECT layers_json FROM msb_pull_images WHERE reference = ?",
}
_SIZE = "SELECT size_bytes FROM images WHERE reference = ?"
_SHARED = """SELECT count(*) FROM manifests m JOIN images i ON i.id = m.image_id WHERE i.reference = ?"""
_SHOWN = 200


@dataclass(slots=True)
class Difference:
    """Where a record differs from what the manifest's digest proves; ``expected`` and ``found`` are for people."""

    place: str
    expected: str
    found: str


@dataclass(slots=True)
class ProvenImage:
    """An image and what proves it: ``record`` is None of one that only another program knows, or that nothing proves.

    While the rows are sound, ``stale`` says that the copy beside the layers is missing or another one, ``disordered``
    that those of layers stand in another order though no other image needs it. ``taken_over`` says that another program
    has recorded the same layers again.
    """

    reference: str
    record: ImageRecord | None = None
    differences: list[Difference] = field(default_factory=list)
    stale: bool = False
    disordered: bool = False
    taken_over: bool = False


def prove_image(run: Run, backup: Backup, reference: str) -> ProvenImage:
    """Checks the rows and the copy of one image against its manifest's digest."""
    image = ProvenImage(reference)
    copy, copied = _copy(backup, reference)
    with closing(run(_OWN, (reference,))) as rows:
        row = rows.fetchone()
    if row is None or not row[7]:
        linked = linked_digests(run, reference)
        # Where it has other layers, another program has pulled another version, of which nothing is known.
        if copy is not None and linked in (set(), {str(layer.digest) for layer in copy.manifest.layers}):
            image.record, image.taken_over = copy, row is not None and bool(linked)
            if not image.taken_over:
                image.differences.append(Difference("oci.db: msb_pull_images", "a row of the image", "nothing"))
        return image
    try:
        image.record = proven_record(
            reference,
            digest=row[0],
            manifest=row[1],
            config=row[2],
            platform=row[3],
            keys=[layer["key"] for layer in json.loads(row[4])],
            source=row[5],
            pulled_at=row[6],
        )
    except UNSOUND as error:
        image.record = copy
        why = (str(error) or type(error).__name__)[:_SHOWN]
        image.differences.append(Difference("oci.db: msb_pull_images", "what its manifest's digest proves", why))
        return image
    image.differences += _rows(run, image.record)
    image.disordered = not image.differences and _disordered(run, image.record)
    image.stale = not copied or copy != image.record
    return image


def _copy(backup: Backup, reference: str) -> tuple[ImageRecord | None, bool]:
    """The copy beside the layers if it proves itself, and whether one is there."""
    try:
        copy = backup.find(reference)
    except (*UNSOUND, OSError) as error:
        raise_if_exhausted(error)
        return None, False
    return copy, copy is not None


def _rows(run: Run, image: ImageRecord) -> Iterator[Difference]:
    """Where the rows are not those that would be written of this image."""
    with closing(in_memory()) as memory:
        write_image(memory.execute, image)
        selects = dict(_COMPARED)
        if run(_SHARED, (image.reference,)).fetchone() == (1,):
            selects["images"] = _SIZE
        for table, select in selects.items():
            right = memory.execute(select, (image.reference,)).fetchall()
            found = run(select, (image.reference,)).fetchall()
            if right != found:
                yield Difference(f"oci.db: {table}", *_first_difference(right, found))
        right = memory.execute(_LAYERS, (image.reference,)).fetchall()
        found = run(_LAYERS, (image.reference,)).fetchall()
    if sorted(right) != sorted(found):
        yield Difference("oci.db: layers", *_first_difference(sorted(right), sorted(found)))


def _disordered(run: Run, image: ImageRecord) -> bool:
    wanted = each_once(str(layer.digest) for layer in image.manifest.layers)
    found = [digest for digest, *_ in run(_LAYERS, (image.reference,))]
    return found != wanted and not keeps_another_order(run, wanted)


def _first_difference(right: list[Any], found: list[Any]) -> tuple[str, str]:
    if len(right) == len(found):
        for one, other in zip(right, found, strict=True):
            for expected, there in zip(one, other, strict=True):
                if expected != there:
                    return repr(expected)[:_SHOWN], repr(there)[:_SHOWN]
    return f"{len(right)} rows", f"{len(found)} rows"
