"""Limits of threads, processes, memory and file sizes: the work is done, or it ends with 7 and what to raise."""

from __future__ import annotations

import compileall
import errno
import hashlib
import marshal
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msb_pull.ground import errors
from msb_pull.ground.errors import LocalError
from msb_pull.ground.pools import Pool
from tests.conftest import REPOSITORY, program_environment
from tests.support.archive import END, directory, reg
from tests.support.fault_registry import FaultRegistry
from tests.support.home import LINUX, gz
from tests.support.imagebuild import simple_layout
from tests.support.make_sample import file, layer_tar
from tests.support.program import run_program

THREADS = "no more threads or processes can be started"
MEMORY = "out of memory"
FILES = "too many open files"

# What stands before the program: how much there is of what.
FEW_THREADS = """
import threading
left = [{left}]
def limited(start):
    def begin(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        return start(*arguments, **named)
    return begin
for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name):
        setattr(threading, name, limited(getattr(threading, name)))
"""
NO_PROCESSES = """
import os, subprocess
def refuse(*arguments):
    raise OSError({left}, os.strerror({left}))
subprocess._fork_exec = refuse
from msb_pull.work.verify import layers as proof
proof._SMALL_BLOBS = proof._SMALL_RECORDS = 0
"""
FEW_PROCESSES = """
import errno, os, subprocess, threading
from msb_pull.work.verify import layers as proof
proof._SMALL_BLOBS = proof._SMALL_RECORDS = 0
start, started, refused, lock = subprocess._fork_exec, [], [], threading.Lock()
def runs(process):
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    except ChildProcessError:
        return False
def refuse():
    if not refused:
        os.write(2, b"refused\\n")
    refused.append(1)
def limited(*arguments):
    with lock:
        if sum(map(runs, started)) >= {left}:
            refuse()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(start(*arguments))
        return started[-1]
subprocess._fork_exec = limited
# What the server would be refused.
from msb_pull.layer.unpack.forkserver import ForkServer
ask = ForkServer._ask
def asked(self, message, descriptors):
    if descriptors and len(self._living) >= {left}:
        refuse()
        return 0, errno.EAGAIN
    return ask(self, message, descriptors)
ForkServer._ask = asked
"""
LITTLE_MEMORY = """
import resource
resource.setrlimit(resource.RLIMIT_AS, 2 * (int({left} * (1 << 20)),))
"""
SMALL_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({left}, {left}))
"""
FEW_OPEN_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({left}, {left}))
"""
FEW_OPEN_FILES_AT_FIRST = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({left}, 1024))
"""
NO_MEMORY_TO_LOAD = """
import sys
class Finder:
    def find_spec(self, name, *more):
        if name == "{left}":
            raise MemoryError
sys.meta_path.insert(0, Finder())
"""
# Whoever looks for a module has not seen that there is no room for it.
LITTLE_TO_LOAD = """
import os, resource, sys
def limit():
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, 2 * (taken + ({left} << 20),))
class Finder:
    def find_spec(self, name, *more):
        if name == "MODULE":
            os._exit(99)
sys.meta_path.insert(0, Finder())
"""
LITTLE_FOR_COMMANDS = LITTLE_TO_LOAD.replace("MODULE", "msb_pull.cli.app") + "limit()"
LITTLE_FOR_TLS = f"""{LITTLE_TO_LOAD.replace("MODULE", "ssl")}
from msb_pull.cli.run import LazyClient
make = LazyClient.__call__
LazyClient.__call__ = lambda client: limit() or make(client)
"""
HALF_LOADED = """
import sys, time
from importlib.machinery import ModuleSpec
class Half:
    tried = False
    def find_spec(self, name, *more):
        if name == "{left}" and not self.tried:
            Half.tried = True
            return ModuleSpec(name, self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        time.sleep(0.5)
        raise MemoryError
sys.meta_path.insert(0, Half())
"""
IN_THE_MAIN_THREAD = """
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_AS, ({left}, {left}))
class Finder:
    def find_spec(self, name, *more):
        if name.startswith("msb_pull.work."):
            assert threading.current_thread() is threading.main_thread(), name
sys.meta_path.insert(0, Finder())
"""


def run(before: str, left: object, *words: str) -> tuple[int, str]:
    """Exit code and standard error of the program under such a limit."""
    code = f"{before.format(left=left)}\nfrom msb_pull.__main__ import main\nmain()"
    done = subprocess.run(
        # Where files must be small, some Pythons leave half of the bytecode of what they load.
        [sys.executable, "-B", "-c", code, *words],
        env=program_environment(), capture_output=True, text=True, timeout=60, cwd=REPOSITORY,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "bug in msb-pull" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A layout of several layers, a home that has the image, and a registry that has it too."""
    folder = tmp_path_factory.mktemp("exhausted")
    # As any start does that may: compiling takes more memory, and fails in ways of its own without.
    compileall.compile_dir(REPOSITORY / "msb_pull", quiet=1)
    # Names that do not compress, so that its record is larger than some of the limits.
    names = [hashlib.sha256(b"%d" % number).hexdigest().encode() for number in range(1000)]
    many = directory(b"d") + b"".join(reg(b"d/" + name, b"x") for name in names) + END
    layout = simple_layout(folder / "layout", [many, *(reg(b"f%d" % number, b"x") + END for number in range(3))])
    pulled = run("", "", "pull", "-q", f"oci:{layout}", "--as", "localhost/x:1", "--home", str(folder / "full"))
    assert pulled == (0, "")
    with FaultRegistry() as registry:
        registry.add_image("acme/app", "1", [gz(layer_tar([file("a", "a" * 5000)]))])
        yield folder, layout, registry


def commands(place, home: Path) -> dict[str, list[str]]:
    folder, layout, registry = place
    full = str(folder / "full")
    return {
        "pull": ["pull", f"oci:{layout}", "--as", "localhost/x:1", "--home", str(home)],
        "pull from a registry": [
            "pull",
            "-j",
            "1",
            f"localhost:{registry.port}/acme/app:1",
            *LINUX,
            "--home",
            str(home),
        ],
        "verify": ["verify", "--home", full],
        "save": ["save", "localhost/x:1", "-o", str(home.parent / "saved.tar"), "--home", full],
        "export": ["export", "localhost/x:1", "-f", "-o", str(home.parent / "x.erofs"), "--home", full],
    }


COMMANDS = ("pull", "pull from a registry", "verify", "save", "export")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("left", [0, 1, 2, 3, 4, 5, 7, 100])
def test_few_threads(place, tmp_path, command, left):
    code, said = run(FEW_THREADS, left, *commands(place, tmp_path / "home")[command])
    if left in (0, 100):
        assert code == (0 if left else 7)
    if code:
        assert (code, f"error: {THREADS}\n" in said, "`ulimit -u`" in said) == (7, True, True)
    run_program(commands(place, tmp_path / "home")[command], check=True)


@pytest.mark.parametrize("command", ["pull", "verify"])
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EPERM, errno.ENOSYS, errno.ENOMEM])
def test_no_processes(place, tmp_path, command, number):
    """What a limit, a policy that refuses a call, and a system without memory say."""
    code, said = run(NO_PROCESSES, number, *commands(place, tmp_path / "home")[command])
    assert code == 7
    if number == errno.ENOMEM:
        assert f"error: {MEMORY}\n" in said
    else:
        assert f"error: {THREADS}\n  cause: {os.strerror(number)}\n" in said


@pytest.mark.parametrize(("command", "jobs"), [("pull", ["-j", "4"]), ("verify", [])])
def test_room_for_a_single_process(place, tmp_path, command, jobs):
    """What finds none leaves the work to what runs, or waits for its end."""
    code, said = run(FEW_PROCESSES, 1, *commands(place, tmp_path / "home")[command], *jobs)
    assert (code, "refused" in said, THREADS in said) == (0, True, False), said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS knows no limit of the address space")
def test_the_pull_is_loaded_in_its_own_thread_where_memory_may_end(place, tmp_path):
    """A thread may then end with the lock of a module, which nobody gets after that."""
    code, _ = run(IN_THE_MAIN_THREAD, 1 << 40, *commands(place, tmp_path / "home")["pull"])
    assert code == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS knows no limit of the address space")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("left", [24, 28.5, 36, 48, 57, 80, 120, 250])
def test_little_memory(place, tmp_path, command, left):
    code, said = run(LITTLE_MEMORY, left, *commands(place, tmp_path / "home")[command])
    assert code in (0, 7), said
    if code:
        assert THREADS in said or MEMORY in said or "the unpacking process" in said, said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS knows no limit of the address space")
@pytest.mark.parametrize("left", [1, 4, 12])
@pytest.mark.parametrize("before", [LITTLE_FOR_COMMANDS, LITTLE_FOR_TLS], ids=["commands", "tls"])
def test_what_there_is_no_room_to_load_is_not_begun(place, tmp_path, before, left):
    """Where the last of the memory goes bit by bit, Python crashes."""
    code, said = run(before, left, *commands(place, tmp_path / "home")["pull from a registry"])
    assert (code, MEMORY in said) == (7, True), said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("left", [*range(6, 20), 24, 28, 32, 40])
def test_few_open_files(place, tmp_path, command, left):
    """What cannot be opened for want of a descriptor is not damaged: a script would throw the store away."""
    code, said = run(FEW_OPEN_FILES, left, *commands(place, tmp_path / "home")[command])
    if code:
        assert (code, f"error: {FILES}\n" in said, "`ulimit -n`" in said) == (7, True, True), said


@pytest.mark.parametrize("command", COMMANDS)
def test_more_files_are_opened_where_that_may_be(place, tmp_path, command):
    code, said = run(FEW_OPEN_FILES_AT_FIRST, 10, *commands(place, tmp_path / "home")[command])
    assert code == 0, said


@pytest.mark.parametrize("module", ["msb_pull.cli.app", "msb_pull.work.pull.transfer", "msb_pull.display.bars"])
def test_no_memory_for_the_program_itself(place, tmp_path, module):
    code, said = run(NO_MEMORY_TO_LOAD, module, *commands(place, tmp_path / "home")["pull"])
    assert (code, MEMORY in said, "`ulimit -v`" in said) == ((0, False, False) if "bars" in module else (7, True, True))


def test_no_memory_for_what_is_loaded_beside_an_answer(place, tmp_path):
    """Who waits for a module that another thread fails to load gets the half of it that was there."""
    assert run(HALF_LOADED, "msb_pull.work.pull.transfer", *commands(place, tmp_path / "home")["pull"])[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("left", [1 << 10, 6 << 10, 40 << 10, 200 << 10, 4 << 20])
def test_small_files(place, tmp_path, command, left):
    """Four megabytes are enough for all that a small image needs."""
    code, said = run(SMALL_FILES, left, *commands(place, tmp_path / "home")[command])
    if left in (1 << 10, 4 << 20):
        assert code == (0 if left > 1 << 20 else 7)
    if code:
        assert (code, f"a file may have {left} bytes at most" in said, "`ulimit -f`" in said) == (7, True, True), said


def test_no_half_of_a_module_is_left_where_files_must_be_small(tmp_path):
    """Python would not load it any more, whatever the limit is then."""
    copy = shutil.copytree(REPOSITORY / "msb_pull", tmp_path / "msb_pull", ignore=shutil.ignore_patterns("__pycache__"))
    code = SMALL_FILES.format(left=8000) + "from msb_pull.__main__ import main; main()"
    env = {**program_environment(), "PYTHONPATH": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, "ls"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "No images.\n")
    for written in copy.rglob("*.pyc"):
        marshal.loads(written.read_bytes()[16:])


def test_a_file_of_a_layer_that_is_larger_than_files_may_be(tmp_path):
    """The layer is as good as any other."""
    layout = simple_layout(tmp_path / "layout", [reg(b"d/large", bytes(3_000_000)) + END])
    code, said = run(SMALL_FILES, 1 << 20, "pull", f"oci:{layout}", "--home", str(tmp_path / "home"))
    assert (code, "/d/large: a file may have 1048576 bytes at most" in said) == (7, True)


def test_a_pool_without_threads_says_so(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with Pool(2) as pool:
        monkeypatch.setattr("threading.Thread.start", refuse)
        with pytest.raises(LocalError, match=THREADS):
            pool.submit(int)
        monkeypatch.undo()
        assert pool.submit(int).result(20) == 0
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


def test_what_counts_as_exhausted():
    library = ImportError("/lib/x.so: failed to map segment from shared object")
    unsaid = SystemError("error return without exception set")
    of_a_call = SystemError("<function f at 0x1> returned NULL without setting an exception")
    for error in (MemoryError(), OSError(errno.ENOMEM, ""), library, unsaid, of_a_call):
        assert errors.exhausted(error).message == MEMORY
    for number in (errno.EMFILE, errno.ENFILE):
        assert errors.exhausted(OSError(number, "")).message == FILES
    others = (ImportError("no module named x"), OSError(errno.EAGAIN, ""), RuntimeError("x"), SystemError("x"))
    for other in (*others, ValueError()):
        assert errors.exhausted(other) is None
