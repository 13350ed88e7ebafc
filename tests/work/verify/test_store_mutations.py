"""Every file and every row of a small store, changed in every way there is: verify ends with damage, or says what it
has rewritten, and finds nothing once the change is undone."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import sqlite3
import zlib
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from msb_pull.ground.errors import MsbPullError
from tests.support.archive import END, directory, hardlink, hdr, pax, reg, symlink, xattr
from tests.support.world import World, sparse

COUNT = int(os.environ.get("MUTATIONS", "100"))
FIRST = int(os.environ.get("MUTATION_SEED", "0"))

LAYERS = [
    b"".join(
        (
            directory(b"data/run", mode=0o700, uid=3),
            symlink(b"run", b"data/run"),
            directory(b"etc", mode=0o750, uid=1),
            reg(b"etc/passwd", b"root:x:0:0\n"),
            reg(b"etc/doubled", b"first"),
            reg(b"etc/doubled", b"second"),
            sparse(b"sparse"),
            symlink(b"through", b"etc"),
            reg(b"through/placed", b"through a symlink"),
            hardlink(b"etc/again", b"etc/passwd"),
            xattr(b"user.kept", b"value"),
            reg(b"attribute", b"x"),
            END,
        )
    ),
    b"".join(
        (
            reg(b"run/moved", b"below a symlink below"),
            reg(b"etc/implied", b"in a directory that only the layer below describes"),
            hardlink(b"lower", b"etc/passwd"),
            hdr(b".wh.sparse"),
            hdr(b"null", typ=b"3", major=1, minor=3),
            pax((b"path", b"long/" * 30 + b"name")),
            reg(b"n", b"y" * 513),
            END,
        )
    ),
]

# Numbers of rows and times that other programs keep for themselves, and what Microsandbox knows of its own tables.
BELIEVED = {"created_at", "modified_at", "last_used_at", "configs.id", "manifest_layers.id"}
BELIEVED |= {"layers.media_type"}
TABLES = ("images", "manifests", "configs", "layers", "manifest_layers", "msb_pull_images")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("mutations"), LAYERS)


def seen(world: World) -> bool:
    """Whether anything is wrong, or was and has been rewritten; nothing raises but what ends a run with a code."""
    world.told.clear()
    try:
        report = world.verify()
    except MsbPullError:
        return True
    return bool(report.damaged or report.misrecorded or world.told)


@contextmanager
def changed(path: Path, change):
    """Changes a file as it is on the disk, and puts it back with all its facts."""
    # Beside the home, on the same file system.
    home = next(x for x in path.parents if x.name == "home")
    aside = home.parent / "changed"
    facts, parent = path.lstat(), path.parent.stat()
    path.rename(aside)
    try:
        change(aside, path)
        if os.path.lexists(path) and not path.is_symlink():
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
        aside.rename(path)
        os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))


def edited(edit):
    def change(aside: Path, path: Path) -> None:
        shutil.copy2(aside, path)
        with path.open("r+b") as file:
            data = edit(file.read())
            file.seek(0)
            file.truncate()
            file.write(data)

    return change


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


CHANGES = {
    "removed": lambda aside, path: None,
    "emptied": edited(lambda data: b""),
    "cut": edited(lambda data: data[:-1]),
    "cut in the middle": edited(lambda data: data[: len(data) // 2]),
    "longer": edited(lambda data: data + b"x"),
    "first byte": edited(lambda data: flipped(data, 0)),
    "middle byte": edited(lambda data: flipped(data, len(data) // 2)),
    "last byte": edited(lambda data: flipped(data, len(data) - 1)),
    "backwards": edited(lambda data: data[::-1]),
    "a symlink": lambda aside, path: path.symlink_to("/nowhere"),
    "a directory": lambda aside, path: path.mkdir(),
    "a fifo": lambda aside, path: os.mkfifo(path),
}


def files_of(world: World) -> list[Path]:
    """All that the store keeps of its own beside locks and what is swept, and all files of layers."""
    own = [*(world.store.own / "records").rglob("*"), *(world.store.own / "images").glob("*.json")]
    layers = [path for tree in world.trees for path in tree.rglob("*")]
    return sorted(path for path in (*own, *layers) if path.is_file() and not path.is_symlink())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_file_changed_in_every_way_is_seen(world, change):
    missed = []
    for path in files_of(world):
        if path.stat().st_size < 2 and change not in (CHANGES["removed"], CHANGES["a symlink"]):
            continue
        data = path.read_bytes()
        if data == data[::-1] and change is CHANGES["backwards"]:
            continue
        with changed(path, change):
            if not seen(world):
                missed.append(path)
    assert missed == []
    seen(world)
    assert not seen(world), world.told


def test_layers_records_and_notes_in_the_place_of_each_other_are_seen(world):
    first, second = world.result.layers
    records = world.store.own / "records"
    for one, other in (
        (world.trees[0], world.trees[1]),
        *((records / f"{first.digest}.{x}", records / f"{second.digest}.{x}") for x in ("tar", "json")),
    ):
        aside = world.folder / "aside"
        for _ in range(2):
            one.rename(aside)
            other.rename(one)
            aside.rename(other)
            assert seen(world) == (_ == 0)


def test_what_a_layer_overwrote_in_the_place_of_another_is_seen(world):
    kept = world.record_of(0, "kept")
    kept.rename(kept.with_name("aside"))
    assert seen(world)
    kept.with_name("aside").rename(kept)
    assert not seen(world)


def restored(world: World):
    """Puts the database back; its log first."""
    path = world.store.database_path
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


@contextmanager
def statement(world: World, text: str, values=()):
    path = world.store.database_path
    before = restored(world)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(text, values)
    yield
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(before)


def cells(world: World):
    with closing(sqlite3.connect(world.store.database_path)) as database:
        for table in TABLES:
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            for row in database.execute(f"SELECT rowid, {', '.join(columns)} FROM {table}").fetchall():
                for column, value in zip(columns, row[1:], strict=True):
                    if column not in BELIEVED and f"{table}.{column}" not in BELIEVED:
                        yield table, column, row[0], value


def others(value):
    if value is None:
        return ["x"]
    if isinstance(value, int):
        return [value + 1000, -1]
    return [value[:-1], value + type(value)(value[:1]), type(value)()]


def test_every_cell_of_the_database_changed_is_seen(world):
    missed = []
    for table, column, row, value in list(cells(world)):
        for other in others(value):
            try:
                with statement(world, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (other, row)):
                    if not seen(world):
                        missed.append((table, column, other))
            except sqlite3.IntegrityError:
                continue
    assert missed == []
    seen(world)
    assert not seen(world), world.told


def test_every_row_of_the_database_removed_is_seen(world):
    for table in TABLES:
        with closing(sqlite3.connect(world.store.database_path)) as database:
            rows = [row for (row,) in database.execute(f"SELECT rowid FROM {table}")]
        for row in rows:
            with statement(world, f"DELETE FROM {table} WHERE rowid = ?", (row,)):
                assert seen(world), table
    seen(world)
    assert not seen(world), world.told


def telling(path: Path):
    """What a file says: gzip has a few bits that say nothing, notes a word on their first base and warnings of then."""
    data = path.read_bytes()
    try:
        if path.suffix == ".tar":
            return gzip.decompress(data)
        if path.parent.name == "records" and path.suffix == ".json":
            return json.loads(data) | {"chain": "", "warnings": []}
    except (ValueError, TypeError, OSError, EOFError, zlib.error):
        return None
    return data


@pytest.mark.timeout(600)
def test_random_bytes_of_the_stores_own_files_are_seen(world):
    own = [path for path in files_of(world) if world.store.own in path.parents]
    for number in range(FIRST, FIRST + COUNT):
        dice = random.Random(number)
        path = dice.choice(own)

        def edit(data: bytes, dice=dice) -> bytes:
            place = dice.randrange(len(data))
            kind = dice.randrange(3)
            if kind == 0:
                return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
            if kind == 1:
                return data[:place] + data[place + dice.randint(1, 9) :]
            return data[:place] + dice.randbytes(dice.randint(1, 9)) + data[place:]

        before = telling(path)
        with changed(path, edited(edit)):
            assert telling(path) == before or seen(world), f"seed {number}: {path}"
        seen(world)
    assert not seen(world), world.told
