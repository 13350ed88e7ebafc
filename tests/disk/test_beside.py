"""A second process: it does its part, ends in every case, and tells how it went."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys

import pytest

from msb_pull.disk.beside import Beside, gains, start
from msb_pull.ground.errors import Cancelled, LocalError
from msb_pull.ground.running import processors
from tests.support.counting import open_files

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is one process elsewhere")


def forever(tell):
    signal.pause()


def runs(process: int) -> bool:
    """Whether it has not ended; one that was waited for is gone."""
    return os.path.exists(f"/proc/{process}")


def test_it_does_its_part_and_tells_how_much():
    shared, told = mmap.mmap(-1, 8), []

    def work(tell):
        shared[:4] = b"done"
        for _ in range(10):
            tell(7)

    with Beside(work) as beside:
        beside.with_it(told.append)(5)
        assert beside.finish(told.append)
    assert shared[:4] == b"done"
    assert sum(told) == 75


def test_what_it_fails_at_is_left_to_this_process():
    told = []

    def work(tell):
        tell(7)
        raise ValueError("damaged")

    with Beside(work) as beside:
        assert not beside.finish(told.append)
    assert sum(told) == 0


def test_killed():
    def work(tell):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(LocalError, match="killed by signal 9"), Beside(work) as beside:
        beside.finish(lambda size: None)


def test_somebody_else_has_waited_for_it():
    with Beside(lambda tell: None) as beside:
        os.waitpid(beside._process, 0)
        assert not beside.finish(lambda size: None)


def test_an_error_here_ends_it():
    with pytest.raises(ValueError, match="here"), Beside(forever) as beside:
        process = beside._process
        assert runs(process)
        raise ValueError("here")
    assert not runs(process)


def test_where_nobody_is_told_of_its_end_an_error_here_is_told():
    """As under `trap "" CHLD`: the kernel waits for it, and its number may be that of another process by now."""
    code = (
        "import os, select, signal\n"
        "from msb_pull.disk.beside import Beside\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "kill, killed = os.kill, []\n"
        "os.kill = lambda *given: (killed.append(given), kill(*given))\n"
        "try:\n"
        "    with Beside(lambda tell: None) as beside:\n"
        "        select.select([beside._end], [], [])\n"
        "        raise ValueError('here')\n"
        "except ValueError as error:\n"
        "    print(error, killed)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True, text=True)
    assert done.stdout == "here []\n"


def test_it_is_waited_for_no_longer_than_the_work_goes_on():
    def progress(size: int) -> None:
        raise Cancelled("interrupted")

    with pytest.raises(Cancelled), Beside(forever) as beside:
        process = beside._process
        beside.finish(progress)
    assert not runs(process)


def test_signals_are_for_the_first_process():
    """Those of a terminal go to both, and a program may handle others than the command line does."""
    former, shared = signal.pthread_sigmask(signal.SIG_BLOCK, ()), mmap.mmap(-1, 1)
    handler = signal.signal(signal.SIGWINCH, lambda number, frame: shared.write(b"x"))

    def work(tell):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
            os.kill(os.getpid(), number)

    try:
        with Beside(work) as beside:
            assert beside.finish(lambda size: None)
    finally:
        signal.signal(signal.SIGWINCH, handler)
    assert shared[:] == b"\0"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == former


@pytest.mark.parametrize("at", ["tell(1)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_it_ends_with_the_first_process(at):
    """Also where it was stopped: it would hold the locks of the store until it goes on."""
    code = (
        "import os, signal, sys, time\n"
        "from msb_pull.disk.beside import Beside\n"
        "def work(tell):\n"
        "    while True:\n"
        f"        {at}\n"
        "        time.sleep(0.01)\n"
        "beside = Beside(work)\n"
        "state = lambda: open(f'/proc/{beside._process}/stat').read().rpartition(')')[2].split()[0]\n"
        f"while {'STOP' in at} and state() != 'T':\n"
        "    time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Both have the output open: its end is that of the last.
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(11, "Resource temporarily unavailable"),
        RuntimeError("fork not supported for isolated subinterpreters"),
    ],
)
def test_where_there_can_be_no_more_processes(monkeypatch, error):
    def refused():
        raise error

    before = open_files()
    monkeypatch.setattr(os, "fork", refused)
    assert start(forever) is None
    assert open_files() <= before


def test_little_work_needs_none():
    assert not gains(1 << 20)


@pytest.mark.skipif(processors() < 2, reason="one processor is kept busy by one process")
@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        ("", True),
        ("start_thread(wait, 'ours')", True),
        ("threading.Thread(target=wait, daemon=True).start()", False),
        ("_thread.start_new_thread(wait, ())", False),
        ("start_thread(wait, 'ours'); threading.Thread(target=wait, daemon=True).start()", False),
    ],
)
def test_none_is_forked_beside_threads_of_others(threads, expected):
    code = (
        "import _thread, threading, time\n"
        "from msb_pull.disk.beside import gains\n"
        "from msb_pull.ground.running import start_thread\n"
        "wait = lambda: time.sleep(600)\n"
        f"{threads}\n"
        "print(gains(1 << 40))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True, text=True)
    assert done.stdout == f"{expected}\n"
