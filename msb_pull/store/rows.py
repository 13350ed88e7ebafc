"""Writes the rows of one image, as Microsandbox reads them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import ImageConfig, Manifest
    from msb_pull.image.platform import Platform
    from msb_pull.store.keys import LayerKey

# The only form of time that Microsandbox parses.
TIME = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """All that is recorded of one pulled image; ``keys`` name its layers in the store, in the manifest's order."""

    reference: str
    manifest_digest: Digest
    platform: Platform
    manifest_bytes: bytes
    manifest: Manifest
    config_bytes: bytes
    config: ImageConfig
    source: str
    keys: tuple[LayerKey, ...]


def write_image(run: Callable[..., sqlite3.Cursor], image: ImageRecord) -> None:
    """Writes image, manifest, config, layers and links with ``run``, inside the caller's transaction.

    The manifests that the reference had before go: Microsandbox would read the layers of all of them.
    """
    size = sum({x.digest: x.size for x in image.manifest.layers}.values()) + image.manifest.config.size
    image_id = _upsert_image(run, image.reference, size)
    run("DELETE FROM manifests WHERE image_id = ?", (image_id,))
    manifest_id = _insert_manifest(run, image_id, image.manifest)
    _insert_config(run, manifest_id, image)
    for layer_id in _layer_ids(run, image):
        run("INSERT INTO manifest_layers (manifest_id, layer_id) VALUES (?, ?)", (manifest_id, layer_id))
    _insert_own(run, image)


def _upsert_image(run: Callable[..., sqlite3.Cursor], reference: str, size: int) -> int:
    run(
        "INSERT INTO images (reference, size_bytes, last_used_at) VALUES (?, ?, ?) "
        "ON CONFLICT(reference) DO UPDATE SET "
        "size_bytes = excluded.size_bytes, last_used_at = excluded.last_used_at, modified_at = CURRENT_TIMESTAMP",
        (reference, size, _now()),
    )
    with closing(run("SELECT id FROM images WHERE reference = ?", (reference,))) as rows:
        return int(rows.fetchone()[0])


def _insert_manifest(run: Callable[..., sqlite3.Cursor], image_id: int, manifest: Manifest) -> int:
    annotations = json.dumps(dict(manifest.annotations)) if manifest.annotations else None
    cursor = run(
        "INSERT INTO manifests (image_id, schema_version, media_type, annotations_json) VALUES (?, ?, ?, ?)",
        (image_id, manifest.schema_version, manifest.media_type, annotations),
    )
    return int(cursor.lastrowid or 0)


def _insert_config(run: Callable[..., sqlite3.Cursor], manifest_id: int, image: ImageRecord) -> None:
    raw, inner = image.config.raw, image.config.config
    rootfs = raw.get("rootfs")
    values = {
        "manifest_id": manifest_id,
        "media_type": image.manifest.config.media_type,
        "created": _rfc3339(image.config.created),
        "architecture": image.config.architecture,
        "os": image.config.os,
        "os_variant": image.config.variant,
        "config_env_json": _json(inner.get("Env")),
        "config_cmd_json": _json(inner.get("Cmd")),
        "config_working_dir": _text(inner.get("WorkingDir")),
        "config_entrypoint_json": _json(inner.get("Entrypoint")),
        "config_volumes_json": _json(inner.get("Volumes")),
        "config_exposed_ports_json": _json(inner.get("ExposedPorts")),
        "config_user": _text(inner.get("User")),
        "rootfs_type": _text(rootfs.get("type")) if isinstance(rootfs, dict) else None,
        "rootfs_diff_ids_json": _json([str(diff_id) for diff_id in image.config.diff_ids]),
        "history_json": _json(raw.get("history")),
    }
    columns = ", ".join(values)
    run(f"INSERT INTO configs ({columns}) VALUES ({', '.join('?' * len(values))})", tuple(values.values()))


def _layer_ids(run: Callable[..., sqlite3.Cursor], image: ImageRecord) -> list[int]:
    """The rows of the image's layers, each once. Microsandbox orders layers by these ids, so they must rise.

    New rows are inserted bottom first. Where older rows of shared layers stand the other way round, the image's layers
    from there on get new ids, as long as no other image needs the old order.
    """
    ids: list[int] = []
    seen: set[Digest] = set()
    for layer, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True):
        if layer.digest in seen:
            continue
        seen.add(layer.digest)
        row = run("SELECT id FROM layers WHERE digest = ?", (str(layer.digest),)).fetchone()
        if row is None:
            cursor = run(
                "INSERT INTO layers (media_type, digest, diff_id, size_bytes) VALUES (?, ?, ?, ?)",
                (layer.media_type, str(layer.digest), str(diff_id), layer.size),
            )
            ids.append(int(cursor.lastrowid or 0))
            continue
        ids.append(_raised(run, int(row[0])) if ids and row[0] < ids[-1] else int(row[0]))
    return ids


def _raised(run: Callable[..., sqlite3.Cursor], layer_id: int) -> int:
    """Moves a layer's row to the end of the table, links included, unless it lies below another layer elsewhere."""
    above = run(
        "SELECT 1 FROM manifest_layers mine JOIN manifest_layers other ON other.manifest_id = mine.manifest_id "
        "WHERE mine.layer_id = ? AND other.layer_id > mine.layer_id LIMIT 1",
        (layer_id,),
    ).fetchone()
    if above is not None:
        return layer_id
    columns = "media_type, diff_id, size_bytes, created_at, modified_at"
    digest = run("SELECT digest FROM layers WHERE id = ?", (layer_id,)).fetchone()[0]
    run("UPDATE layers SET digest = digest || '#' WHERE id = ?", (layer_id,))
    cursor = run(
        f"INSERT INTO layers (digest, {columns}) SELECT ?, {columns} FROM layers WHERE id = ?", (digest, layer_id)
    )
    new = int(cursor.lastrowid or 0)
    run("UPDATE manifest_layers SET layer_id = ? WHERE layer_id = ?", (new, layer_id))
    run("DELETE FROM layers WHERE id = ?", (layer_id,))
    return new


def _insert_own(run: Callable[..., sqlite3.Cursor], image: ImageRecord) -> None:
    layers = [
        {"key": str(key), "diff_id": str(diff_id), "size": x.size, "media_type": x.media_type}
        for key, x, diff_id in zip(image.keys, image.manifest.layers, image.config.diff_ids, strict=True)
    ]
    run(
        "INSERT OR REPLACE INTO msb_pull_images (reference, manifest_digest, platform, manifest, config, layers_json, "
        "source, pulled_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            image.reference,
            str(image.manifest_digest),
            str(image.platform),
            image.manifest_bytes,
            image.config_bytes,
            json.dumps(layers),
            image.source,
            _now(),
        ),
    )


def _now() -> str:
    return datetime.now(UTC).strftime(TIME)


def _rfc3339(created: str | None) -> str | None:
    """The config's own text if it is a time that Microsandbox can parse, else nothing (it would abort)."""
    try:
        parsed = datetime.fromisoformat(created or "")
    except ValueError:
        return None
    return created if parsed.tzinfo is not None else None


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
