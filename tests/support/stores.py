"""Images and layers for tests of the store, without a source and without unpacking."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msb_pull.image.digest import Digest
from msb_pull.image.manifest import Manifest, parse_config, parse_document
from msb_pull.image.platform import Platform
from msb_pull.store.index.keys import LayerKey, copy_name
from msb_pull.store.index.rows import TIME, ImageRecord
from tests.support.imagebuild import LAYER_TYPES, OCI_CONFIG, OCI_MANIFEST, encode

if TYPE_CHECKING:
    from pathlib import Path

    from msb_pull.store.store import Store

NEVER = threading.Event()


def digest(name: str) -> Digest:
    """The digest of the made-up blob with this name."""
    return Digest.of(name.encode())


def diff_id(name: str) -> Digest:
    return Digest.of(b"tar of " + name.encode())


def record(reference: str, layers: str, *, config: dict[str, Any] | None = None, **manifest: Any) -> ImageRecord:
    """An image of one-letter layers, bottom first: ``record("localhost/a:1", "xyx")``."""
    document = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id(name)) for name in layers]},
    } | (config or {})
    config_bytes = encode(document)
    about = {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config_bytes)), "size": len(config_bytes)}
    described = [
        {"mediaType": LAYER_TYPES["gzip"], "digest": str(digest(name)), "size": 1000 + ord(name)} for name in layers
    ]
    manifest_bytes = encode(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": about, "layers": described} | manifest
    )
    parsed = parse_document(manifest_bytes, None, reference)
    assert isinstance(parsed, Manifest)
    return ImageRecord(
        reference=reference,
        manifest_digest=Digest.of(manifest_bytes),
        platform=Platform("linux", "amd64"),
        manifest_bytes=manifest_bytes,
        manifest=parsed,
        config_bytes=config_bytes,
        config=parse_config(config_bytes, parsed, reference),
        source="registry",
    )


def publish(store: Store, name: str, content: str = "content", *, replace: bool = False) -> Path:
    """Publishes a made-up layer that holds the file ``f``."""
    key = LayerKey(digest(name))
    with store.staging(key) as place:
        fill(place, content)
        return store.publish(place, key, replace=replace)


def fill(place, content: str = "content") -> None:
    (place.path / "f").write_text(content)
    place.record.write_bytes(b"record of " + content.encode())
    place.notes.write_text(
        json.dumps({"version": 1, "diff_id": "x", "tar_bytes": 1, "entries": 1, "content_bytes": 7, "chain": ""})
    )


def pull(store: Store, reference: str, layers: str) -> ImageRecord:
    """What a pull leaves behind."""
    for name in layers:
        if not store.has_layer(digest(name)):
            publish(store, name)
    made = record(reference, layers)
    with store.database(create=True) as database:
        database.record(made)
    return made


def set_used(store: Store, reference: str, when: int) -> None:
    """Makes all that tells of the last use of an image say this time, in seconds since 1970."""
    text = datetime.fromtimestamp(when, UTC).strftime(TIME)
    with sql(store.database_path) as run:
        run.execute("UPDATE images SET last_used_at = ? WHERE reference = ?", (text, reference))
        run.execute("UPDATE msb_pull_images SET pulled_at = ? WHERE reference = ?", (text, reference))
    with store.database(create=True) as database:
        database.copy_again(reference)
    os.utime(store.homes.copies / copy_name(reference), (when, when))


def names(digests) -> str:
    """The one-letter names of layers, given digests or what ``str`` makes of them."""
    known = {str(digest(chr(code))): chr(code) for code in range(ord("A"), ord("z") + 1)}
    return "".join(known[str(value).partition("+")[0]] for value in digests)


@contextmanager
def sql(path: Path):
    """A plain connection, as another program opens one; foreign keys on, as sqlx does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection


def microsandbox_pull(path: Path, reference: str, layers: str) -> None:
    """The rows that Microsandbox writes for an image, never removing old ones."""
    with sql(path) as run:
        run.execute(
            "INSERT INTO images (reference, size_bytes) VALUES (?, 1) ON CONFLICT DO UPDATE SET size_bytes = 1",
            (reference,),
        )
        (image,) = run.execute("SELECT id FROM images WHERE reference = ?", (reference,)).fetchone()
        manifest = run.execute(
            "INSERT INTO manifests (image_id, schema_version, media_type) VALUES (?, 2, 'x')", (image,)
        ).lastrowid
        run.execute(
            "INSERT INTO configs (manifest_id, media_type, architecture, os) VALUES (?, 'x', 'arm64', 'linux')",
            (manifest,),
        )
        for name in layers:
            run.execute(
                "INSERT INTO layers (media_type, digest, diff_id, size_bytes) VALUES ('t', ?, ?, 5) "
                "ON CONFLICT(digest) DO NOTHING",
                (str(digest(name)), str(diff_id(name))),
            )
            (layer,) = run.execute("SELECT id FROM layers WHERE digest = ?", (str(digest(name)),)).fetchone()
            run.execute(
                "INSERT OR IGNORE INTO manifest_layers (manifest_id, layer_id) VALUES (?, ?)", (manifest, layer)
            )


def stacked(path: Path, reference: str) -> str:
    """The layers of an image in the order in which Microsandbox reads them."""
    with sql(path) as run:
        rows = run.execute(
            "SELECT l.digest FROM layers l JOIN manifest_layers ml ON l.id = ml.layer_id "
            "JOIN manifests m ON m.id = ml.manifest_id JOIN images i ON i.id = m.image_id "
            "WHERE i.reference = ? ORDER BY l.id",
            (reference,),
        ).fetchall()
    return names(text for (text,) in rows)
