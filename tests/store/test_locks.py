"""Locks between processes, between threads, and where there are none."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import threading
import time

import pytest

from msb_pull.ground.errors import Cancelled, LocalError
from msb_pull.store.locks import Busy, Locks
from tests.support.holders import hold, holder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "locks"


def test_d1_one_waits_for_the_other_and_says_for_whom(folder):
    told: list[str] = []
    with holder(folder) as process:

        def end_it(text: str) -> None:
            told.append(text)
            process.kill()

        with hold(Locks(folder), on_wait=end_it):
            assert process.wait(60) == -9
    assert told == [f"msb-pull (pid {process.pid})"]


def test_d6_a_killed_holder_holds_nothing(folder):
    with holder(folder) as process:
        process.kill()
        process.wait()
        with hold(Locks(folder), wait=False):
            pass


def test_no_wait(folder):
    with holder(folder) as process, pytest.raises(LocalError) as caught, hold(Locks(folder), wait=False):
        pass
    assert f"in use by msb-pull (pid {process.pid})" in caught.value.message
    assert caught.value.exit_code == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a process is stopped")
def test_a_holder_that_ctrl_z_has_stopped(folder):
    with holder(folder) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(LocalError) as caught, hold(Locks(folder), wait=False):
            pass
    assert f"in use by msb-pull (pid {process.pid}, stopped)" in caught.value.message


def test_shared_holders_do_not_wait_for_each_other_but_keep_a_lone_one_out(folder):
    with holder(folder, kind="s"):
        with hold(Locks(folder), exclusive=False, wait=False), hold(Locks(folder), exclusive=False, wait=False):
            pass
        with pytest.raises(LocalError), hold(Locks(folder), wait=False):
            pass


def test_other_names_do_not_wait(folder):
    with holder(folder, name="sha256:aa"), hold(Locks(folder), "sha256:bb", wait=False):
        pass


def test_cancelled_while_waiting_for_a_process(folder):
    cancel = threading.Event()
    with holder(folder):
        threading.Timer(0.3, cancel.set).start()
        with pytest.raises(Cancelled), hold(Locks(folder), cancel=cancel):
            pass


def test_d2_threads_of_one_process_queue(folder):
    """flock alone would let a process wait for itself; at most one thread is inside at any time."""
    locks = Locks(folder)
    inside: list[int] = []
    most = 0

    def work():
        nonlocal most
        for _ in range(20):
            with hold(locks, "layer"):
                inside.append(1)
                most = max(most, len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert most == 1


def test_d2_cancelled_while_waiting_for_a_thread(folder):
    locks, cancel, told = Locks(folder), threading.Event(), []
    with hold(locks):

        def end_it(text):
            told.append(text)
            cancel.set()

        def wait():
            with pytest.raises(Cancelled), hold(locks, cancel=cancel, on_wait=end_it):
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert told == ["another image of this run"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_d7_without_flock_one_warning_and_the_work_goes_on(folder, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    warnings: list[str] = []
    locks = Locks(folder, warnings.append)
    with hold(locks, "a"), hold(locks, "b"):
        pass
    assert len(warnings) == 1
    assert "one msb-pull at a time" in warnings[0]


def test_d8_lock_files_stay_when_they_are_let_go(folder):
    with hold(Locks(folder)):
        number = (folder / "store.lock").stat().st_ino
    with hold(Locks(folder)):
        assert (folder / "store.lock").stat().st_ino == number
    assert os.listdir(folder) == ["store.lock"]


def test_d8_what_is_gone_and_free_loses_its_lock_file(folder):
    locks = Locks(folder)
    for name in ("a", "b", "c"):
        with hold(locks, name):
            pass
    (folder / "a.turnstile.lock").touch()
    (folder / "b.lock.txt").touch()
    with holder(folder, "c", "s"):
        locks.sweep(lambda name: name in ("a", "c"))
        assert sorted(os.listdir(folder)) == ["b.lock", "b.lock.txt", "c.lock"]
        with pytest.raises(Busy), hold(locks, "c", wait=False):
            pass
    locks.sweep(lambda name: True)
    assert os.listdir(folder) == ["b.lock.txt"]


def test_d8_a_sweep_of_a_folder_that_is_not_there(folder):
    Locks(folder).sweep(lambda name: True)
    assert not folder.exists()


def test_d8_what_is_no_lock_file_stays(folder, tmp_path):
    (folder / "dir.lock").mkdir(parents=True)
    (folder / "link.lock").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").touch()
    Locks(folder).sweep(lambda name: True)
    assert sorted(os.listdir(folder)) == ["dir.lock", "link.lock"] and (tmp_path / "victim").exists()


@pytest.mark.parametrize("exclusive", [True, False])
def test_d8_whoever_had_opened_a_lock_that_goes_takes_the_next_one_of_its_name(folder, monkeypatch, exclusive):
    """A lock on a file without a name keeps nobody out who comes later."""
    locks, real, swept = Locks(folder), fcntl.flock, []

    def flock(descriptor, operation):
        if not swept:
            swept.append(True)
            Locks(folder).sweep(lambda name: True)
            assert os.listdir(folder) == []
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold(locks, exclusive=exclusive):
        assert swept
        with pytest.raises(Busy), hold(Locks(folder), wait=False):
            pass
    with hold(Locks(folder), wait=False):
        pass


def test_d8_where_a_lock_never_has_its_name_the_search_for_it_ends_with_the_work(folder, monkeypatch):
    """As where numbers of inodes do not last."""
    cancel, looks = threading.Event(), []

    def is_same_file(descriptor, path):
        looks.append(1)
        if len(looks) == 3:
            cancel.set()
        return len(looks) > 9

    monkeypatch.setattr("msb_pull.store.locks.is_same_file", is_same_file)
    with pytest.raises(Cancelled), hold(Locks(folder), cancel=cancel):
        pass
    assert len(looks) == 3


def test_d8_threads_that_sweep_and_hold_are_never_two_inside(folder):
    locks, inside, most, done = Locks(folder), [], [], threading.Event()

    def work(mine):
        for _ in range(50):
            with hold(mine, "layer"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    def sweep():
        while not done.is_set():
            locks.sweep(lambda name: True)

    # Each has locks of its own, so flock alone keeps them apart.
    threads = [threading.Thread(target=work, args=(Locks(folder),)) for _ in range(4)]
    sweeper = threading.Thread(target=sweep)
    for thread in (sweeper, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    sweeper.join(60)
    assert len(most) == 200 and max(most) == 1


def test_d22_a_folder_that_cannot_be_written_to_needs_no_lock(folder, monkeypatch):
    folder.mkdir()
    (folder / "old.lock").touch()
    real = os.open

    def read_only(path, flags, *more, **named):
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    with hold(Locks(folder), "old", exclusive=False), hold(Locks(folder), "new", exclusive=False):
        pass


def test_d25_a_symlink_is_no_lock_file(folder, tmp_path):
    folder.mkdir()
    (folder / "store.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(LocalError), hold(Locks(folder)):
        pass
    assert not (tmp_path / "victim").exists()


def test_a_holder_that_is_gone_is_not_named(folder):
    folder.mkdir()
    (folder / "store.lock").write_text("999999999 since x\n")
    with open(folder / "store.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LocalError, match="another msb-pull"), hold(Locks(folder), wait=False):
            pass
