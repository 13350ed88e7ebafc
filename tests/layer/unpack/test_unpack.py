"""The child that unpacks: what it writes, how it fails, and that it never outlives anybody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import isal
import pytest

from msb_pull.ground.errors import ContentError, LocalError
from msb_pull.layer import report
from msb_pull.layer.child import Child, _runs
from msb_pull.layer.limits import LayerError
from msb_pull.layer.report import UnpackOptions, UnpackReport
from msb_pull.layer.settle.settle import Settled
from msb_pull.layer.unpack import process as parent
from msb_pull.layer.unpack.forkserver import ForkServer
from msb_pull.layer.unpack.process import LayerProcess
from tests.conftest import REPOSITORY, lacking
from tests.support.archive import (
    END,
    assert_proven,
    directory,
    extract,
    hardlink,
    hdr,
    override,
    reg,
    symlink,
    tree,
    xattr,
)
from tests.support.counting import open_files, wait_for

STARTS = ["interpreter", "server"]
LAYER = [
    directory(b"./", uid=3, mode=0o755),
    *(
        directory(b"d%d" % i, mode=0o1777, mtime=1000 + i) + reg(b"d%d/f" % i, b"x" * i, mode=0o4750)
        for i in range(200)
    ),
    reg(b"implied/caf\xe9", b"name"),
    symlink(b"s", b"d1"),
    reg(b"s/placed", b"y"),
    hardlink(b"h", b"d9/f"),
    hardlink(b"below", b"not here"),
    hdr(b"null", typ=b"3", mode=0o666, major=1, minor=3),
    reg(b"w/.wh.x"),
    directory(b"w/x"),
    reg(b"large", os.urandom(2_345_678)),
    xattr(b"user.k", b"v") + reg(b"attributes"),
]


def feed(process: LayerProcess, data: bytes, piece: int = 100_001) -> UnpackReport:
    for start in range(0, len(data), piece):
        process.write(data[start : start + piece])
    report = process.finish()
    staging = process._staging
    assert_proven(staging, staging.with_name(staging.name.replace("staging", "record")), data, report, Settled([]))
    return report


@pytest.fixture(params=STARTS)
def start(tmp_path, request):
    """Starts children in either way and sees that none is left."""
    running = []
    server = ForkServer()
    make = server.child if request.param == "server" else Child.start

    def begin(**options) -> LayerProcess:
        folder = tmp_path / f"staging{len(running)}"
        folder.mkdir(mode=0o700)
        running.append(LayerProcess(folder, tmp_path / f"record{len(running)}", UnpackOptions(**options), make))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        assert process._child.process.returncode is not None
    server.close()


def child(process: LayerProcess) -> int:
    return process._child.process.pid


def facts(root: Path) -> list[tuple]:
    found = []
    for path in [root, *sorted(root.rglob("*"))]:
        here = path.lstat()
        said = [] if path.is_symlink() else sorted((name, os.getxattr(path, name)) for name in os.listxattr(path))
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found.append((path.relative_to(root), here.st_mode, here.st_nlink, here.st_mtime_ns, content, said))
    return found


@pytest.mark.disk
@pytest.mark.parametrize("jailed", [True, False])
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_child_and_process_make_the_same_tree(tmp_path, start, jailed, mask):
    before = os.umask(mask)
    try:
        process = start(jail=jailed)
        said = feed(process, b"".join(LAYER) + END)
        here = extract(tmp_path / "here", *LAYER)
    finally:
        os.umask(before)
    assert facts(tmp_path / "staging0") == facts(tmp_path / "here")
    for name in ("entries", "tar_bytes", "content_bytes", "placed", "implied", "missing_links", "turned", "warnings"):
        assert getattr(said, name) == getattr(here, name), name
    assert said.entries == len(LAYER) + 200
    assert said.missing_links == [(405, b"below", b"not here")]
    assert said.placed == {403: b"d1/placed"}
    assert said.implied == [b"implied", b"w"]
    assert said.turned == [(b"w/.wh.x", b"w/x/.wh..wh..opq")]
    assert "resource limits" in said.jailed if jailed else said.jailed == "off"


@pytest.mark.disk
@pytest.mark.parametrize("data", [b"", bytes(512), END, bytes(10240)])
def test_a68_empty_layers(tmp_path, start, data):
    said = feed(start(), data)
    assert (said.entries, said.tar_bytes, said.implied) == (0, len(data), [b""])
    assert tree(tmp_path / "staging0") == {}
    assert override(tmp_path / "staging0") == "0:0:040755"


def test_errors_of_the_layer_name_the_entry(start):
    with pytest.raises(LayerError, match=r'entry 1 "\.\./x\\n\\xff": the path escapes the layer') as caught:
        feed(start(), reg(b"ok") + reg(b"../x\n\xff") + END)
    assert (caught.value.index, caught.value.name) == (1, b"../x\n\xff")


def test_a_child_that_gave_up_is_heard_while_writing(start):
    process = start()
    with pytest.raises(LayerError, match="escapes"):
        for _ in range(500):
            process.write(reg(b"../x", bytes(100_000)))
    for again in (lambda: process.write(b"more"), process.finish, process.finish):
        with pytest.raises(LayerError, match="escapes"):
            again()


@pytest.mark.parametrize(
    ("options", "why", "hint"),
    [
        ({"max_entries": 3}, "more than 3 entries", "--max-entries"),
        ({"max_bytes": 1_000_000}, "more than 1000000 bytes", "--max-layer-size"),
    ],
)
def test_a75_limits_name_their_option(start, options, why, hint):
    with pytest.raises(LayerError, match=why) as caught:
        feed(start(**options), b"".join(LAYER) + END)
    assert hint in caught.value.hint


def test_a_cut_stream(start):
    with pytest.raises(LayerError, match="ends inside"):
        feed(start(), b"".join(LAYER)[:-5000])


def test_memory_is_an_error_of_the_layer(start, monkeypatch):
    monkeypatch.setattr(parent, "_BOOTSTRAP", parent._BOOTSTRAP.replace(
        "child_main()", "import msb_pull.layer.unpack.unpack as u; "
        "u.unpack = lambda *a, **k: bytearray(1 << 40); child_main()"
    ))  # fmt: skip
    with pytest.raises(ContentError, match="more memory"):
        feed(start(), END)


def test_less_memory_than_a_layer_may_take_is_not_the_layers_fault(start, monkeypatch):
    monkeypatch.setattr(parent, "_BOOTSTRAP", parent._BOOTSTRAP.replace(
        "child_main()",
        "import resource; import msb_pull.layer.unpack.unpack as u; "
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28)); "
        "u.unpack = lambda *a, **k: bytearray(1 << 29); child_main()",
    ))  # fmt: skip
    with pytest.raises(LocalError, match="out of memory"):
        feed(start(), END)


# A77, D34: the disk


@pytest.fixture
def small(tmp_path, request):
    """A file system of its own, with the options of the parameter."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", request.param, "none", where], capture_output=True)
    if mounted.returncode:
        lacking(f"cannot mount: {mounted.stderr.decode()}")
    try:
        os.setxattr(where, "user.probe", b"1")
    except OSError:
        subprocess.run(["umount", where], check=True)
        pytest.skip("tmpfs without user attributes")
    yield where
    subprocess.run(["umount", where], check=True)


@pytest.mark.parametrize("small", ["size=1m"], indirect=True)
def test_a77_a_full_disk(small):
    (small / "staging").mkdir()
    process = LayerProcess(small / "staging", small / "record", UnpackOptions())
    try:
        with pytest.raises(LocalError, match="staging/d/large: no space left") as caught:
            feed(process, reg(b"d/large", bytes(3_000_000)) + END)
    finally:
        process.kill()
    assert "0 bytes and" in caught.value.cause
    assert caught.value.hint


@pytest.mark.parametrize("small", ["nr_inodes=30"], indirect=True)
def test_d34_no_inodes(small):
    (small / "staging").mkdir()
    process = LayerProcess(small / "staging", small / "record", UnpackOptions())
    try:
        with pytest.raises(LocalError, match=r"staging/f\d+: no inodes left") as caught:
            feed(process, b"".join(reg(b"f%d" % i) for i in range(100)) + END)
    finally:
        process.kill()
    assert "and 0 inodes are free" in caught.value.cause


@pytest.mark.disk
def test_what_a_file_system_cannot_take_is_the_layers_fault(start):
    """A symlink target longer than a path may be."""
    with pytest.raises(LayerError, match="too long for the file system"):
        feed(start(), symlink(b"s", b"x/" * 3000) + END)


@pytest.mark.disk
def test_a_staging_directory_that_is_a_symlink_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "staging").symlink_to("real")
    with pytest.raises(OSError, match="staging"):
        LayerProcess(tmp_path / "staging", tmp_path / "record", UnpackOptions())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_layer_that_others_go_before_steps_back_in_its_session_and_with_it(start):
    ahead, back = Path(f"/proc/{child(start())}"), Path(f"/proc/{child(start(behind=True))}")
    own = os.nice(0)
    wait_for(lambda: nice_of(back) != own)
    assert (nice_of(ahead), nice_of(back)) == (own, min(own + 10, 19))
    share = back / "autogroup"
    if share.exists():
        wait_for(lambda: share.read_text().endswith(" nice 10\n"))
        assert (ahead / "autogroup").read_text().endswith(" nice 0\n")


def nice_of(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[16])


# Life and death


def test_killing_may_be_repeated(start):
    process = start()
    process.write(b"".join(LAYER)[:1000])
    for _ in range(3):
        process.kill()


def test_killing_after_the_end(start):
    process = start()
    feed(process, END)
    process.kill()


def test_killing_from_another_thread_ends_a_write(start):
    process = start()
    process.write(b"".join(LAYER)[:100_000])
    os.kill(child(process), signal.SIGSTOP)
    threading.Timer(0.2, process.kill).start()
    with pytest.raises(LocalError):
        for _ in range(1000):
            process.write(bytes(100_000))


def test_a_killed_child_is_an_error(start):
    process = start()
    process.write(reg(b"f", b"x"))
    os.kill(child(process), signal.SIGKILL)
    with pytest.raises(LocalError, match="killed by signal 9") as caught:
        process.finish()
    assert "memory" in caught.value.hint


def test_a_crash_is_told_with_its_last_line(start, monkeypatch):
    monkeypatch.setattr(parent, "_BOOTSTRAP", "raise RuntimeError('a bug')")
    with pytest.raises(LocalError, match="crashed") as caught:
        feed(start(), END)
    assert caught.value.cause == "RuntimeError: a bug"


def test_a_child_that_cannot_even_load_its_modules(start, monkeypatch):
    monkeypatch.setattr(parent, "_BOOTSTRAP", "raise MemoryError")
    with pytest.raises(LocalError, match="out of memory"):
        feed(start(), END)


def answers(value) -> str:
    return f"import os; os.write(1, {json.dumps(value).encode()!r})"


def encoded(value) -> bytes:
    return b"".join(report.encode(value))


EMPTY = json.loads(encoded(UnpackReport().as_plain()))


@pytest.mark.parametrize(
    "value",
    [
        {"report": {**EMPTY, "implied": ["../outside"]}},
        {"report": {**EMPTY, "implied": ["/etc"]}},
        {"report": {**EMPTY, "placed": [[0, "a/../../b"]]}},
        {"report": {**EMPTY, "missing_links": [[0, "a", "b\0"]]}},
        {"report": {**EMPTY, "turned": [["..", ""]]}},
        {"report": {**EMPTY, "warnings": [7]}},
        {"report": {}},
        {"report": []},
        {"layer": {}},
        {"os": {"errno": "x"}},
        {},
    ],
)
def test_a_child_that_lies_is_not_believed(start, monkeypatch, value):
    """Even one that hostile bytes have taken over must not lead the parent out of the layer."""
    monkeypatch.setattr(parent, "_BOOTSTRAP", answers(value))
    with pytest.raises(LocalError, match="malformed report"):
        feed(start(), b"")


@pytest.mark.parametrize("text", ["[]", "7", "", "{", "null"])
def test_no_report_at_all(start, monkeypatch, text):
    monkeypatch.setattr(parent, "_BOOTSTRAP", f"import os; os.write(1, {text.encode()!r})")
    with pytest.raises(LocalError, match="crashed"):
        feed(start(), b"")


LEAVES_ONE_BEHIND = """
import os, sys, time
os.write(1, {said!r})
if os.fork() == 0:
    while True:
        os.close(os.open(str(sys.argv[-1]) + "/written", os.O_WRONLY | os.O_CREAT))
        time.sleep(0.001)
{then}
"""


@pytest.mark.parametrize(
    ("then", "whole"),
    [
        *((then, True) for then in ("", "os.close(1)", "time.sleep(100)", "os._exit(3)", "os.kill(os.getpid(), 9)")),
        *((then, False) for then in ("", "os.close(1)", "os._exit(3)", "os.kill(os.getpid(), 9)")),
    ],
)
def test_nothing_of_a_child_lives_when_its_layer_is_there(start, monkeypatch, tmp_path, then, whole):
    """Not even what holds its pipes open: it could go on writing into what is published."""
    said = encoded({"report": EMPTY}) + b"\n" if whole else b"{"
    script = LEAVES_ONE_BEHIND.format(said=said, then=then)
    monkeypatch.setattr(parent, "_BOOTSTRAP", script)
    monkeypatch.setattr(UnpackOptions, "as_arguments", lambda self: [str(tmp_path)])
    process = start()

    def kill_once_it_writes() -> None:
        wait_for((tmp_path / "written").exists)
        process.kill()

    if whole:
        process.finish()
    else:
        with pytest.raises(LocalError, match=r"crashed|killed|stopped"):
            threading.Thread(target=kill_once_it_writes).start()
            process.finish()
    # One that is not waited for is a zombie, and writes nothing.
    assert not _runs(child(process))
    (tmp_path / "written").unlink(missing_ok=True)
    time.sleep(0.05)
    assert not (tmp_path / "written").exists()


def test_a_process_that_cannot_be_ended_is_an_error(start, monkeypatch):
    """The kernel itself may hold one, on a disk that does not answer."""
    monkeypatch.setattr(parent.Child, "end", lambda self: False)
    process = start()
    with pytest.raises(LocalError, match="do not end"):
        feed(process, END)
    monkeypatch.undo()


def test_the_child_has_a_session_an_empty_environment_and_no_other_files(start, monkeypatch):
    monkeypatch.setenv("SECRET", "x")

    def status() -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def files() -> list[str]:
        names = os.listdir(f"/proc/{pid}/fd")
        # One may have been closed meanwhile.
        found = [os.readlink(path) for name in names if os.path.lexists(path := f"/proc/{pid}/fd/{name}")]
        # libffi 3.5, below ctypes, keeps its own file open.
        return [target for target in found if "/libffi.so" not in target]

    with open(os.devnull, "rb") as other:
        os.set_inheritable(other.fileno(), True)
        process = start()
        pid = child(process)
        process.write(bytes(512))
        # The last of what it does before it reads.
        wait_for(lambda: status()["Seccomp"] == "2")
        assert os.getsid(pid) == pid != os.getsid(0)
        assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        assert Path(f"/proc/{pid}/cwd").readlink() in (Path("/"), process._staging)
        # Root, record and the shared memory (Python keeps a descriptor of what it maps) beside the standard three, and
        # two pipes to and from the second process. That has the same table, and may still be loading what it needs.
        wait_for(lambda: len(files()) == 10)
        found = files()
    assert sum(target.startswith("pipe:") for target in found) == 6
    assert sum(target.startswith("socket:") for target in found) == 1
    assert status()["NoNewPrivs"] == "1"


def test_ctrl_c_at_the_terminal_is_not_for_the_child(start):
    process = start()
    process.write(b"".join(LAYER)[:10_000])
    # A terminal sends the signal to the foreground group, which the child is not in.
    assert os.getpgid(child(process)) == child(process) != os.getpgrp()


PARENT = """
import os, sys, time
from pathlib import Path
from msb_pull.layer.child import Child
from msb_pull.layer.report import UnpackOptions
from msb_pull.layer.unpack.forkserver import ForkServer
from msb_pull.layer.unpack.process import LayerProcess
staging = Path(sys.argv[1])
start = ForkServer().child if sys.argv[3] == "server" else Child.start
process = LayerProcess(staging, staging.parent / "record", UnpackOptions(jail=sys.argv[2] == "jail"), start)
process.write(bytes(100))
# Another process holds the pipe open, as one may that was started at an unlucky moment.
holder = os.fork()
if holder == 0:
    time.sleep(3)
    os._exit(0)
print(process._child.process.pid, flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("jailed", ["jail", "none"])
def test_a_child_dies_with_its_parent(tmp_path, jailed, start):
    staging = tmp_path / "staging"
    staging.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(staging), jailed, start],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
        parent.wait()
        wait_for(lambda: not _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_no_descriptor_is_left_behind(start):
    # The server has some itself.
    start().kill()
    before = open_files()
    for _ in range(3):
        process = start()
        feed(process, b"".join(LAYER[:5]) + END)
        process.kill()
        broken = start()
        with pytest.raises(LayerError):
            feed(broken, reg(b"../x") + END)
        broken.kill()
        start().kill()
    assert open_files() <= before


@pytest.mark.disk
def test_many_children_at_once(tmp_path, start):
    processes = [start() for _ in range(8)]
    said = []
    threads = [threading.Thread(target=lambda p=p: said.append(feed(p, b"".join(LAYER) + END))) for p in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.entries for one in said] == [len(LAYER) + 200] * 8


# The document between them


@pytest.mark.parametrize(
    "value", [0, -5, 2**70, None, True, "text", 'q"\\\n\x00é€😀', [], [1, [2]], {}, {"a": {"b": [None]}}]
)
def test_the_document_is_json(value):
    expected = 1 if value is True else value
    if isinstance(value, str):
        assert report.as_text(json.loads(encoded(value))) == value
    else:
        assert json.loads(encoded(value)) == expected


def test_bytes_survive_the_document():
    every = bytes(range(256))
    assert report.as_bytes(json.loads(encoded({"x": (every,)}))["x"][0]) == every


def test_the_child_loads_little():
    """Start-up is paid for every layer: typing and json alone would cost a third of it."""
    code = (
        f"import sys; sys.path += {str(REPOSITORY)!r}, {str(Path(isal.__file__).parent.parent)!r}\n"
        "import msb_pull.layer.unpack.unpack, msb_pull.layer.unpack.jail, ctypes, resource\n"
        "print(*sorted(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"typing", "json", "re", "enum", "collections", "dataclasses", "contextlib", "pathlib", "subprocess"}
    assert heavy & set(ran.stdout.split()) == set()
