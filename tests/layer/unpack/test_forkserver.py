"""The server that forks children: what they have of it, who ends with whom, and what happens without it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.layer import child as children_of
from msb_pull.layer.child import Child
from msb_pull.layer.unpack import forkserver
from msb_pull.layer.unpack.forkserver import ForkServer
from tests.conftest import REPOSITORY
from tests.support.counting import wait_for
from tests.support.processes import children, gone

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the server needs pidfd_open(2), of Linux")

SAYS = """
import json, os
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ), "parent": os.getppid(), "session": os.getsid(0),
    "files": sorted(int(x) for x in os.listdir("/proc/self/fd")), "input": os.readlink("/proc/self/fd/0"),
    "modules": sorted(sys.modules),
}), flush=True)
"""
SLEEPS = "import os, time; os.write(1, b'.'); time.sleep(100)"


@pytest.fixture
def server():
    made = ForkServer()
    yield made
    made.close()


@pytest.fixture
def run(server):
    """Starts children of the server, and ends them."""
    begun = []

    def start(code: str, *words: str, pass_fds: tuple[int, ...] = ()) -> Child:
        with open(os.devnull, "rb") as nothing:
            child = server.child("the child", code, words, stdin=nothing.fileno(), pass_fds=pass_fds)
        begun.append(child)
        return child

    def end() -> None:
        for child in begun:
            child.end()
            child.close()

    start.ended = end
    yield start
    end()


def heard(child: Child) -> bytes:
    out = b""
    while piece := os.read(child.out, 1 << 20):
        out += piece
    return out


def asleep(child: Child) -> int:
    assert os.read(child.out, 1) == b"."
    return child.process.pid


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_child_has_what_it_was_given_and_nothing_of_the_server(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "x")
    with (tmp_path / "file").open("wb") as given:
        said = [json.loads(heard(run(SAYS, "a b", "", pass_fds=(given.fileno(),)))) for _ in range(2)]
    for one in said:
        assert one["argv"] == ["-c", one["argv"][1], "a b", ""]
        assert {0, 1, 2, int(one["argv"][1])} < set(one["files"])
        # What lists them has one open itself.
        assert len(one["files"]) == 5
        assert (one["cwd"], one["input"]) == ("/", os.devnull)
        # Python's own, where there is no other.
        assert one["env"].keys() <= {"LC_CTYPE"}
        assert "msb_pull.layer.unpack.unpack" in one["modules"]
        assert not {"requests", "typer", "json.tool", "site"} & set(one["modules"])
    assert said[0]["parent"] == said[1]["parent"] != os.getpid()
    assert said[0]["session"] != said[1]["session"]


def test_the_end_of_a_child_is_told_as_that_of_any_other(run):
    for code, status, cause in [
        ("pass", 0, "exit status 0"),
        ("import os; os._exit(7)", 7, "exit status 7"),
        ("raise RuntimeError('a bug')", 1, "RuntimeError: a bug"),
    ]:
        child = run(code)
        child.await_end()
        assert child.end()
        assert (child.process.returncode, child.crashed().cause) == (status, cause)
    killed = run("import os; os.kill(os.getpid(), 15)")
    killed.await_end()
    assert killed.end()
    assert (killed.process.returncode, killed.crashed().message) == (-15, "the child was killed by signal 15")


def test_the_end_is_told_where_the_program_ignores_that_of_its_children(run):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        other, child = run(SLEEPS), run("import os; os._exit(7)")
        asleep(other)
        child.await_end()
        assert child.end()
        assert child.process.returncode == 7
        assert not other.has_ended(0)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_ending_one_leaves_the_others(run):
    first, second = run(SLEEPS), run(SLEEPS)
    asleep(first), asleep(second)
    assert not first.has_ended(0)
    assert first.end() and first.end()
    assert first.process.returncode == -signal.SIGKILL
    assert not gone(second.process.pid)


def test_nothing_is_left(server):
    first = server.child("it", "pass", stdin=0)
    first.end()
    first.close()
    before = sorted(os.listdir("/proc/self/fd"))
    for code in ("pass", "raise SystemExit(3)", SLEEPS):
        child = server.child("it", code, stdin=0)
        child.end()
        child.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    # Those that have ended are collected.
    (process,) = children(os.getpid())
    wait_for(lambda: not children(process))
    lost = server.child("it", SLEEPS, stdin=0)
    server.close()
    server.close()
    wait_for(lambda: gone(lost.process.pid))
    lost.end()
    lost.close()
    assert children(os.getpid()) == []
    assert len(os.listdir("/proc/self/fd")) == len(before) - 3


def test_a_child_outlives_the_thread_that_asked_for_it(run):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(SLEEPS)))
    thread.start()
    thread.join()
    pid = asleep(found[0])
    assert not found[0].has_ended(0.3)
    assert not gone(pid)


def test_many_threads_at_once(run):
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda number: json.loads(heard(run(SAYS, str(number)))), range(60)))
    assert [one["argv"][-1] for one in said] == [str(number) for number in range(60)]
    assert len({one["parent"] for one in said}) == 1


PARENT = """
import os, sys, time
from msb_pull.layer.unpack.forkserver import ForkServer
server = ForkServer()
child = server.child("it", sys.argv[1], stdin=os.open(os.devnull, os.O_RDONLY))
os.read(child.out, 1)
# It holds the socket open, as one may that was started at an unlucky moment.
holder = os.fork()
if holder == 0:
    time.sleep(100)
    os._exit(0)
print(holder, server._process.pid, child.process.pid, flush=True)
time.sleep(100)
"""


def test_all_end_with_the_parent():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, SLEEPS],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as parent:
        assert parent.stdout is not None
        holder, *others = map(int, parent.stdout.readline().split())
        try:
            parent.kill()
            parent.wait()
            wait_for(lambda: all(gone(pid) for pid in others))
        finally:
            os.kill(holder, signal.SIGKILL)


def test_children_end_with_the_server_and_the_next_ones_do_without(run):
    child = run(SLEEPS)
    server = parent_of(asleep(child))
    os.kill(server, signal.SIGKILL)
    child.await_end()
    assert child.end()
    assert child.process.returncode == -signal.SIGKILL
    assert "memory" in child.crashed().hint
    for _ in range(2):
        assert json.loads(heard(run(SAYS)))["parent"] == os.getpid()
    assert gone(server)


def test_a_child_that_was_lost_before_it_could_be_watched(run, server, monkeypatch):
    def lost(pid: int) -> None:
        os.kill(server._process.pid, signal.SIGKILL)
        wait_for(lambda: gone(pid))
        raise ProcessLookupError

    monkeypatch.setattr(children_of, "watch", lost)
    child = run(SLEEPS)
    child.await_end()
    assert child.end()
    assert child.crashed().message == "the child was killed by signal 9"


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL])
def test_a_policy_that_refuses_to_watch_processes(run, monkeypatch, error):
    def refuse(pid: int) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert json.loads(heard(run(SAYS)))["parent"] == os.getpid()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
def test_no_descriptor_left_to_watch_a_child(run, server, monkeypatch, error):
    asleep(run(SLEEPS))
    monkeypatch.setattr(children_of, "watch", lambda pid: (_ for _ in ()).throw(OSError(error, os.strerror(error))))
    with pytest.raises(OSError, match="Too many open files"):
        run(SLEEPS)
    (process,) = children(os.getpid())
    assert len(children(process)) == 1


def test_a_system_that_watches_no_processes(run, monkeypatch):
    monkeypatch.setattr(forkserver, "watch", lambda pid: None)
    monkeypatch.setattr(children_of, "watch", lambda pid: None)
    assert json.loads(heard(run(SAYS)))["parent"] == os.getpid()


def test_a_server_that_cannot_load_its_modules(run, monkeypatch):
    monkeypatch.setattr(forkserver, "_BOOTSTRAP", "raise MemoryError")
    assert json.loads(heard(run(SAYS)))["parent"] == os.getpid()


def test_a_question_that_was_interrupted_gets_no_answer_of_another(run, server, monkeypatch):
    assert parent_of(asleep(run(SLEEPS))) != os.getpid()

    class Interrupted:
        def recv(self, size: int) -> bytes:
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(socket, name)

    socket, server._ours = server._ours, Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run(SLEEPS)
    child = run(SLEEPS)
    assert parent_of(asleep(child)) == os.getpid()


def test_the_server_leaves_its_place_to_a_child_for_which_there_is_no_other(run, server, monkeypatch):
    """A limit of processes may be reached with the one that it takes itself."""
    asleep(run(SLEEPS))
    ask = server._ask
    monkeypatch.setattr(server, "_ask", lambda text, handed: (0, errno.EAGAIN) if handed else ask(text, handed))
    with pytest.raises(LocalError, match="no more threads or processes"):
        run(SLEEPS)
    run.ended()
    (former,) = children(os.getpid())
    assert json.loads(heard(run(SAYS)))["parent"] == os.getpid()
    assert gone(former)
