"""Writes the rows of one image, as Microsandbox reads them."""

from __future__ import annotations

import json
import re
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from msb_pull.image.platform import Platform
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.index.layer_rows import place_layers

if TYPE_CHECKING:
    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import ImageConfig, Manifest
    from msb_pull.store.index.layer_rows import Run

# The only form of time that Microsandbox parses.
TIME = "%Y-%m-%d %H:%M:%S"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class ImageRecord(NamedTuple):
    """All that is recorded of one pulled image.

    ``keys`` name its layers in the store, in the manifest's order (empty: by their digests); ``pulled_at`` None is now.
    """

    reference: str
    manifest_digest: Digest
    platform: Platform
    manifest_bytes: bytes
    manifest: Manifest
    config_bytes: bytes
    config: ImageConfig
    source: str
    keys: tuple[LayerKey, ...] = ()
    pulled_at: datetime | None = None

    @property
    def layer_keys(self) -> tuple[LayerKey, ...]:
        """The names of all layers in the store, in the manifest's order."""
        return self.keys or tuple(LayerKey(layer.digest) for layer in self.manifest.layers)


def write_image(run: Run, image: ImageRecord) -> bool:
    """Writes image, manifest, config, layers and links with ``run``, inside the caller's transaction.

    The reference's earlier manifests go: Microsandbox would read the layers of all of them. Returns False when no order
    of rows lets Microsandbox stack the layers of this image and of all others correctly.
    """
    size = sum({x.digest: x.size for x in image.manifest.layers}.values()) + image.manifest.config.size
    # Rows that are written again must not make an image look as if it had just been used.
    image_id = _upsert_image(run, image.reference, size, image.pulled_at or datetime.now(UTC))
    run("DELETE FROM manifests WHERE image_id = ?", (image_id,))
    manifest_id = _insert_manifest(run, image_id, image.manifest)
    _insert_config(run, manifest_id, image)
    ids, ordered = place_layers(run, image.manifest.layers, image.config.diff_ids)
    for layer_id in ids:
        run("INSERT INTO manifest_layers (manifest_id, layer_id) VALUES (?, ?)", (manifest_id, layer_id))
    _insert_own(run, image, image_id, manifest_id)
    return ordered


def stored_platform(text: str) -> Platform:
    """The platform that ``str`` was recorded of, whatever odd words an image used for it."""
    system, _, rest = text.partition("/")
    architecture, _, variant = rest.partition("/")
    return Platform(system, architecture, variant or None)


def _upsert_image(run: Run, reference: str, size: int, used_at: datetime) -> int:
    run(
        "INSERT INTO images (reference, size_bytes, last_used_at) VALUES (?, ?, ?) "
        "ON CONFLICT(reference) DO UPDATE SET "
        "size_bytes = excluded.size_bytes, last_used_at = excluded.last_used_at, modified_at = CURRENT_TIMESTAMP",
        (reference, size, used_at.strftime(TIME)),
    )
    with closing(run("SELECT id FROM images WHERE reference = ?", (reference,))) as rows:
        return int(rows.fetchone()[0])


def _insert_manifest(run: Run, image_id: int, manifest: Manifest) -> int:
    annotations = json.dumps(dict(manifest.annotations)) if manifest.annotations else None
    cursor = run(
        "INSERT INTO manifests (image_id, schema_version, media_type, annotations_json) VALUES (?, ?, ?, ?)",
        (image_id, manifest.schema_version, manifest.media_type, annotations),
    )
    return int(cursor.lastrowid or 0)


def _insert_config(run: Run, manifest_id: int, image: ImageRecord) -> None:
    raw, inner = image.config.raw, image.config.config
    rootfs = raw.get("rootfs")
    values = {
        "manifest_id": manifest_id,
        "media_type": image.manifest.config.media_type,
        "created": _rfc3339(image.config.created),
        "architecture": image.config.architecture,
        "os": image.config.os,
        "os_variant": image.config.variant,
        "config_env_json": _texts(inner.get("Env")),
        "config_cmd_json": _texts(inner.get("Cmd")),
        "config_working_dir": _text(inner.get("WorkingDir")),
        "config_entrypoint_json": _texts(inner.get("Entrypoint")),
        "config_volumes_json": _json(inner.get("Volumes"), dict),
        "config_exposed_ports_json": _json(inner.get("ExposedPorts"), dict),
        "config_user": _text(inner.get("User")),
        "rootfs_type": _text(rootfs.get("type")) if isinstance(rootfs, dict) else None,
        "rootfs_diff_ids_json": _texts([str(diff_id) for diff_id in image.config.diff_ids]),
        "history_json": _json(raw.get("history"), list),
    }
    columns = ", ".join(values)
    run(f"INSERT INTO configs ({columns}) VALUES ({', '.join('?' * len(values))})", tuple(values.values()))


def _insert_own(run: Run, image: ImageRecord, image_id: int, manifest_id: int) -> None:
    layers = [
        {"key": str(key), "diff_id": str(diff_id), "size": x.size, "media_type": x.media_type}
        for key, x, diff_id in zip(image.layer_keys, image.manifest.layers, image.config.diff_ids, strict=True)
    ]
    run(
        "INSERT OR REPLACE INTO msb_pull_images (reference, image_id, manifest_id, manifest_digest, platform, "
        "manifest, config, layers_json, source, pulled_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            image.reference,
            image_id,
            manifest_id,
            str(image.manifest_digest),
            str(image.platform),
            image.manifest_bytes,
            image.config_bytes,
            json.dumps(layers),
            image.source,
            (image.pulled_at or datetime.now(UTC)).strftime(TIME),
        ),
    )


def _rfc3339(created: str | None) -> str | None:
    """The config's own text if it is a time that Microsandbox can parse, else nothing (it would abort)."""
    if not created or not _RFC3339.fullmatch(created):
        return None
    try:
        datetime.fromisoformat(created)
    except ValueError:
        return None
    return created


def _texts(value: Any) -> str | None:
    """JSON of a list of texts. Microsandbox parses it as just that, so anything else is left out."""
    return json.dumps(value) if isinstance(value, list) and all(isinstance(x, str) for x in value) else None


def _json(value: Any, kind: type) -> str | None:
    return json.dumps(value) if isinstance(value, kind) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
