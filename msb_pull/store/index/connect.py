"""Opens ``oci.db`` for reading or writing, makes it where it is missing, and refuses another program's database."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from msb_pull.ground.errors import (
    LocalError,
    exhausted,
    file_size_limit,
    local_error,
    memory_is_limited,
    too_large,
)
from msb_pull.store.index.schema import OWN_TABLE, check_tables, create_tables, tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BUSY_SECONDS = 30
_WAIT = "wait for the other program, or stop it"
_DAMAGE = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
# How SQLite fails where it finds no room for a file beside the database, and the room it needs for one.
_CANNOT_GROW = frozenset((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN))
_LEAST_BYTES = 65_536
# With less than this the log of one removal may not fit beside the database.
_LOG_BYTES = 4 << 20


class DamagedDatabase(LocalError):
    """The file is not a database, or its pages are corrupt."""


def connect(path: Path, *, create: bool, sync: bool = False) -> sqlite3.Connection:
    """A connection to the database at ``path``; raises LocalError, DamagedDatabase among them.

    With ``create`` it can write, and a missing file is made. Without, nothing is written: a missing file reads like
    one without images, and the file system may be read-only.
    """
    try:
        if create:
            if not path.exists():
                make(path)
            return _writable(path, sync=sync)
        return _readable(path) if path.exists() else in_memory()
    except sqlite3.Error as error:
        raise trouble(path, error) from error
    except OSError as error:
        raise local_error(error, path) from error


def in_memory() -> sqlite3.Connection:
    """An empty database in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    create_tables(connection)
    return connection


def make(path: Path, fill: Callable[[sqlite3.Connection], None] = lambda connection: None) -> bool:
    """Makes a database under a name of its own, and gives it ``path`` only when it is whole.

    So no other process ever sees a file without tables. False when another process was faster; its file stays.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
    try:
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            # Nobody knows its name: what an interruption leaves is swept, never read.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            create_tables(connection)
            fill(connection)
            connection.execute("COMMIT")
            _prefer_wal(connection)
        finally:
            connection.close()
        draft.chmod(0o600)
        return _give_name(draft, path)
    except (OSError, sqlite3.Error):
        # A faster process has swept this draft away.
        if path.exists():
            return False
        raise
    finally:
        _remove_drafts(path, draft.name)
        sweep_drafts(path)


def sweep_drafts(path: Path) -> int:
    """Removes what killed processes left of databases in the making, once there is one; returns how many files.

    A process that is still making one loses nothing: it would be too late in any case.
    """
    return _remove_drafts(path, f"{path.name}.*.new") if path.exists() else 0


def _remove_drafts(path: Path, pattern: str) -> int:
    found = [x for suffix in ("", "-journal", "-wal", "-shm") for x in path.parent.glob(pattern + suffix)]
    for draft in found:
        draft.unlink(missing_ok=True)
    return len(found)


def trouble(path: Path, error: sqlite3.Error) -> LocalError:
    """What an error of SQLite means for a person."""
    whole = getattr(error, "sqlite_errorcode", 0)
    code = whole & 0xFF
    # What processes share beside the file is mapped, which a limit of memory counts.
    unmapped = whole == sqlite3.SQLITE_IOERR_SHMMAP and memory_is_limited()
    if (whole == sqlite3.SQLITE_IOERR_NOMEM or unmapped) and (spent := exhausted(MemoryError())):
        return spent
    try:
        os.stat(path.parent)
    except OSError as gone:
        # A home may be moved while another one looks at it.
        return local_error(gone, path.parent)
    if code in _DAMAGE:
        hint = "any pull into this store rebuilds it"
        return DamagedDatabase(f"{path}: the database is damaged", cause=str(error), hint=hint)
    if code == sqlite3.SQLITE_FULL or (code in _CANNOT_GROW and _is_full(path)):
        return local_error(OSError(28, "No space left on device", str(path)), path.parent)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) or (
        code == sqlite3.SQLITE_CANTOPEN and not os.access(path.parent, os.W_OK)
    ):
        number = errno.EROFS if os.statvfs(path.parent).f_flag & os.ST_RDONLY else errno.EACCES
        return local_error(OSError(number, os.strerror(number), str(path)), path.parent)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LocalError(f"{path}: another program has been writing to it for {_BUSY_SECONDS} s", hint=_WAIT)
    if code == sqlite3.SQLITE_PROTOCOL:
        # SQLite waits ten seconds for whoever is opening it: that program was stopped just then, or hangs.
        return LocalError(f"{path}: another program keeps it locked", hint=_WAIT)
    if code in _CANNOT_GROW and _is_limited(path):
        return too_large(str(path))
    return LocalError(f"{path}: {error}", hint="check free space, permissions and who else uses it")


def _is_limited(path: Path) -> bool:
    """Whether this process may hardly write larger files than the database has already."""
    most = file_size_limit()
    files = [path.with_name(path.name + suffix) for suffix in ("", "-journal", "-wal", "-shm")]
    largest = max((x.stat().st_size for x in files if x.exists()), default=0)
    return most is not None and largest + 2 * _LEAST_BYTES > most


def _is_full(path: Path, needed: int = _LEAST_BYTES) -> bool:
    try:
        facts = os.statvfs(path.parent)
    except OSError:
        return False
    few = facts.f_blocks and facts.f_bavail * facts.f_frsize < needed
    return bool(few or (facts.f_files and not facts.f_favail))


def _give_name(draft: Path, path: Path) -> bool:
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here: a rename would do the same but for a race of two first pulls.
        if path.exists():
            return False
        os.rename(draft, path)
    return True


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise DamagedDatabase(f"{path}: the database is empty", hint="any pull into this store rebuilds it")


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)


def _writable(path: Path, *, sync: bool) -> sqlite3.Connection:
    _refuse_empty(path)
    connection, roomy = _open_writable(path)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
        if not tables(connection):
            connection.execute("BEGIN IMMEDIATE")
            if not tables(connection):
                create_tables(connection)
            connection.execute("COMMIT")
        check_tables(path, connection)
        if roomy:
            _prefer_wal(connection)
        # Looking first, since even a statement that changes nothing would wait for whoever is writing.
        if "msb_pull_images" not in tables(connection):
            connection.execute(OWN_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _open_writable(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection, and whether it may keep a log beside the file.

    On a disk that is nearly full it writes in place and keeps what it replaces in memory: the only way left to remove
    an image's rows, and so to give space back. A power cut in that moment may damage the database, which is then
    rebuilt.
    """
    connection = _open(path, "mode=rw")
    try:
        tables(connection)
        if not _is_full(path, _LOG_BYTES):
            return connection, True
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF not in _CANNOT_GROW or not _is_full(path):
            connection.close()
            raise
    connection.close()
    connection = _open(path, "mode=rw")
    try:
        connection.execute("PRAGMA busy_timeout = 1000")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
    except sqlite3.OperationalError:
        # Another process has it open, and with it the log: then the log is the only way.
        connection.close()
        return _open(path, "mode=rw"), True
    return connection, False


def _readable(path: Path) -> sqlite3.Connection:
    _refuse_empty(path)
    try:
        connection = _read_only(path, "mode=ro")
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        full = code == sqlite3.SQLITE_IOERR and _is_full(path) and _is_alone(path)
        if not full and code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        # In WAL mode SQLite makes an index beside the file. Where it cannot, nobody else can write either.
        connection = _read_only(path, "mode=ro&immutable=1") if _is_alone(path) else _copied(path)
    try:
        if not tables(connection):
            connection.close()
            return in_memory()
        check_tables(path, connection)
        if "msb_pull_images" not in tables(connection):
            connection.execute(OWN_TABLE.replace("CREATE TABLE", "CREATE TEMP TABLE"))
    except BaseException:
        connection.close()
        raise
    return connection


def _copied(path: Path) -> sqlite3.Connection:
    """The database in memory, with what stands only in the log beside it: SQLite reads that where it can write."""
    import shutil
    from tempfile import TemporaryDirectory

    memory = sqlite3.connect(":memory:", isolation_level=None)
    with TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", f"{folder}/{path.name}{suffix}")
        with closing(sqlite3.connect(f"{folder}/{path.name}")) as copy:
            copy.backup(memory)
    return memory


def _is_alone(path: Path) -> bool:
    """Whether all that was ever written stands in the database itself, and not partly in a log beside it."""
    try:
        return os.stat(f"{path}-wal").st_size == 0
    except FileNotFoundError:
        return True


def _read_only(path: Path, mode: str) -> sqlite3.Connection:
    connection = _open(path, mode)
    try:
        tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prefer_wal(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        return
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError:
        # Some network file systems have no shared memory for WAL; and a reader may hold the file right now.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = DELETE")
