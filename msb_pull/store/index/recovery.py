"""A database that is lost or damaged is rebuilt from the copies beside the layers."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from msb_pull.ground.sizes import counted
from msb_pull.store.index.connect import DamagedDatabase, connect, in_memory, make
from msb_pull.store.index.database import Database
from msb_pull.store.index.rows import write_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from msb_pull.store.index.backup import Backup

# An empty file may be one that another program is making right now.
_GRACE_SECONDS = 0.5


class Recovery:
    """Opens the database at ``path``, whatever state it is in.

    With ``writable`` a damaged file is moved aside under a dated name and a new one takes its place, under ``lock``;
    without, the new one is only in memory. ``warn`` hears once.
    """

    def __init__(
        self,
        path: Path,
        backup: Backup,
        lock: Callable[[], AbstractContextManager[None]],
        warn: Callable[[str], None],
        *,
        create: bool,
        writable: bool,
        sync: bool,
    ) -> None:
        self._path = path
        self._backup = backup
        self._lock = lock
        self._warn = warn
        self._create = create
        self._writable = writable
        self._sync = sync

    def open(self) -> Database:
        """Raises LocalError, and DamagedDatabase where nothing could be done about the damage."""
        try:
            connection = self._lost() or self._connect()
        except DamagedDatabase as error:
            connection = self._repaired(error)
        return Database(connection, self._path, backup=self._backup, warn=self._warn, repair=self._repaired)

    def _connect(self) -> sqlite3.Connection:
        return connect(self._path, create=self._create, sync=self._sync)

    def _lost(self) -> sqlite3.Connection | None:
        """A connection to a rebuilt database if the old one is gone but copies of its images are there.

        Without copies there is nothing to rebuild, and :func:`connect` decides whether to make an empty one.
        """
        if self._path.exists() or self._backup.empty():
            return None
        if not self._writable:
            return self._rebuilt_in_memory("is missing")
        with self._lock():
            if not self._path.exists():
                self._rebuild(f"{self._path} was missing")
        return self._connect()

    def _repaired(self, error: DamagedDatabase) -> sqlite3.Connection:
        if not self._writable:
            return self._rebuilt_in_memory("is damaged")
        with self._lock():
            if self._still_damaged():
                # A process that finds no file in between waits for the lock in _lost, and then finds the new one.
                try:
                    aside = self._move_aside()
                    self._rebuild(f"{self._path} was damaged and is kept as {aside.name}")
                except OSError:
                    raise error from None
        return self._connect()

    def _still_damaged(self) -> bool:
        """Looks once more under the lock: another process may have been faster."""
        if self._path.exists() and self._path.stat().st_size == 0:
            time.sleep(_GRACE_SECONDS)
        try:
            connection = self._connect()
        except DamagedDatabase:
            return True
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)])
        except sqlite3.Error:
            return True
        finally:
            connection.close()

    def _move_aside(self) -> Path:
        aside = self._path.with_name(f"{self._path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        # Its log first: one that was left would be played into the new database.
        for suffix in ("-wal", "-shm", "-journal", ""):
            with suppress(FileNotFoundError):
                os.rename(f"{self._path}{suffix}", f"{aside}{suffix}")
        return aside

    def _rebuild(self, what: str) -> None:
        outcome: list[str] = []
        if make(self._path, lambda connection: outcome.append(self._fill(connection))):
            self._warn(f"{what}; {outcome[0]}")

    def _rebuilt_in_memory(self, state: str) -> sqlite3.Connection:
        connection = in_memory()
        self._warn(f"{self._path} {state}; {self._fill(connection)}")
        return connection

    def _fill(self, connection: sqlite3.Connection) -> str:
        """Writes all images of which sound copies are kept; returns what to say of it."""
        images = damaged = 0
        for image in self._backup.load():
            if image is None:
                damaged += 1
            else:
                images += 1
                write_image(connection.execute, image)
        more = f", {damaged} more cannot be read" if damaged else ""
        return f"rebuilt with {counted(images, 'image')} from the copies beside the layers{more}"
