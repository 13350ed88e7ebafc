"""The database: images, manifests, configs and layers as Microsandbox opens them, and our own table beside them."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msb_pull.errors import LocalError, local_error
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.platform import Platform
from msb_pull.store.keys import LayerKey
from msb_pull.store.rows import ImageRecord, write_image
from msb_pull.store.schema import MIGRATIONS, OWN_TABLE, REQUIRED, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_BUSY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer as recorded; ``size`` is compressed bytes, ``key`` its name in the store."""

    key: LayerKey
    diff_id: Digest
    size: int
    media_type: str

    @property
    def digest(self) -> Digest:
        """The compressed blob's digest."""
        return self.key.digest


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as recorded, layers bottom first with repeats. Microsandbox's own images lack the optional facts."""

    reference: str
    digest: Digest | None
    platform: Platform | None
    manifest_bytes: bytes | None
    config_bytes: bytes | None
    layers: tuple[StoredLayer, ...]
    size_bytes: int
    pulled_at: datetime
    source: str | None


class Database:
    """One connection. A context manager; every change is one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, create: bool, warn: Callable[[str], None] = lambda text: None) -> Database:
        """Opens ``oci.db``; with ``create`` it is made where it is missing, else it is opened for reading.

        A file that is no database is moved aside with a dated name, and ``warn`` is told. Raises LocalError for one
        whose tables belong to another program.
        """
        try:
            return cls(_connect(path, create=create))
        except sqlite3.DatabaseError as error:
            if not create or isinstance(error, sqlite3.OperationalError):
                raise _trouble(path, error) from error
        aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        warn(f"{path} was damaged; it was moved to {aside.name} and made anew")
        try:
            return cls(_connect(path, create=True))
        except sqlite3.DatabaseError as error:
            raise _trouble(path, error) from error

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def record(self, image: ImageRecord) -> None:
        """Writes image, manifest, config, layers and links in one transaction; an older manifest of the name goes."""
        with self._transaction() as run:
            write_image(run, image)

    def find(self, reference: str) -> StoredImage | None:
        """The image recorded under a canonical reference."""
        rows = self._connection.execute(f"{_SELECT} WHERE i.reference = ?", (reference,)).fetchall()
        return self._image(rows[0]) if rows else None

    def images(self) -> list[StoredImage]:
        """All images, those of Microsandbox included, by reference."""
        rows = self._connection.execute(f"{_SELECT} ORDER BY i.reference").fetchall()
        return [self._image(row) for row in rows]

    def references(self) -> list[str]:
        """The names of all images, without the cost of their facts."""
        return [text for (text,) in self._connection.execute("SELECT reference FROM images ORDER BY reference")]

    def remove(self, references: Sequence[str]) -> None:
        """Forgets images, and the rows of layers that no manifest reaches any more."""
        with self._transaction() as run:
            for reference in references:
                run("DELETE FROM images WHERE reference = ?", (reference,))
                run("DELETE FROM msb_pull_images WHERE reference = ?", (reference,))
            run("DELETE FROM layers WHERE id NOT IN (SELECT layer_id FROM manifest_layers)", ())

    def layer_digests(self) -> set[str]:
        """The names in the store of all layers that any image reaches."""
        found = {text for (text,) in self._connection.execute(_REACHED)}
        for (listed,) in self._connection.execute("SELECT layers_json FROM msb_pull_images"):
            found.update(layer["key"] for layer in json.loads(listed))
        return found

    def _image(self, row: tuple[Any, ...]) -> StoredImage:
        image_id, reference, size, created, digest, platform, manifest, config, listed, source, pulled = row
        layers = _own_layers(listed) if listed else self._linked_layers(image_id)
        return StoredImage(
            reference=reference,
            digest=Digest.parse(digest) if digest else None,
            platform=Platform.parse(platform) if platform else self._config_platform(image_id),
            manifest_bytes=manifest,
            config_bytes=config,
            layers=layers,
            size_bytes=size,
            pulled_at=_parse_time(pulled or created),
            source=source,
        )

    def _linked_layers(self, image_id: int) -> tuple[StoredLayer, ...]:
        layers = []
        for digest, diff_id, size, media_type in self._connection.execute(_LINKED, (image_id,)):
            try:
                layers.append(StoredLayer(LayerKey.parse(digest), Digest.parse(diff_id), size, media_type))
            except InvalidDigest as error:
                raise LocalError(f"oci.db: a layer row is damaged: {error}") from None
        return tuple(layers)

    def _config_platform(self, image_id: int) -> Platform | None:
        row = self._connection.execute(_CONFIG_PLATFORM, (image_id,)).fetchone()
        return Platform(row[0], row[1], row[2] or None).normalized() if row and row[0] and row[1] else None

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.execute(OWN_TABLE)
                yield self._connection.execute
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise LocalError(f"oci.db: {error}", hint="check free space, permissions and who else uses it") from error


_SELECT = """SELECT i.id, i.reference, i.size_bytes, i.created_at, o.manifest_digest, o.platform, o.manifest, o.config,
    o.layers_json, o.source, o.pulled_at
    FROM images i LEFT JOIN msb_pull_images o ON o.reference = i.reference"""
_LINKED = """SELECT l.digest, l.diff_id, l.size_bytes, l.media_type FROM layers l
    JOIN manifest_layers ml ON ml.layer_id = l.id JOIN manifests m ON m.id = ml.manifest_id
    WHERE m.image_id = ? ORDER BY l.id"""
_REACHED = "SELECT l.digest FROM layers l WHERE l.id IN (SELECT layer_id FROM manifest_layers)"
_CONFIG_PLATFORM = """SELECT c.os, c.architecture, c.os_variant FROM configs c
    JOIN manifests m ON m.id = c.manifest_id WHERE m.image_id = ? LIMIT 1"""


def _connect(path: Path, *, create: bool) -> sqlite3.Connection:
    if create:
        return _prepare(path, sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None))
    if not path.exists():
        connection = sqlite3.connect(":memory:", isolation_level=None)
        _create_tables(connection)
        return connection
    try:
        connection = _read_only(f"{path.as_uri()}?mode=ro")
    except sqlite3.OperationalError:
        # A database in WAL mode on a read-only file system cannot make its index; nobody else can write there either.
        connection = _read_only(f"{path.as_uri()}?mode=ro&immutable=1")
    if not _tables(connection):
        connection.close()
        return _connect(path.with_name("no such database"), create=False)
    _check_tables(path, connection)
    return connection


def _read_only(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    # Our own table may be missing in a database that only Microsandbox has used.
    connection.execute(
        OWN_TABLE.replace("TABLE IF", "TEMP TABLE IF") if "msb_pull_images" not in _tables(connection) else "SELECT 1"
    )
    return connection


def _prepare(path: Path, connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            # Some network file systems have no shared memory.
            connection.execute("PRAGMA journal_mode = DELETE")
        if not _tables(connection):
            connection.execute("BEGIN IMMEDIATE")
            if not _tables(connection):
                _create_tables(connection)
            connection.execute("COMMIT")
        _check_tables(path, connection)
        connection.execute(OWN_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in (*TABLES, OWN_TABLE):
        connection.execute(statement)
    connection.executemany(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (?, ?, 1, ?, 0)",
        [(version, description, bytes.fromhex(checksum)) for version, description, checksum in MIGRATIONS],
    )


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _check_tables(path: Path, connection: sqlite3.Connection) -> None:
    for table, columns in REQUIRED.items():
        there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if not columns <= there:
            connection.close()
            raise LocalError(
                f"{path}: this database belongs to another program or a version that is not known",
                cause=f"table {table} lacks {', '.join(sorted(columns - there))}",
                hint="choose another place with --home",
            )


def _trouble(path: Path, error: sqlite3.Error) -> LocalError:
    if "unable to open" in str(error) and not os.access(path.parent, os.W_OK):
        return local_error(PermissionError(13, "Permission denied", str(path)), path.parent)
    return LocalError(f"{path}: {error}", hint="check free space, permissions and who else uses it")


def _own_layers(listed: str) -> tuple[StoredLayer, ...]:
    return tuple(
        StoredLayer(LayerKey.parse(x["key"]), Digest.parse(x["diff_id"]), x["size"], x["media_type"])
        for x in json.loads(listed)
    )


def _parse_time(text: str | None) -> datetime:
    try:
        return datetime.fromisoformat(text or "").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
