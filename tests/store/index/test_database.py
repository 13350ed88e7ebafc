"""The rows as Microsandbox reads them, the files that are not ours to touch, and writers at the same time."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.store.index import connect as connecting
from msb_pull.store.index.database import Database
from msb_pull.store.index.schema import MIGRATIONS, OWN_TABLE, TABLES
from tests.conftest import REPOSITORY, program_environment
from tests.support.counting import steps
from tests.support.stores import diff_id, digest, microsandbox_pull, names, record, sql, stacked

COLUMNS = {
    "images": "id reference size_bytes last_used_at created_at modified_at",
    "manifests": "id image_id schema_version media_type annotations_json created_at modified_at",
    "configs": "id manifest_id media_type created architecture os os_variant config_env_json config_cmd_json "
    "config_working_dir config_entrypoint_json config_volumes_json config_exposed_ports_json config_user rootfs_type "
    "rootfs_diff_ids_json history_json created_at modified_at",
    "layers": "id media_type digest diff_id size_bytes created_at modified_at",
    "manifest_layers": "id manifest_id layer_id created_at modified_at",
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "oci.db"


def write(path, *images, **options) -> list[str]:
    warnings: list[str] = []
    with Database.open(path, create=True, warn=warnings.append, **options) as database:
        for image in images:
            database.record(image)
    return warnings


def find(path, reference):
    with Database.open(path, create=False) as database:
        return database.find(reference)


# What another program finds


def test_tables_indexes_and_migrations_are_those_of_microsandbox(path):
    write(path)
    with sql(path) as run:
        for table, columns in COLUMNS.items():
            assert [row[1] for row in run.execute(f"PRAGMA table_info({table})")] == columns.split()
        indexes = {name for (name,) in run.execute("SELECT name FROM sqlite_master WHERE name LIKE 'idx%'")}
        assert indexes == {
            "idx_images_reference",
            "idx_manifests_image_id",
            "idx_configs_manifest_id",
            "idx_layers_digest",
            "idx_layers_diff_id",
            "idx_manifest_layers_manifest_id",
            "idx_manifest_layers_layer_id",
        }
        for name in indexes:
            ((_, _, column),) = run.execute(f"PRAGMA index_info({name})")
            assert name.endswith(f"_{column}")
        rows = run.execute("SELECT version, description, success, hex(checksum) FROM _sqlx_migrations").fetchall()
        assert rows == [(version, text, 1, checksum.upper()) for version, text, checksum in MIGRATIONS]
        assert len(rows) == 7
        tables = {name for (name,) in run.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables == {*COLUMNS, "_sqlx_migrations", "msb_pull_images"}
        for child, parent in [("manifests", "images"), ("configs", "manifests")]:
            ((*_, table, _, _, _, on_delete, _),) = run.execute(f"PRAGMA foreign_key_list({child})")
            assert (table, on_delete) == (parent, "CASCADE")


def test_an_image_read_back_with_plain_sql(path):
    inner = {
        "Env": ["A=1", "B="],
        "Cmd": ["sh"],
        "Entrypoint": None,
        "WorkingDir": "/w",
        "User": "1:2",
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/v": {}},
    }
    history = [{"created_by": "x"}]
    image = record(
        "docker.io/library/a:1",
        "xy",
        config={"config": inner, "history": history, "variant": "v2"},
        annotations={"k": "v"},
    )
    write(path, image)
    with sql(path) as run:
        ((reference, size, used),) = run.execute("SELECT reference, size_bytes, last_used_at FROM images")
        assert (reference, size) == ("docker.io/library/a:1", 2000 + ord("x") + ord("y") + len(image.config_bytes))
        ((version, kind, annotations),) = run.execute(
            "SELECT schema_version, media_type, annotations_json FROM manifests"
        )
        assert (version, kind, json.loads(annotations)) == (2, image.manifest.media_type, {"k": "v"})
        row = run.execute("SELECT * FROM configs")
        found = dict(zip([x[0] for x in row.description], row.fetchone(), strict=True))
        times = [used, found["created_at"], found["modified_at"]]
        for table in COLUMNS:
            times += [x for row in run.execute(f"SELECT created_at, modified_at FROM {table}") for x in row]
        layers = run.execute("SELECT digest, diff_id, size_bytes, media_type FROM layers ORDER BY id").fetchall()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text) for text in times)
    assert found["created"] == "2023-11-14T22:13:20Z"
    assert (found["architecture"], found["os"], found["os_variant"]) == ("amd64", "linux", "v2")
    assert json.loads(found["config_env_json"]) == ["A=1", "B="]
    assert json.loads(found["config_cmd_json"]) == ["sh"]
    assert found["config_entrypoint_json"] is None
    assert (found["config_working_dir"], found["config_user"]) == ("/w", "1:2")
    assert json.loads(found["config_exposed_ports_json"]) == {"80/tcp": {}}
    assert json.loads(found["config_volumes_json"]) == {"/v": {}}
    assert found["rootfs_type"] == "layers"
    assert json.loads(found["rootfs_diff_ids_json"]) == [str(diff_id("x")), str(diff_id("y"))]
    assert json.loads(found["history_json"]) == history
    assert layers == [
        (str(x.digest), str(diff_id(name)), x.size, x.media_type)
        for name, x in zip("xy", image.manifest.layers, strict=True)
    ]


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("2023-11-14T22:13:20.123456789Z", "2023-11-14T22:13:20.123456789Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("2023-11-14T22:13:20+02:00", "2023-11-14T22:13:20+02:00"),
        ("2023-11-14", None),
        ("2023-11-14 22:13:20", None),
        ("2023-13-14T22:13:20Z", None),
        ("yesterday", None),
        (None, None),
        (7, None),
    ],
)
def test_a_time_that_microsandbox_cannot_parse_is_left_out(path, created, expected):
    write(path, record("localhost/a:1", "x", config={"created": created}))
    with sql(path) as run:
        assert run.execute("SELECT created FROM configs").fetchone() == (expected,)


@pytest.mark.parametrize("odd", ["sh", 7, {"a": 1}, [1], [None], [["x"]]])
def test_config_values_of_the_wrong_kind_are_left_out(path, odd):
    inner = {
        "Env": odd,
        "Cmd": odd,
        "Entrypoint": odd,
        "User": 5,
        "WorkingDir": [],
        "Volumes": [],
        "ExposedPorts": "80",
    }
    write(path, record("localhost/a:1", "x", config={"config": inner}))
    with sql(path) as run:
        columns = (
            "env_json",
            "cmd_json",
            "entrypoint_json",
            "user",
            "working_dir",
            "volumes_json",
            "exposed_ports_json",
        )
        row = run.execute(f"SELECT {', '.join('config_' + x for x in columns)} FROM configs").fetchone()
    assert row == (None,) * 7


def test_b68_repeats_stand_once_in_the_links_and_all_in_ours(path):
    write(path, record("localhost/a:1", "xyxx"))
    assert stacked(path, "localhost/a:1") == "yx"  # on top of a stack a layer hides its copy below
    image = find(path, "localhost/a:1")
    assert names(layer.digest for layer in image.layers) == "xyxx"
    assert [layer.diff_id for layer in image.layers] == [diff_id(name) for name in "xyxx"]


# Moving tags


def test_d21_a_moved_tag_leaves_nothing_of_the_old_manifest(path):
    write(path, record("localhost/a:1", "xy"), record("localhost/a:1", "xz"))
    assert stacked(path, "localhost/a:1") == "xz"
    with sql(path) as run:
        for table in ("images", "manifests", "configs", "msb_pull_images"):
            assert run.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,), table
    with Database.open(path, create=False) as database:
        assert database.layer_digests() == {str(digest("x")), str(digest("z"))}


def test_manifests_that_microsandbox_piled_up_go_too(path):
    write(path)
    microsandbox_pull(path, "localhost/a:1", "p")
    microsandbox_pull(path, "localhost/a:1", "q")
    assert stacked(path, "localhost/a:1") == "pq"
    write(path, record("localhost/a:1", "x"))
    assert stacked(path, "localhost/a:1") == "x"


def test_an_error_in_the_middle_changes_nothing(path, monkeypatch):
    write(path, record("localhost/a:1", "xy"))
    before = list(sql_dump(path))

    def fail(*arguments):
        raise RuntimeError("in the middle")

    monkeypatch.setattr("msb_pull.store.index.rows._insert_own", fail)
    with pytest.raises(RuntimeError):
        write(path, record("localhost/a:1", "zw"))
    assert list(sql_dump(path)) == before


def sql_dump(path):
    with sql(path) as run:
        yield from run.iterdump()


# The order of layers


@pytest.mark.parametrize(
    ("images", "last"),
    [
        (["xy"], "xz"),
        (["xy"], "zx"),
        (["xy"], "zxy"),
        (["xy"], "zy"),
        (["xyz"], "wy"),
        (["xy", "xz"], "wxyz"),
        (["xy", "yz"], "wy"),
        (["x", "y", "z"], "zyx"),
        (["ab", "cd"], "cdab"),
        (["ab", "cd", "be"], "dba"[::-1]),
        (["abc", "dce"], "fdc"),
    ],
)
def test_every_image_is_stacked_rightly_whatever_came_first(path, images, last):
    written = [*images, last]
    assert write(path, *(record(f"localhost/{layers}:1", layers) for layers in written)) == []
    for layers in written:
        assert stacked(path, f"localhost/{layers}:1") == layers
    with sql(path) as run:
        assert run.execute("PRAGMA foreign_key_check").fetchall() == []
        assert run.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_images_that_contradict_each_other_keep_the_order_of_the_first(path):
    warnings = write(path, record("localhost/a:1", "xy"), record("localhost/b:1", "yxz"))
    assert len(warnings) == 1
    assert "localhost/b:1" in warnings[0]
    assert stacked(path, "localhost/a:1") == "xy"
    assert stacked(path, "localhost/b:1") == "xyz"
    assert names(x.digest for x in find(path, "localhost/b:1").layers) == "yxz"
    # The wrong one must not keep later images from the right order.
    assert write(path, record("localhost/c:1", "wxy")) == []
    assert stacked(path, "localhost/a:1") == "xy"
    assert stacked(path, "localhost/c:1") == "wxy"
    assert write(path, record("localhost/d:1", "zx")) == []
    assert (stacked(path, "localhost/a:1"), stacked(path, "localhost/d:1")) == ("xy", "zx")


def test_images_of_microsandbox_keep_their_order_too(path):
    write(path)
    microsandbox_pull(path, "localhost/theirs:1", "xy")
    assert write(path, record("localhost/ours:1", "zx")) == []
    assert (stacked(path, "localhost/theirs:1"), stacked(path, "localhost/ours:1")) == ("xy", "zx")


def test_a_wrong_diff_id_of_microsandbox_is_corrected(path):
    write(path)
    microsandbox_pull(path, "localhost/theirs:1", "x")
    with sql(path) as run:
        run.execute("UPDATE layers SET diff_id = ?", (str(diff_id("other")),))
    write(path, record("localhost/ours:1", "x"))
    with sql(path) as run:
        assert run.execute("SELECT diff_id, size_bytes FROM layers").fetchall() == [
            (str(diff_id("x")), 1000 + ord("x"))
        ]


# What we find


def test_find_gives_back_what_was_recorded(path, monkeypatch):
    image = record("localhost/a:1", "xy")
    now = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
    monkeypatch.setattr("msb_pull.store.index.rows.datetime", type("Still", (datetime,), {"now": lambda zone: now}))
    write(path, image)
    found = find(path, "localhost/a:1")
    assert found.digest == image.manifest_digest
    assert (found.manifest_bytes, found.config_bytes) == (image.manifest_bytes, image.config_bytes)
    assert (found.platform, found.source, found.shared) == (image.platform, "registry", False)
    assert found.pulled_at == now
    assert find(path, "localhost/b:1") is None


def test_microsandboxs_images_have_no_digest_and_no_proof(path):
    write(path, record("localhost/z:1", "x"))
    microsandbox_pull(path, "localhost/theirs:1", "xy")
    with Database.open(path, create=False) as database:
        theirs, ours = database.images()
        assert database.references() == ["localhost/theirs:1", "localhost/z:1"]
    assert (theirs.reference, ours.reference) == ("localhost/theirs:1", "localhost/z:1")
    assert (theirs.digest, theirs.manifest_bytes, theirs.config_bytes, theirs.source) == (None,) * 4
    assert (str(theirs.platform), names(x.digest for x in theirs.layers)) == ("linux/arm64", "xy")
    assert theirs.shared
    assert not ours.shared


def test_an_image_that_microsandbox_removed_and_pulled_again_is_no_longer_ours(path):
    write(path, record("localhost/a:1", "x"))
    with sql(path) as run:
        run.execute("DELETE FROM images")
    with Database.open(path, create=False) as database:
        assert database.images() == []
        assert database.layer_digests() == set()
    microsandbox_pull(path, "localhost/a:1", "y")
    found = find(path, "localhost/a:1")
    assert (found.digest, names(x.digest for x in found.layers)) == (None, "y")


def test_an_image_whose_manifest_another_program_replaced_is_no_longer_ours(path):
    write(path, record("localhost/a:1", "x"), record("localhost/b:1", "x"))
    with sql(path) as run:
        run.execute("DELETE FROM manifests WHERE image_id = (SELECT id FROM images WHERE reference = 'localhost/a:1')")
    microsandbox_pull(path, "localhost/a:1", "y")
    found = find(path, "localhost/a:1")
    assert (found.digest, names(x.digest for x in found.layers)) == (None, "y")
    assert find(path, "localhost/b:1").digest is not None


def test_rows_that_make_no_sense_hide_one_image_and_not_the_others(path):
    write(path, record("localhost/a:1", "x"))
    microsandbox_pull(path, "localhost/theirs:1", "y")
    with sql(path) as run:
        run.execute("UPDATE layers SET digest = '../../etc' WHERE digest = ?", (str(digest("y")),))
    warnings: list[str] = []
    with Database.open(path, create=False, warn=warnings.append) as database:
        assert [image.reference for image in database.images()] == ["localhost/a:1"]
        with pytest.raises(LocalError, match="localhost/theirs:1"):
            database.find("localhost/theirs:1")
    assert len(warnings) == 1


def test_d29_removing_an_image_keeps_the_rows_that_others_reach(path):
    write(path, record("localhost/a:1", "xy"), record("localhost/b:1", "xz"))
    microsandbox_pull(path, "localhost/theirs:1", "w")
    with sql(path) as run:  # Microsandbox is about to link this one
        run.execute("INSERT INTO layers (media_type, digest, diff_id, size_bytes) VALUES ('', 'new', '', 0)")
    with Database.open(path, create=True) as database:
        database.remove(["localhost/a:1"])
        assert database.find("localhost/a:1") is None
    with sql(path) as run:
        left = {text for (text,) in run.execute("SELECT digest FROM layers")}
        assert left == {str(digest("x")), str(digest("z")), str(digest("w")), "new"}
        for table in ("manifests", "configs"):
            assert run.execute(f"SELECT count(*) FROM {table}").fetchone() == (2,)
    assert stacked(path, "localhost/b:1") == "xz"


# Databases that others made


def make_older(path):
    """A database of a Microsandbox before its seventh migration, with one image."""
    with sql(path) as run:
        for statement in TABLES:
            run.execute(
                statement.replace(
                    "image_id INTEGER NOT NULL, schema", "image_id INTEGER NOT NULL, index_id INTEGER, schema"
                )
            )
        run.execute("CREATE TABLE indexes (id INTEGER PRIMARY KEY, image_id INTEGER)")
        run.executemany(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (?,?,1,?,0)",
            [(version, text, bytes.fromhex(checksum)) for version, text, checksum in MIGRATIONS[:6]],
        )
    microsandbox_pull(path, "localhost/old:1", "x")


def schema(path):
    with sql(path) as run:
        return [row for row in run.execute("SELECT name, sql FROM sqlite_master") if "msb_pull" not in row[0]]


def test_d16_an_older_database_is_used_as_it_is(path):
    make_older(path)
    before = schema(path)
    with Database.open(path, create=False) as database:
        assert [image.reference for image in database.images()] == ["localhost/old:1"]
    write(path, record("localhost/a:1", "yx"))
    assert schema(path) == before
    assert (stacked(path, "localhost/a:1"), stacked(path, "localhost/old:1")) == ("yx", "x")
    with sql(path) as run:
        assert run.execute("SELECT count(*) FROM _sqlx_migrations").fetchone() == (6,)


def test_when_microsandbox_empties_its_tables_our_images_stay(path):
    """What its last migration does to an older database."""
    make_older(path)
    image = record("localhost/a:1", "xy")
    write(path, image)
    with sql(path) as run:
        run.execute("DELETE FROM manifest_layers")
        run.execute("DELETE FROM configs")
    found = find(path, "localhost/a:1")
    assert (found.digest, names(x.digest for x in found.layers)) == (image.manifest_digest, "xy")
    with Database.open(path, create=False) as database:
        assert {str(digest("x")), str(digest("y"))} <= database.layer_digests()


def foreign(run):
    run.execute("CREATE TABLE bookmarks (url TEXT)")
    run.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, jpeg BLOB)")


def half(run):
    for statement in TABLES[:2]:
        run.execute(statement)


def newer_microsandbox(run):
    for statement in TABLES:
        run.execute(statement)
    run.execute("INSERT INTO _sqlx_migrations VALUES (20270101000000, 'more', '2027-01-01', 1, x'00', 0)")


def newer_msb_pull(run):
    for statement in TABLES:
        run.execute(statement)
    run.execute(OWN_TABLE)
    run.execute("ALTER TABLE msb_pull_images ADD COLUMN more TEXT")


@pytest.mark.parametrize("kind", [foreign, half, newer_microsandbox, newer_msb_pull])
@pytest.mark.parametrize("create", [True, False])
def test_d15_d36_a_database_that_is_not_ours_to_use_is_refused_untouched(path, kind, create):
    with sql(path) as run:
        kind(run)
    before = path.read_bytes()
    with pytest.raises(LocalError, match=re.escape(str(path))) as caught:
        Database.open(path, create=create)
    assert caught.value.exit_code == 7
    assert caught.value.hint
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["oci.db"]


def test_a_database_without_tables_is_filled(path):
    """Microsandbox was ended between making the file and its first migration."""
    with sql(path) as run:
        run.execute("PRAGMA user_version = 1")
    assert path.stat().st_size
    with Database.open(path, create=False) as database:
        assert database.images() == []
    write(path, record("localhost/a:1", "x"))
    assert stacked(path, "localhost/a:1") == "x"


# Files, modes and locks


def test_a_database_that_is_not_there_reads_empty_and_is_not_made(path):
    with Database.open(path, create=False) as database:
        assert database.images() == []
        assert database.find("localhost/a:1") is None
        assert database.layer_digests() == set()
    assert not path.exists()


@pytest.mark.parametrize(
    ("code", "limited", "memory"),
    [
        (sqlite3.SQLITE_IOERR_NOMEM, False, True),
        # Of what processes share beside the file, a file system may be the reason.
        (sqlite3.SQLITE_IOERR_SHMMAP, True, True),
        (sqlite3.SQLITE_IOERR_SHMMAP, False, False),
        (sqlite3.SQLITE_IOERR_READ, True, False),
    ],
)
def test_no_memory_for_a_page_is_no_trouble_with_the_disk(tmp_path, monkeypatch, code, limited, memory):
    monkeypatch.setattr(connecting, "memory_is_limited", lambda: limited)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    assert (connecting.trouble(tmp_path / "oci.db", error).message == "out of memory") is memory


def test_a_home_that_is_moved_while_it_is_opened(path):
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    told = connecting.trouble(path.parent / "gone" / "oci.db", error)
    assert "gone: No such file or directory" in told.message


def test_what_stands_in_the_log_is_read_where_nothing_can_be_written(path, tmp_path, monkeypatch):
    """As in a snapshot of a store in use, mounted read-only."""
    write(path, record("localhost/a:1", "x"))
    with sql(path) as reader:
        # Who has it open keeps the log from being cleared away.
        reader.execute("SELECT count(*) FROM images").fetchall()
        write(path, record("localhost/b:1", "y"))
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir()
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", snapshot / f"oci.db{suffix}")
    before = {file.name: file.read_bytes() for file in snapshot.iterdir()}
    plainly = connecting._read_only

    plainly = connecting._read_only

    def refused(path, mode):
        if "immutable" in mode:
            return plainly(path, mode)
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(connecting, "_read_only", refused)
    with Database.open(snapshot / "oci.db", create=False) as database:
        assert database.references() == ["localhost/a:1", "localhost/b:1"]
    assert {file.name: file.read_bytes() for file in snapshot.iterdir()} == before


def test_d13_write_ahead_log_and_private(path):
    write(path, record("localhost/a:1", "x"))
    with sql(path) as run:
        assert run.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [name for name in os.listdir(path.parent) if ".new" in name] == []


class NoSharedMemory:
    """A connection on a file system on which WAL fails."""

    def __init__(self, connection):
        self.connection = connection
        self.asked: list[str] = []

    def execute(self, statement, *values):
        self.asked.append(statement)
        if statement == "PRAGMA journal_mode = WAL":
            raise connecting.sqlite3.OperationalError("unable to open shared memory")
        return self.connection.execute(statement, *values)


def test_d14_without_shared_memory_the_old_journal_is_used(path):
    with sql(path) as run:
        limited = NoSharedMemory(run)
        connecting._prefer_wal(limited)
        assert limited.asked[-1] == "PRAGMA journal_mode = DELETE"
        assert run.execute("PRAGMA journal_mode").fetchone() == ("delete",)


WRITER = """
import sys
from pathlib import Path
from msb_pull.store.index.database import Database
from tests.support.stores import record
for number in range(5):
    with Database.open(Path(sys.argv[1]), create=True) as database:
        database.record(record(f"localhost/w{sys.argv[2]}-{number}:1", "bx" if number % 2 else "ab"))
"""


def test_d13_eight_writers_at_once(path):
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen(
            [*command, str(n)], cwd=REPOSITORY, env=program_environment(), stderr=subprocess.PIPE, text=True
        )
        for n in range(8)
    ]
    for writer in writers:
        _, error = writer.communicate(timeout=60)
        assert writer.returncode == 0, error
    with Database.open(path, create=False) as database:
        images = database.images()
    assert len(images) == 40
    for image in images:
        assert stacked(path, image.reference) == names(x.digest for x in image.layers)


def test_d13_a_writer_waits_for_another_and_then_says_so(path, monkeypatch):
    monkeypatch.setattr(connecting, "_BUSY_SECONDS", 0.2)
    write(path)
    with sql(path) as run:
        run.execute("BEGIN IMMEDIATE")
        with Database.open(path, create=False) as database:
            assert database.images() == []
        with pytest.raises(LocalError, match="another program"):
            write(path, record("localhost/a:1", "x"))
        run.execute("ROLLBACK")
    write(path, record("localhost/a:1", "x"))


HOLDER = """
import fcntl, sys
with open(sys.argv[1] + "-shm", "r+b") as index:
    # What a process holds that makes or recovers the index of the log (UNIX_SHM_DMS of SQLite).
    fcntl.lockf(index, fcntl.LOCK_EX, 1, 128)
    print(flush=True)
    sys.stdin.read()
"""


def test_a_program_that_was_stopped_while_it_opened_the_database_is_told_as_another_program(path):
    write(path, record("localhost/a:1", "x"))
    Path(f"{path}-shm").write_bytes(bytes(32768))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LocalError, match="another program keeps it locked") as caught:
            Database.open(path, create=False)
        holder.stdin.close()
    assert caught.value.hint == "wait for the other program, or stop it"
    with Database.open(path, create=False) as database:
        assert [x.reference for x in database.images()] == ["localhost/a:1"]


def test_d9_a_full_disk_is_told_as_such(path):
    write(path)
    with Database.open(path, create=True) as database:
        database._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(LocalError, match="no space left"):
            database.record(record("localhost/a:1", "x", config={"history": [{"comment": "x" * 100_000}]}))
    with Database.open(path, create=True) as database:
        assert database.images() == []


def test_listing_takes_as_many_statements_for_a_thousand_images_as_for_one_and_no_square(path):
    with Database.open(path, create=True) as database:
        database.record(record("localhost/a:1", "abcdefgh"))
    one, (few, few_steps) = _listing(path), _with_copies(path, range(100))
    assert _with_copies(path, range(100, 1000))[0] == few == one[0]
    assert _listing(path)[1] < 10.5 * few_steps


def _listing(path) -> tuple[list[str], int]:
    """The statements of looking at all images, and the steps."""
    said: list[str] = []
    with Database.open(path, create=False) as database:
        database._connection.set_trace_callback(said.append)
        return said, steps(database.images)


def _with_copies(path, numbers) -> tuple[list[str], int]:
    with sql(path) as run:
        run.execute("BEGIN")
        for number in numbers:
            run.execute("INSERT INTO images (reference, size_bytes) VALUES (?, 1)", (f"localhost/i{number}:1",))
            run.execute(
                "INSERT INTO manifests (image_id, schema_version, media_type) VALUES (last_insert_rowid(), 2, '')"
            )
            run.execute(
                "INSERT INTO msb_pull_images SELECT ?, (SELECT max(id) FROM images), (SELECT max(id) FROM manifests), "
                "manifest_digest, platform, manifest, config, layers_json || ?, source, pulled_at "
                "FROM msb_pull_images WHERE reference = 'localhost/a:1'",
                (f"localhost/i{number}:1", " " * number),
            )
        run.execute("COMMIT")
    with Database.open(path, create=False) as database:
        assert len(database.images()) == numbers.stop + 1
    return _listing(path)
