"""The second process that fills files: the tree is the same as without it, and neither process outlives the other."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.layer.child import Child, _runs
from msb_pull.layer.limits import LayerError
from msb_pull.layer.report import UnpackOptions
from msb_pull.layer.unpack import filler as second
from msb_pull.layer.unpack import process as parent
from msb_pull.layer.unpack.forkserver import ForkServer
from msb_pull.layer.unpack.process import LayerProcess
from tests.support.archive import END, directory, hardlink, reg, symlink, xattr
from tests.support.counting import open_files, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.uname().machine not in ("x86_64", "aarch64"),
    reason="one table of descriptors for two processes is known for Linux on x86-64 and arm64 only",
)

# Empty, small, as large as a slot of the ring and larger ones, in the way of each other and of links.
SIZES = (0, 1, 511, 512, 4096, 524_288, 524_287, 700_000, 3_000_001)
MIXED = [
    directory(b"./", uid=3, mode=0o755),
    *(
        directory(b"d%d" % i, mode=0o1777, mtime=1000 + i)
        + b"".join(
            reg(b"d%d/f%d" % (i, j), os.urandom(SIZES[(i + j) % len(SIZES)]), mode=0o4750, uid=i) for j in range(5)
        )
        for i in range(12)
    ),
    *(reg(b"small/%d" % i, b"%d" % i, mtime=i) for i in range(3000)),
    reg(b"d1/f1", b"later"),
    hardlink(b"linked", b"d2/f2"),
    reg(b"d2", b"in place of a folder"),
    symlink(b"s", b"d3"),
    reg(b"s/f1", b"through a link"),
    xattr(b"user.k", b"v") + reg(b"attributes", b"x" * 5000),
    reg(b"old", b"before 1970", mtime=-5),
    directory(b"d4"),
    reg(b".wh.gone"),
]


KEPT = ".wh..wh.kept"


@pytest.fixture(autouse=True, params=["interpreter", "server"])
def started(monkeypatch, request) -> Iterator[None]:
    """Starts children in either way and sees that none is left."""
    made = []
    begin = LayerProcess.__init__
    server = ForkServer()
    make = server.child if request.param == "server" else Child.start
    monkeypatch.setattr(LayerProcess, "__init__", lambda self, *rest: begin(self, *rest, make) or made.append(self))
    yield
    for process in made:
        process.kill()
    server.close()


def start(folder: Path, **options: object) -> LayerProcess:
    staging = folder / "staging"
    staging.mkdir(parents=True)
    return LayerProcess(staging, folder / "record", UnpackOptions(**options))


def unpacked(folder: Path, data: bytes, **options: object) -> tuple[list, bytes, dict]:
    process = start(folder, **options)
    for at in range(0, len(data), 100_001):
        process.write(data[at : at + 100_001])
    report = process.finish().as_plain()
    return written(folder / "staging"), (folder / "record").read_bytes(), report


def written(root: Path) -> list[tuple]:
    """Of each path, all but its inode; what was kept has the time of the test, and numbers in any order."""
    found, first = [], {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        names = [] if path.is_symlink() else [(name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))]
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        name = path.relative_to(root)
        twin = first.setdefault(facts.st_ino, name)
        when = 0 if path.name == KEPT else facts.st_mtime_ns
        if path.parent.name == KEPT:
            name = twin = path.parent.relative_to(root)
        found.append((str(name), str(twin), facts.st_mode, when, names, str(content)))
    return sorted(found)


def filler_of(process: LayerProcess) -> int:
    """The process id of the second process."""
    pid = process._child.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: children.read_text().split())
    return int(children.read_text())


@pytest.mark.parametrize("xattrs", [True, False])
def test_the_tree_is_the_same_with_and_without(tmp_path, xattrs):
    data = b"".join(MIXED) + END
    both = [unpacked(tmp_path / str(filler), data, filler=filler, xattrs=xattrs) for filler in (True, False)]
    assert both[0] == both[1]


# A child whose file system makes no hard links.
REFUSING = """exec('''
import errno, os

def link(*_, **__):
    raise OSError(errno.EPERM, "no links here")

os.link = link
'''); """


# One batch: none of it is filled when the last entry comes.
@pytest.mark.parametrize(
    ("first", "entries"),
    [
        pytest.param("", [reg(b"a", b"x" * 5000), reg(b"a", b"later")], id="replaced"),
        pytest.param("", [directory(b"d"), reg(b"d/a", b"x" * 5000), reg(b"d", b"later")], id="below_a_folder"),
        pytest.param(REFUSING, [reg(b"a", b"x" * 5000), hardlink(b"b", b"a")], id="copied"),
    ],
)
def test_what_reads_a_file_again_finds_its_content(tmp_path, first, entries):
    both = []
    for filler in (True, False):
        folder = tmp_path / str(filler)
        process = start_in(folder, first, filler=filler)
        finished(process, b"".join(entries) + END)
        both.append(written(folder / "staging"))
    assert both[0] == both[1]
    assert "x" * 5000 in str(both[0])


def test_there_is_a_second_process_and_none_is_left(tmp_path):
    process = start(tmp_path)
    filler = filler_of(process)
    process.write(reg(b"f", b"x" * 1000) + END)
    process.finish()
    with pytest.raises(ProcessLookupError):
        os.kill(filler, 0)


def test_none_when_none_is_wanted(tmp_path):
    process = start(tmp_path, filler=False)
    process.write(b"".join(reg(b"f%d" % i, bytes(9000)) for i in range(1000)))
    pid = process._child.process.pid
    wait_for(lambda: (tmp_path / "staging" / "f900").exists())
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""


def test_one_that_is_behind_leaves_the_processors_to_others(tmp_path):
    nice = []
    for behind in (False, True):
        process = start(tmp_path / str(behind), filler=False, behind=behind)
        process.write(reg(b"f", bytes(600_000)))
        wait_for(lambda folder=tmp_path / str(behind): (folder / "staging" / "f").exists())
        nice.append(os.getpriority(os.PRIO_PROCESS, process._child.process.pid))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert nice == [own, min(19, own + 10)]


def test_it_is_jailed_like_the_first_one(tmp_path):
    process = start(tmp_path)
    filler = filler_of(process)
    first = process._child.process.pid

    def facts(pid: int) -> dict[str, str]:
        lines = (line.partition(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        wanted = ("NoNewPrivs", "Seccomp", "Seccomp_filters")
        return {name: value for name, _, value in lines if name in wanted}

    process.write(bytes(512))
    wait_for(lambda: facts(filler)["Seccomp"] == "2")
    wait_for(lambda: facts(first)["Seccomp"] == "2")
    assert facts(filler) == facts(first)
    assert Path(f"/proc/{filler}/root").readlink() == Path(f"/proc/{first}/root").readlink()
    limits = [Path(f"/proc/{pid}/limits").read_text() for pid in (first, filler)]
    assert limits[0] == limits[1]


def test_it_does_not_interrupt_the_first_one(tmp_path):
    process = start(tmp_path)
    filler = filler_of(process)
    wait_for(lambda: os.sched_getscheduler(filler) == os.SCHED_BATCH)
    assert os.sched_getscheduler(process._child.process.pid) == os.SCHED_OTHER


@pytest.mark.parametrize("victim", ["filler", "creator", "group"])
@pytest.mark.parametrize("moment", range(0, 600, 9))
def test_when_one_is_killed_the_layer_ends_and_nothing_runs_on(tmp_path, victim, moment):
    """At any of its entries: 200 kills."""
    process = start(tmp_path)
    filler, creator = filler_of(process), process._child.process.pid
    staging = tmp_path / "staging"

    def kill() -> None:
        wait_for(lambda: (staging / f"f{moment}").exists())
        target = {"filler": filler, "creator": creator, "group": -creator}[victim]
        os.kill(target, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(LocalError, match=r"killed|ended"):
        for i in range(100_000):
            process.write(reg(b"f%d" % i, b"y" * (i * 37 % 9000)))
    killer.join()
    assert not _runs(creator)


def test_a_helper_that_was_killed_is_named(tmp_path):
    process = start(tmp_path)
    os.kill(filler_of(process), signal.SIGKILL)
    with pytest.raises(LocalError, match="a process that helps the unpacking process was killed") as caught:
        while True:
            process.write(bytes(1 << 20))
    assert "memory" in caught.value.hint


def test_an_error_in_it_is_that_of_its_entry(tmp_path):
    """It is met many entries after the file was made."""
    process = start(tmp_path)
    resource.prlimit(filler_of(process), resource.RLIMIT_FSIZE, (5000, 5000))
    with pytest.raises(LayerError, match='"the one": the file is larger'):
        process.write(reg(b"f", bytes(100)) * 20 + reg(b"the one", bytes(6000)))
        finished(process, b"".join(reg(b"g%d" % i, bytes(100)) for i in range(20)) + END)


def test_the_first_error_counts(tmp_path):
    """An entry that is refused comes after a file that could not be written."""
    process = start(tmp_path)
    resource.prlimit(filler_of(process), resource.RLIMIT_FSIZE, (5000, 5000))
    with pytest.raises(LayerError, match='"the one": the file is larger'):
        finished(process, reg(b"the one", bytes(6000)) + reg(b"../outside") + END)


def test_a_full_disk_ends_it_without_a_deadlock(tmp_path):
    """More than the ring holds comes after the error."""
    process = start(tmp_path)
    filler = filler_of(process)
    resource.prlimit(filler, resource.RLIMIT_FSIZE, (0, 0))
    with pytest.raises(LayerError, match='"f0": the file is larger'):
        for i in range(100_000):
            process.write(reg(b"f%d" % i, bytes(8192)))


def test_where_no_more_processes_may_be_one_does_it_all(tmp_path):
    """As for a user whose limit of processes (RLIMIT_NPROC, pids.max) is reached."""
    process = start_in(tmp_path, "from msb_pull.layer.unpack import filler; filler._CLONE.clear(); ")
    data = b"".join(reg(b"f%d" % i, b"x" * i) for i in range(2000)) + END
    assert finished(process, data) == 2000
    assert len(list((tmp_path / "staging").iterdir())) == 2000


@pytest.mark.parametrize("refused", ["_clone", "os.pipe"])
def test_where_there_can_be_none_nothing_stays_open(monkeypatch, refused):
    real, pipes = os.pipe, []

    def refuse():
        raise OSError(errno.EAGAIN, "refused")

    def pipe():
        pipes.append(real() if not pipes else refuse())
        return pipes[-1]

    monkeypatch.setattr(second, "_clone", refuse)
    if refused == "os.pipe":
        monkeypatch.setattr(os, "pipe", pipe)
    before = open_files()
    assert second.start(SimpleNamespace(), lambda: None) is None
    assert open_files() <= before


@pytest.mark.parametrize("most", [40, 64, 200])
def test_a_low_limit_of_open_files(tmp_path, most):
    process = start_in(tmp_path, f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most})); ")
    data = b"".join(directory(b"d%d" % i) + reg(b"d%d/f" % i, b"x" * i) for i in range(2000)) + END
    assert finished(process, data) == 4000


def start_in(folder: Path, first: str, **options: object) -> LayerProcess:
    """A child that does something else first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parent, "_BOOTSTRAP", first + parent._BOOTSTRAP)
        return start(folder, **options)


def finished(process: LayerProcess, data: bytes) -> int:
    process.write(data)
    return process.finish().entries
