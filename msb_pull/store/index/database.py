"""The database: images, manifests, configs and layers as Microsandbox opens them, and our own table beside them."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from msb_pull.ground.errors import LocalError, local_error
from msb_pull.store.index import stored
from msb_pull.store.index.connect import DamagedDatabase, connect, trouble
from msb_pull.store.index.rows import write_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from msb_pull.image.digest import Digest
    from msb_pull.store.index.backup import Backup
    from msb_pull.store.index.layer_rows import Run
    from msb_pull.store.index.proven import ProvenImage
    from msb_pull.store.index.rows import ImageRecord
    from msb_pull.store.index.stored import StoredImage

_T = TypeVar("_T")


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

        :meth:`Store.database` does more: it keeps the copies from which a lost database is rebuilt. Raises
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
                f"{image.reference}: Microsandbox will stack its layers in the wrong order: it keeps one order for "
                "all images, and another image stacks the same layers the other way round"
            )

    def keep_signature(self, reference: str, digest: Digest, data: bytes) -> bool:
        """Keeps what was checked of the signatures of an image, if that is still what its name stands for here."""

        def work(run: Run) -> bool:
            image = stored.find_image(run, reference)
            if image is None or image.digest != digest:
                return False
            self._copies.save_signature(reference, data)
            return True

        return self._change(work)

    def find(self, reference: str) -> StoredImage | None:
        """The image recorded under a canonical reference."""
        return self._ask(lambda run: stored.find_image(run, reference))

    def images(self) -> list[StoredImage]:
        """All images, those of Microsandbox included, by reference; an unreadable one is left out with a warning."""
        return self._ask(lambda run: stored.read_images(run, self._warn))

    def prove(self, references: Sequence[str] | None) -> list[ProvenImage]:
        """Checks what is recorded of images (None: all of them) against the digests of their manifests."""

        def work(run: Run) -> list[ProvenImage]:
            # All of it as it is at one moment, whatever others write meanwhile.
            run("BEGIN")
            try:
                names = stored.references(run)
                for stray in self._copies.strays(names) if references is None else ():
                    self._warn(f"{stray}: oci.db no longer lists it, though a copy of its manifest is kept")
                return [self._prove(run, name) for name in names if references is None or name in references]
            finally:
                run("ROLLBACK")

        return self._ask(work)

    def copy_again(self, reference: str) -> None:
        """Rewrites the copy of an image from its rows, if they prove it and the copy differs."""

        def work(run: Run) -> None:
            image = self._prove(run, reference)
            if image.stale and image.record is not None:
                self._copies.save(image.record)

        self._change(work)

    def record_again(self, reference: str) -> bool:
        """Rewrites rows and copy of an image from what its manifest's digest proves; False where nothing does."""

        def work(run: Run) -> bool:
            record = self._prove(run, reference).record
            if record is not None:
                write_image(run, record)
                self._copies.save(record)
            return record is not None

        return self._change(work)

    def references(self) -> list[str]:
        """The names of all images, without the cost of their facts."""
        return self._ask(stored.references)

    def strays(self) -> list[str]:
        """The references of sound copies beside the layers that are of no image here."""

        def work(run: Run) -> list[str]:
            return self._copies.strays(stored.references(run))

        # Recording or removing an image changes copy and rows in one transaction, so none may be under way.
        return self._ask(work) and self._change(work)

    def unread_copies(self) -> list[LocalError]:
        """An error for each copy that cannot be read, of an image that is not here: what it needs is not known.

        So it is where the database was rebuilt from the copies, one of which was damaged.
        """
        return [
            LocalError(
                f"{path}: cannot be read, and may be all that is left of an image that oci.db does not have",
                hint="pull that image again, or remove the file if you do not need it",
            )
            for path in self._ask(lambda run: self._copies.unreadable(stored.references(run)))
        ]

    def remove(self, references: Sequence[str]) -> None:
        """Forgets images, and the rows of their layers that nothing else reaches."""

        def work(run: Run) -> None:
            mine = [stored.all_digests(run, reference) for reference in references]
            for reference in references:
                run("DELETE FROM images WHERE reference = ?", (reference,))
            _delete_layers(run, set().union(*mine))
            # While others still see the rows: a copy without rows passes for another home's.
            if self._backup is not None:
                for reference in references:
                    self._backup.remove(reference)

        self._change(work)

    def forget_layers(self, digests: Iterable[str]) -> None:
        """Removes the rows of layers whose directories are gone, where nothing reaches them."""
        self._change(lambda run: _delete_layers(run, set(digests)))

    def layer_digests(self) -> set[str]:
        """The names in the store of all layers that any image reaches."""
        return self._ask(stored.reached)

    @property
    def _copies(self) -> Backup:
        assert self._backup is not None, "opened without the copies beside the layers"
        return self._backup

    def _prove(self, run: Run, reference: str) -> ProvenImage:
        from msb_pull.store.index.proven import prove_image

        return prove_image(run, self._copies, reference)

    def _ask(self, work: Callable[[Run], _T]) -> _T:
        """Reads; a file that turns out to be damaged is repaired once, if ``repair`` was given, and read again."""
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
            # IMMEDIATE: two writers that have both read could not both go on to write, and SQLite would fail one.
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

        try:
            return self._ask(transaction)
        except OSError as error:
            raise local_error(error, self._path) from error


def _delete_layers(run: Run, digests: set[str]) -> None:
    reached = {name.partition("+")[0] for name in stored.reached(run)}
    for digest in digests - reached:
        run("DELETE FROM layers WHERE digest = ?", (digest,))
