"""The tables of ``oci.db`` as Microsandbox 0.2.x makes them, the rows that tell it so, and our own table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

_STAMPS = "created_at DATETIME DEFAULT CURRENT_TIMESTAMP, modified_at DATETIME DEFAULT CURRENT_TIMESTAMP"

TABLES = (
    f"""CREATE TABLE images (
        id INTEGER PRIMARY KEY, reference TEXT NOT NULL UNIQUE, size_bytes INTEGER NOT NULL,
        last_used_at DATETIME, {_STAMPS})""",
    f"""CREATE TABLE manifests (
        id INTEGER PRIMARY KEY, image_id INTEGER NOT NULL, schema_version INTEGER NOT NULL,
        media_type TEXT NOT NULL, annotations_json TEXT, {_STAMPS},
        FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE CASCADE)""",
    f"""CREATE TABLE configs (
        id INTEGER PRIMARY KEY, manifest_id INTEGER NOT NULL, media_type TEXT NOT NULL, created DATETIME,
        architecture TEXT, os TEXT, os_variant TEXT, config_env_json TEXT, config_cmd_json TEXT,
        config_working_dir TEXT, config_entrypoint_json TEXT, config_volumes_json TEXT,
        config_exposed_ports_json TEXT, config_user TEXT, rootfs_type TEXT, rootfs_diff_ids_json TEXT,
        history_json TEXT, {_STAMPS},
        FOREIGN KEY (manifest_id) REFERENCES manifests(id) ON DELETE CASCADE)""",
    f"""CREATE TABLE layers (
        id INTEGER PRIMARY KEY, media_type TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, diff_id TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, {_STAMPS})""",
    f"""CREATE TABLE manifest_layers (
        id INTEGER PRIMARY KEY, manifest_id INTEGER NOT NULL, layer_id INTEGER NOT NULL, {_STAMPS},
        FOREIGN KEY (manifest_id) REFERENCES manifests(id) ON DELETE CASCADE,
        FOREIGN KEY (layer_id) REFERENCES layers(id) ON DELETE CASCADE,
        UNIQUE(manifest_id, layer_id))""",
    "CREATE INDEX idx_images_reference ON images(reference)",
    "CREATE INDEX idx_manifests_image_id ON manifests(image_id)",
    "CREATE INDEX idx_configs_manifest_id ON configs(manifest_id)",
    "CREATE INDEX idx_layers_digest ON layers(digest)",
    "CREATE INDEX idx_layers_diff_id ON layers(diff_id)",
    "CREATE INDEX idx_manifest_layers_manifest_id ON manifest_layers(manifest_id)",
    "CREATE INDEX idx_manifest_layers_layer_id ON manifest_layers(layer_id)",
    """CREATE TABLE _sqlx_migrations (
        version BIGINT PRIMARY KEY, description TEXT NOT NULL,
        installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
        checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)""",
)

# Without these rows Microsandbox would run its migrations, of which the last empties two tables.
MIGRATIONS = (
    (
        20250128014900,
        "create images",
        "814ff3d7a0e89d700ff3e7a1d415b10bd929a82bf753fc3a14721e0782e4f729a695732d30f8070078684f31c973022a",
    ),
    (
        20250128014901,
        "create indexes",
        "3d4cc01f05acf3309133c3b53454aaba0b0dabd0270ced11f340f8f05184004d2d2a92dc4d9cc12daaa58bc0a64fef23",
    ),
    (
        20250128014902,
        "create manifests",
        "8a8ba7f88ecc90924d671fc55c9d55cbc36487daa90e12264738dead119bbdf1c81aa4225a3e620c4dc769f5b37e3ba3",
    ),
    (
        20250128014903,
        "create configs",
        "0e4e43d8b349435864fe6ea863627f54610eaa96e3be90e87cb36c8fa79e3d808e9d0761ac0ad4133ae5f7be8711a14e",
    ),
    (
        20250128014904,
        "create layers",
        "190a42be2eaf1bf60acb36dbd0b15315598d095660bf3cd11fc88ae6cb1423c307814a6492e6f9f0ce7b37b4a6698600",
    ),
    (
        20250128014905,
        "create manifest layers",
        "1638e9af3c99cb92641a9e610f207859a1c105632a644832ababc062dda986be2b72d3610af7cc749a541b268166990c",
    ),
    (
        20251117071723,
        "pull from any registry changes",
        "3cd478cae9f9a28417314c52dd5c448537635bd9625c96a23cabfdbb85aab974d6a4e3639dae7c4d0fefab7ac8e86cf5",
    ),
)

# Columns that a database made by another program must have.
REQUIRED = {
    "images": {"id", "reference", "size_bytes", "last_used_at", "created_at", "modified_at"},
    "manifests": {"id", "image_id", "schema_version", "media_type", "annotations_json"},
    "configs": {
        "manifest_id", "media_type", "created", "architecture", "os", "os_variant", "config_env_json",
        "config_cmd_json", "config_working_dir", "config_entrypoint_json", "config_volumes_json",
        "config_exposed_ports_json", "config_user", "rootfs_type", "rootfs_diff_ids_json", "history_json",
    },
    "layers": {"id", "media_type", "digest", "diff_id", "size_bytes", "modified_at"},
    "manifest_layers": {"manifest_id", "layer_id"},
}  # fmt: skip

# ``image_id`` goes with an image that another program removes; ``manifest_id`` tells whether the manifest that we wrote
# is still the one the image has. ``layers_json`` lists all layers in the manifest's order, repeats included.
OWN_TABLE = """CREATE TABLE IF NOT EXISTS msb_pull_images (
    reference TEXT PRIMARY KEY, image_id INTEGER NOT NULL, manifest_id INTEGER NOT NULL,
    manifest_digest TEXT NOT NULL, platform TEXT NOT NULL, manifest BLOB NOT NULL, config BLOB NOT NULL,
    layers_json TEXT NOT NULL, source TEXT NOT NULL, pulled_at DATETIME NOT NULL,
    FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE CASCADE)"""
OWN_COLUMNS = {
    "reference", "image_id", "manifest_id", "manifest_digest", "platform", "manifest", "config", "layers_json",
    "source", "pulled_at",
}  # fmt: skip


def create_tables(connection: sqlite3.Connection) -> None:
    for statement in (*TABLES, OWN_TABLE):
        connection.execute(statement)
    connection.executemany(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (?, ?, 1, ?, 0)",
        [(version, description, bytes.fromhex(checksum)) for version, description, checksum in MIGRATIONS],
    )


def tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def check_tables(path: Path, connection: sqlite3.Connection) -> None:
    """Refuses, without having changed it, a database whose tables are not those of Microsandbox."""
    found = tables(connection)
    for table, columns in REQUIRED.items():
        missing = columns - {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if missing:
            raise LocalError(
                f"{path}: this database belongs to another program or to an unknown version",
                cause=f"table {table} lacks {', '.join(sorted(missing))}",
                hint="choose another place with --home",
            )
    newer: set[object] = set()
    if "_sqlx_migrations" in found:
        known = {version for version, _, _ in MIGRATIONS}
        newer = {version for (version,) in connection.execute("SELECT version FROM _sqlx_migrations")} - known
    if "msb_pull_images" in found:
        newer |= {row[1] for row in connection.execute("PRAGMA table_info(msb_pull_images)")} ^ OWN_COLUMNS
    if newer:
        cause = f"unknown there: {', '.join(sorted(map(str, newer)))}"
        hint = "update msb-pull, or choose another place with --home"
        raise LocalError(f"{path}: made by a newer version of Microsandbox or msb-pull", cause=cause, hint=hint)
