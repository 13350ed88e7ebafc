"""The database: images, manifests, configs and layers as Microsandbox opens them, and our own table beside them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from msb_pull.ground.errors import LocalError, local_error
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.platform import Platform
from msb_pull.store.index.connect import DamagedDatabase, connect, trouble
from msb_pull.store.index.rows import ImageRecord, stored_platform, write_image
from msb_pull.store.keys import LayerKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from msb_pull.store.index.backup import Backup
    from msb_pull.store.index.layer_rows import Run
    from msb_pull.store.index.proven import ProvenImage

__all__ = ["Database", "ImageRecord", "StoredImage", "StoredLayer"]

_T = TypeVar("_T")


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
    """An image as recorded, layers bottom first with repeats. Microsandbox's own images lack the optional facts.

    ``shared`` says that another program has rows for the image, be it all of them or some beside ours.
    """

    reference: str
    digest: Digest | None
    platform: Platform | None
    manifest_bytes: bytes | None
    config_bytes: bytes | None
    layers: tuple[StoredLayer, ...]
    size_bytes: int
    pulled_at: datetime
    source: str | None
    shared: bool = False


class Database:
    """One connection, for one thread. A context manager; every change is one transaction.

    Every method raises LocalError when the file cannot be read or written.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        backup: Backup | None = None,
        warn: Callable[[str], None] = lambda text: None,
        repair: Callable[[DamagedDatabase], sqlite3.Connection] | None = None,
    ) -> None:
        self._connection = connection
        self._path = path
        self._backup = backup
        self._warn = warn
        self._repair = repair

    @classmethod
    def open(cls, path: Path, *, create: bool, warn: Callable[[str], None] = lambda text: None) -> Database:
        """Opens ``oci.db`` by itself; with ``create`` it is made where it is missing, else opened for reading.

        :meth:`Store.database` does more: it keeps the files from which a lost database is made anew. Raises
        LocalError for a damaged file, and for one whose tables belong to another program.
        """
        return cls(connect(path, create=create), path, warn=warn)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def record(self, image: ImageRecord) -> None:
        """Writes image, manifest, config, layers and links in one transaction; an older manifest of the name goes."""

        def work(run: Run) -> bool:
            ordered = write_image(run, image)
            if self._backup is not None:
                self._backup.save(image)
            return ordered

        if not self._change(work):
            self._warn(
                f"{image.reference}: Microsandbox will stack its layers in another order, since it keeps one order "
                "for all images, and another image has the same layers the other way round"
            )

    def find(self, reference: str) -> StoredImage | None:
        """The image recorded under a canonical reference."""

        def work(run: Run) -> StoredImage | None:
            rows = run(f"{_SELECT} WHERE i.reference = ?", (reference,)).fetchall()
            return _image(run, rows[0], {}) if rows else None

        return self._ask(work)

    def images(self) -> list[StoredImage]:
        """All images, those of Microsandbox included, by reference; an unreadable one is left out with a warning."""

        def work(run: Run) -> list[StoredImage]:
            found = []
            known: dict[str, tuple[StoredLayer, ...]] = {}
            for row in run(f"{_SELECT} ORDER BY i.reference").fetchall():
                try:
                    found.append(_image(run, row, known))
                except LocalError as error:
                    self._warn(error.message)
            return found

        return self._ask(work)

    def prove(self, references: Sequence[str] | None) -> list[ProvenImage]:
        """Holds what is recorded of images (None: all of them) against the digests of their manifests."""
        from msb_pull.store.index.proven import prove_image

        assert self._backup is not None
        backup = self._backup

        def work(run: Run) -> list[ProvenImage]:
            # All of it as it is at one moment, whatever others write meanwhile.
            run("BEGIN")
            try:
                names = [text for (text,) in run("SELECT reference FROM images ORDER BY reference").fetchall()]
                for stray in backup.strays(names) if references is None else ():
                    self._warn(f"{stray}: oci.db no longer lists it, though a copy of its manifest is kept")
                return [prove_image(run, backup, name) for name in names if references is None or name in references]
            finally:
                run("ROLLBACK")

        return self._ask(work)

    def copy_again(self, reference: str) -> None:
        """Writes the copy of an image beside the layers anew from its rows, if they prove it and the copy differs."""
        from msb_pull.store.index.proven import prove_image

        assert self._backup is not None
        backup = self._backup

        def work(run: Run) -> None:
            image = prove_image(run, backup, reference)
            if image.stale and image.record is not None:
                backup.save(image.record)

        self._change(work)

    def record_again(self, reference: str) -> bool:
        """Writes rows and copy of an image anew from what its manifest's digest proves; False where nothing does."""
        from msb_pull.store.index.proven import prove_image

        assert self._backup is not None
        backup = self._backup

        def work(run: Run) -> bool:
            record = prove_image(run, backup, reference).record
            if record is not None:
                write_image(run, record)
                backup.save(record)
            return record is not None

        return self._change(work)

    def references(self) -> list[str]:
        """The names of all images, without the cost of their facts."""
        return self._ask(
            lambda run: [text for (text,) in run("SELECT reference FROM images ORDER BY reference").fetchall()]
        )

    def remove(self, references: Sequence[str]) -> None:
        """Forgets images, and the rows of their layers that nothing else reaches."""

        def work(run: Run) -> None:
            mine = [_digests(run, reference) for reference in references]
            for reference in references:
                run("DELETE FROM images WHERE reference = ?", (reference,))
            _delete_layers(run, set().union(*mine))

        self._change(work)
        if self._backup is not None:
            for reference in references:
                with self._local_trouble():
                    self._backup.remove(reference)

    def forget_layers(self, digests: Iterable[str]) -> None:
        """Removes the rows of layers whose directories are gone, where nothing reaches them."""
        self._change(lambda run: _delete_layers(run, set(digests)))

    def layer_digests(self) -> set[str]:
        """The names in the store of all layers that any image reaches."""
        return self._ask(_reached)

    def _ask(self, work: Callable[[Run], _T]) -> _T:
        """Reads; where the file turns out to be damaged it is made anew, once, if that was arranged for."""
        try:
            try:
                return work(self._connection.execute)
            except sqlite3.Error as error:
                raise trouble(self._path, error) from error
        except DamagedDatabase as error:
            if self._repair is None:
                raise
            repair, self._repair = self._repair, None
            self._connection.close()
            self._connection = repair(error)
            return self._ask(work)

    def _change(self, work: Callable[[Run], _T]) -> _T:
        def transaction(run: Run) -> _T:
            # At once, or two writers that have both read would wait for each other.
            run("BEGIN IMMEDIATE")
            try:
                # What another program left of images that it has removed.
                run("DELETE FROM msb_pull_images WHERE reference NOT IN (SELECT reference FROM images)")
                result = work(run)
                run("COMMIT")
            except BaseException:
                # An error of SQLite may have ended the transaction already.
                with suppress(sqlite3.Error):
                    run("ROLLBACK")
                raise
            return result

        with self._local_trouble():
            return self._ask(transaction)

    @contextmanager
    def _local_trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise local_error(error, self._path) from error


# A row of ours counts while the manifest that it was written with is still the image's.
_SELECT = """SELECT i.id, i.reference, i.size_bytes, coalesce(i.modified_at, i.created_at), o.manifest_digest,
    o.platform, o.manifest, o.config, o.layers_json, o.source, o.pulled_at,
    EXISTS (SELECT 1 FROM manifests m WHERE m.image_id = i.id AND m.id IS NOT o.manifest_id)
    FROM images i LEFT JOIN msb_pull_images o ON o.reference = i.reference AND o.image_id = i.id
    AND EXISTS (SELECT 1 FROM manifests m WHERE m.id = o.manifest_id AND m.image_id = i.id)"""
_LINKED = """SELECT DISTINCT l.digest, l.diff_id, l.size_bytes, l.media_type FROM layers l
    JOIN manifest_layers ml ON ml.layer_id = l.id JOIN manifests m ON m.id = ml.manifest_id
    WHERE m.image_id = ? ORDER BY l.id"""
_REACHED = "SELECT l.digest FROM layers l WHERE l.id IN (SELECT layer_id FROM manifest_layers)"
_OWN = "SELECT layers_json FROM msb_pull_images WHERE reference IN (SELECT reference FROM images)"
_CONFIG_PLATFORM = """SELECT c.os, c.architecture, c.os_variant FROM configs c
    JOIN manifests m ON m.id = c.manifest_id WHERE m.image_id = ? ORDER BY c.id LIMIT 1"""


def _image(run: Run, row: tuple[Any, ...], known: dict[str, tuple[StoredLayer, ...]]) -> StoredImage:
    image_id, reference, size, changed, digest, platform, manifest, config, listed, source, pulled, shared = row
    try:
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
            pulled_at=_parse_time(pulled or changed),
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


def _reached(run: Run) -> set[str]:
    found = {text for (text,) in run(_REACHED)}
    for (listed,) in run(_OWN):
        found.update(layer["key"] for layer in json.loads(listed))
    return found


def _digests(run: Run, reference: str) -> set[str]:
    """The digests of all layers of an image, of whichever program's rows."""
    found = {
        digest
        for (digest,) in run(
            "SELECT l.digest FROM layers l JOIN manifest_layers ml ON ml.layer_id = l.id "
            "JOIN manifests m ON m.id = ml.manifest_id JOIN images i ON i.id = m.image_id WHERE i.reference = ?",
            (reference,),
        )
    }
    for (listed,) in run("SELECT layers_json FROM msb_pull_images WHERE reference = ?", (reference,)):
        found.update(layer["key"].partition("+")[0] for layer in json.loads(listed))
    return found


def _delete_layers(run: Run, digests: set[str]) -> None:
    reached = {name.partition("+")[0] for name in _reached(run)}
    for digest in digests - reached:
        run("DELETE FROM layers WHERE digest = ?", (digest,))


def _parse_time(text: str | None) -> datetime:
    try:
        return datetime.fromisoformat(text or "").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
