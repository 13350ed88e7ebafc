"""A database that is lost, empty, cut or scribbled over: kept aside, rebuilt, told once, and refused if newer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.store.index.connect import DamagedDatabase, make
from msb_pull.store.index.database import Database
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.store import Store
from tests.conftest import REPOSITORY, program_environment
from tests.support.stores import digest, names, record, sql, stacked

WHEN = datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC)


class World:
    def __init__(self, home):
        self.warnings: list[str] = []
        self.home = home
        self.store = Store.open(home, warn=self.warnings.append)
        self.path = self.store.database_path

    def write(self, *images):
        with self.store.database(create=True) as database:
            for image in images:
                database.record(image)

    def images(self, *, create: bool = False):
        with self.store.database(create=create) as database:
            return database.images()

    def aside(self) -> list[str]:
        return sorted(
            name for name in os.listdir(self.home) if "corrupt" in name and not name.endswith(("-wal", "-shm"))
        )


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home")
    made.write(
        record("localhost/a:1", "xyx")._replace(pulled_at=WHEN),
        record("localhost/b:1", "z")._replace(keys=(LayerKey(digest("z"), "0" * 12),), source="oci:dir"),
    )
    return made


def missing(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def other(path):
    path.write_bytes(b"not a database at all, whatever its name says\n" * 100)


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def scribbled(path):
    """The first page is whole, so that the damage shows only when rows are read."""
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


DAMAGES = [missing, empty, other, cut, scribbled]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("first", ["write", "read"])
def test_d15_rebuilt_from_the_files_beside_the_layers(world, damage, first):
    before = world.images()
    damage(world.path)
    if first == "write":
        world.write(record("localhost/c:1", "w"))
        assert [image.reference for image in world.images()] == ["localhost/a:1", "localhost/b:1", "localhost/c:1"]
        world.write()
    images = world.images()
    assert images[:2] == before
    assert images[0].pulled_at == WHEN
    assert names(x.digest for x in images[0].layers) == "xyx"
    assert str(images[1].layers[0].key) == f"{digest('z')}+{'0' * 12}"
    assert stacked(world.path, "localhost/a:1") == "yx"
    assert len(world.warnings) == 1, world.warnings
    assert "2 images" in world.warnings[0]
    assert len(world.aside()) == (damage is not missing)
    with sql(world.path) as run:
        assert run.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("moment", ["before its name", "after its name"])
def test_d3_what_a_killed_maker_left_goes(tmp_path, moment):
    home = tmp_path / "home"
    store = Store.open(home)
    if moment == "after its name":
        with store.database(create=True):
            pass
        os.link(store.database_path, home / "oci.db.17-0123abcd.new")
    else:
        for suffix in ("", "-journal", "-wal", "-shm"):
            (home / f"oci.db.17-0123abcd.new{suffix}").write_bytes(b"half")
        assert store.sweep() == 0, "perhaps still in the making"
        with store.database(create=True):
            pass
    store.sweep()
    assert [x.name for x in home.iterdir() if ".new" in x.name] == []
    assert store.database_path.stat().st_nlink == 1


def test_d13_a_maker_whose_draft_was_swept_takes_the_other(tmp_path):
    path = tmp_path / "oci.db"

    def overtaken(connection):
        if not path.exists():
            assert make(path)

    assert make(path, overtaken) is False
    with sql(path) as run:
        assert run.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert [x.name for x in tmp_path.iterdir() if ".new" in x.name] == []


def files(world):
    """The database and its relatives, but for the two that SQLite makes for every reader."""
    found = (path for path in world.home.iterdir() if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in found}


@pytest.mark.parametrize("damage", DAMAGES)
def test_d15_whoever_only_looks_changes_nothing(world, damage):
    before = world.images()
    damage(world.path)
    left = files(world)
    warnings: list[str] = []
    looking = Store.open(world.home, create=False, warn=warnings.append)
    with looking.database(create=False) as database:
        assert database.images() == before
        assert database.find("localhost/a:1") == before[0]
    assert files(world) == left
    assert len(warnings) == 1


def test_d15_a_stale_log_is_not_played_into_the_new_database(world):
    world.home.joinpath("oci.db-wal").write_bytes(b"\x37\x7f\x06\x82" + os.urandom(8000))
    other(world.path)
    assert len(world.images()) == 2
    assert len(world.warnings) == 1
    (aside,) = world.aside()
    assert (world.home / f"{aside}-wal").exists()


def test_d15_two_damages_in_one_second_keep_both_files(world):
    for _ in range(2):
        other(world.path)
        assert len(world.images()) == 2
    assert len(world.aside()) == 2


OPENER = """
import sys
from pathlib import Path
from msb_pull.store.store import Store
with Store.open(Path(sys.argv[1]), warn=print).database(create=True) as database:
    assert len(database.images()) == 2
"""


@pytest.mark.parametrize("damage", [missing, empty, other])
def test_d15_several_processes_find_the_damage_at_once(world, damage):
    damage(world.path)
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(world.home)],
            cwd=REPOSITORY, env=program_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    told = 0
    for opener in openers:
        out, error = opener.communicate(timeout=60)
        assert opener.returncode == 0, error
        told += out.count("rebuilt with")
    assert told == 1
    assert len(world.aside()) == (damage is not missing)


@pytest.mark.parametrize("damage", DAMAGES)
def test_d15_another_process_repairs_it_while_this_one_waits(world, monkeypatch, damage):
    damage(world.path)
    real = world.store.locks.hold

    def hold(*arguments, **named):
        with Store.open(world.home).database(create=True) as database:
            database.images()
        return real(*arguments, **named)

    monkeypatch.setattr(world.store.locks, "hold", hold)
    assert len(world.images(create=True)) == 2
    assert world.warnings == []
    assert len(world.aside()) == (damage is not missing)


@pytest.mark.parametrize("what", ["cut", "forged manifest", "forged config", "other layers", "newer", "text"])
def test_files_that_do_not_match_their_digests_are_left_out(world, what):
    file, _ = sorted((world.store.own / "images").iterdir(), key=lambda x: "localhost/a:1" not in x.read_text())
    document = json.loads(file.read_text())
    if what == "cut":
        file.write_text(file.read_text()[:100])
    elif what == "text":
        file.write_text("[1]")
    else:
        key, value = {
            "forged manifest": ("manifest", document["config"]),
            "forged config": ("config", "e30="),
            "other layers": ("layers", document["layers"][:1]),
            "newer": ("version", 2),
        }[what]
        file.write_text(json.dumps(document | {key: value}))
    missing(world.path)
    assert [image.reference for image in world.images()] == ["localhost/b:1"]
    assert "1 more" in world.warnings[0]


def test_removed_images_and_moved_tags_do_not_come_back(world):
    with world.store.database(create=True) as database:
        database.remove(["localhost/b:1"])
    moved = record("localhost/a:1", "w")
    world.write(moved)
    missing(world.path)
    (image,) = world.images()
    assert image.digest == moved.manifest_digest


def test_d4_a_commit_that_never_came_is_made_up_for_after_a_loss(world, monkeypatch):
    """Killed between the file and the commit: the layers are there, and nothing need be fetched again."""

    def killed(old, new):
        os.rename(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr("msb_pull.store.index.backup.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        world.write(record("localhost/c:1", "w"))
    monkeypatch.undo()
    assert [image.reference for image in world.images()] == ["localhost/a:1", "localhost/b:1"]
    missing(world.path)
    assert [image.reference for image in world.images()] == ["localhost/a:1", "localhost/b:1", "localhost/c:1"]


def test_an_image_that_cannot_be_kept_is_not_recorded(world):
    shutil.rmtree(world.store.own / "images")
    (world.store.own / "images").write_text("in the way")
    with pytest.raises(LocalError):
        world.write(record("localhost/c:1", "w"))
    with Database.open(world.path, create=False) as database:
        assert database.references() == ["localhost/a:1", "localhost/b:1"]


def test_alone_a_damaged_database_is_an_error_with_advice(tmp_path):
    path = tmp_path / "oci.db"
    other(path)
    for create in (True, False):
        with pytest.raises(DamagedDatabase, match="damaged") as caught:
            Database.open(path, create=create)
        assert caught.value.hint
    assert os.listdir(tmp_path) == ["oci.db"]


def test_opening_a_store_does_not_load_sqlite(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom msb_pull.store.store import Store\n"
        f"Store.open(Path({str(tmp_path)!r}))\nprint('sqlite3' in sys.modules, 'json' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=program_environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.stdout == "False False\n", run.stderr
