"""Who waits to have the store alone is not kept out for ever by holders who share it and overlap."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from msb_pull.store.locks import Busy, Locks
from tests.conftest import REPOSITORY, program_environment
from tests.support.holders import HOLDER, hold, holder

ATTEMPTS = 1500


def shared(folder, **options):
    return hold(Locks(folder), exclusive=False, wait=False, **options)


def until_newcomers_wait(folder) -> str:
    """Comes and goes as a reader, again and again, until one is told to wait; returns for whom."""
    for _ in range(ATTEMPTS):
        try:
            with shared(folder):
                time.sleep(0.01)
        except Busy as error:
            return error.message
    pytest.fail("readers come and go without end, and the one who waits never gets in")


@contextlib.contextmanager
def waiting_alone(folder):
    """Another process that waits to have the lock alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), "store", "x"],
        cwd=REPOSITORY, env=program_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_who_waits_to_be_alone_goes_next(tmp_path):
    with holder(tmp_path, kind="s") as reader, waiting_alone(tmp_path) as waiting:
        assert f"msb-pull (pid {waiting.pid})" in until_newcomers_wait(tmp_path)
        reader.kill()
        reader.wait()
        assert "held\n" in iter(waiting.stdout.readline, "")
        with pytest.raises(Busy), shared(tmp_path):
            pass
    with shared(tmp_path):
        pass


def test_readers_come_in_again_when_the_one_who_waited_is_killed(tmp_path):
    with holder(tmp_path, kind="s"):
        with waiting_alone(tmp_path) as waiting:
            until_newcomers_wait(tmp_path)
            waiting.send_signal(signal.SIGKILL)
            waiting.wait()
        with shared(tmp_path), shared(tmp_path):
            pass


def test_readers_that_wait_for_a_writer_keep_no_other_writer_out(tmp_path):
    """Both who wait get in, whichever is first."""
    got = []
    locks = Locks(tmp_path)

    def enter(exclusive):
        with hold(Locks(tmp_path), exclusive=exclusive):
            got.append(exclusive)

    with hold(locks):
        threads = [threading.Thread(target=enter, args=(exclusive,)) for exclusive in (False, True, False, True)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert got == []
    for thread in threads:
        thread.join(30)
    assert sorted(got) == [False, False, True, True]


def test_nothing_is_made_for_who_need_not_wait(tmp_path):
    for exclusive in (True, False):
        with hold(Locks(tmp_path), exclusive=exclusive):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["store.lock"]
