"""When images were last used, and which are in use."""

from __future__ import annotations

import errno
import os
import threading
import time
from datetime import UTC, datetime

import pytest

from msb_pull.ground.errors import Cancelled
from msb_pull.ground.running import Cancel, Job
from msb_pull.store.index.keys import copy_name
from msb_pull.store.store import Store
from msb_pull.store.uses import InUse
from tests.support.counting import open_files, wait_for
from tests.support.stores import NEVER, digest, microsandbox_pull, pull, record, set_used, sql

NAME = "localhost/a:1"
DAY = 86400
# Long ago.
THEN = 1_700_000_000


@pytest.fixture
def store(tmp_path):
    made = Store.open(tmp_path / "home")
    pull(made, NAME, "x")
    return made


def copy(store, reference: str = NAME):
    return store.homes.copies / copy_name(reference)


def last(store, reference: str = NAME) -> float:
    with store.database(create=False) as database:
        return store.uses.last(database.find(reference))


def test_a_pull_is_a_use_and_a_touch_is_one(store):
    written = os.stat(copy(store)).st_mtime
    assert last(store) == written
    set_used(store, NAME, THEN)
    assert last(store) == THEN
    store.uses.touch(NAME)
    assert last(store) == os.stat(copy(store)).st_mtime >= written


def test_a_touch_writes_at_most_once_a_minute(store, monkeypatch):
    written = []
    monkeypatch.setattr(os, "utime", lambda path, **more: written.append(path))
    store.uses.touch(NAME)
    assert written == []
    then = os.stat(copy(store)).st_mtime
    for seconds, expected in ((50, 0), (70, 1), (-70, 2)):
        monkeypatch.setattr(time, "time", lambda now=then + seconds: now)
        store.uses.touch(NAME)
        assert len(written) == expected, seconds


def test_a_use_that_the_rows_tell_of_counts(store):
    """Microsandbox writes its column when it uses an image."""
    set_used(store, NAME, THEN)
    with sql(store.database_path) as run:
        text = datetime.fromtimestamp(THEN + DAY, UTC).strftime("%Y-%m-%d %H:%M:%S")
        run.execute("UPDATE images SET last_used_at = ?", (text,))
    assert last(store) == THEN + DAY


@pytest.mark.parametrize("text", ["soon", "", None, "0000-00-00", "\0"])
def test_rows_that_make_no_sense_are_no_use(store, text):
    set_used(store, NAME, THEN)
    with sql(store.database_path) as run:
        run.execute("UPDATE images SET last_used_at = ?", (text,))
    assert last(store) == THEN


def test_a_use_in_the_future_is_one_of_now(store):
    future = os.stat(copy(store)).st_mtime + DAY
    os.utime(copy(store), (future, future))
    with sql(store.database_path) as run:
        run.execute("UPDATE images SET last_used_at = '9999-01-01 00:00:00'")
    assert last(store) < future
    store.uses.touch(NAME)
    assert os.stat(copy(store)).st_mtime < future


def test_a_lost_database_does_not_make_all_images_alike(store):
    pulled_at = datetime.fromtimestamp(THEN - DAY, UTC)
    made = record("localhost/b:1", "x")._replace(pulled_at=pulled_at)
    with store.database(create=True) as database:
        database.record(made)
    os.utime(copy(store, "localhost/b:1"), (THEN, THEN))
    for file in store.home.glob("oci.db*"):
        file.unlink()
    with store.database(create=True) as database:
        assert len(database.images()) == 2
    assert last(store, "localhost/b:1") == THEN


def test_what_has_no_copy_and_what_cannot_be_written_is_passed_over(store, tmp_path):
    store.uses.touch("localhost/none:1")
    Store.open(tmp_path / "nowhere", create=False).uses.touch(NAME)
    assert not (tmp_path / "nowhere").exists()
    microsandbox_pull(store.database_path, "localhost/theirs:1", "x")
    store.uses.touch("localhost/theirs:1")
    # Its row alone says when it was pulled.
    assert last(store, "localhost/theirs:1") > 0
    path = copy(store)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").touch()
    os.utime(tmp_path / "elsewhere", (1, 1))
    os.utime(path, (1, 1), follow_symlinks=False)
    store.uses.touch(NAME)
    assert os.stat(tmp_path / "elsewhere").st_mtime == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC])
def test_where_nothing_can_be_written_a_touch_is_silent(store, monkeypatch, number):
    set_used(store, NAME, THEN)

    def refuse(path, **more):
        raise OSError(number, "refused", path)

    monkeypatch.setattr(os, "utime", refuse)
    store.uses.touch(NAME)
    assert last(store) == THEN


def is_free(store, name: str = NAME) -> bool:
    with Store.open(store.home).uses.alone(name, Job()) as free:
        return free


def test_an_image_is_in_use_while_any_command_holds_it(store):
    assert is_free(store)
    with InUse(store.uses, Job()) as one, InUse(Store.open(store.home).uses, Job()) as other:
        one.add(NAME)
        one.add(NAME)
        assert not is_free(store)
        other.add(NAME)
    assert is_free(store)


def test_who_uses_more_images_than_can_be_held_one_by_one_keeps_all(store, monkeypatch):
    monkeypatch.setattr("msb_pull.store.uses._MOST", 3)
    other = Store.open(store.home)
    before = len(os.listdir("/dev/fd"))
    with InUse(store.uses, Job()) as many:
        many.add("docker.io/library/a:1")
        many.add("docker.io/library/b:1")
        assert is_free(other) and not other.uses.is_used(NAME)
        for number in range(50):
            many.add(f"docker.io/library/c:{number}")
        many.add(NAME)
        with other.uses.alone(None, Job()) as free:
            assert not free and other.uses.is_used(NAME)
        assert len(os.listdir("/dev/fd")) == before + 3
    assert not other.uses.is_used(NAME)
    with other.uses.alone(None, Job()) as free:
        assert free


def test_whoever_begins_to_use_an_image_waits_while_it_goes(store):
    held, cancel = threading.Event(), Cancel()

    def use():
        with InUse(store.uses, Job(cancel=cancel)) as mine:
            mine.add(NAME)
            held.set()

    thread = threading.Thread(target=use)
    with Store.open(store.home).uses.alone(NAME, Job()) as free:
        assert free
        thread.start()
        assert not held.wait(0.3)
    wait_for(held.is_set, 10)
    thread.join()
    with Store.open(store.home).uses.alone(NAME, Job()), InUse(store.uses, Job(cancel=cancel)) as mine:
        cancel.set()
        with pytest.raises(Cancelled):
            mine.add(NAME)


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    nowhere = Store.open(tmp_path / "nowhere", create=False)
    with InUse(nowhere.uses, Job()) as mine:
        mine.add(NAME)
    assert not (tmp_path / "nowhere").exists()


def test_a_command_holds_no_more_images_than_it_may_open_files(store):
    before = open_files()
    with InUse(store.uses, Job()) as mine:
        for number in range(300):
            mine.add(f"localhost/a{number}:1")
        assert len(open_files() - before) <= 128
    assert open_files() <= before


def locks(store) -> list[str]:
    return sorted(name for name in os.listdir(store.own / "locks") if name.startswith(("image-", "sha256:")))


def test_the_locks_of_images_and_layers_that_are_gone_go(store):
    def use(name):
        with store.uses.hold(name, Job()):
            pass

    use(NAME)
    with store.lock_layer(digest("x"), print, NEVER):
        pass
    kept = locks(store)
    assert len(kept) == 2
    use("localhost/misspelled:1")
    with store.lock_layer(digest("gone"), print, NEVER):
        pass
    assert len(locks(store)) == 4
    with Store.open(store.home).uses.hold("localhost/coming:1", Job()):
        store.sweep_locks()
        assert len(locks(store)) == 3
        assert not is_free(store, "localhost/coming:1")
    store.sweep_locks()
    assert locks(store) == kept


def test_the_locks_of_another_homes_images_stay(store, tmp_path):
    other = Store.open(tmp_path / "other", store.layers)
    other.register(needed=True)
    pull(other, "localhost/other:1", "y")
    with other.uses.hold("localhost/other:1", Job()):
        pass
    kept = locks(store)
    for each in (store, other):
        each.sweep_locks()
    assert locks(store) == kept
