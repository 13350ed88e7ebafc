"""The jail holds even a writer that has gone wrong, and each of its walls what it is said to hold, by itself."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from msb_pull.layer.unpack import jail, seccomp
from tests.conftest import REPOSITORY, need
from tests.support.unprivileged import as_nobody, folder_of_nobody

FULL = jail.landlock_version() >= 2 and seccomp.available()
pytestmark = pytest.mark.skipif(not FULL, reason=f"no whole jail to test here: {jail.describe()}")

LANDLOCK, FILTER, ROOT = f"Landlock version {jail.landlock_version()}", "a filter of system calls", "its folder as root"
NO_PRIVILEGES = "no new privileges"
WALLS = (NO_PRIVILEGES, ROOT, LANDLOCK, FILTER)
ANY_PATH = {LANDLOCK, ROOT}
BY_PATH = {FILTER, ROOT}

# What is tried outside, and each of the walls that stops it alone.
STOPPED = {
    "create outside": ANY_PATH,
    "create through dots": ANY_PATH,
    "open for writing": ANY_PATH,
    "read": ANY_PATH,
    "list": ANY_PATH,
    "read the system": ANY_PATH,
    "mkdir": ANY_PATH,
    "symlink": ANY_PATH,
    "unlink": ANY_PATH,
    "rename out": ANY_PATH,
    "link in": ANY_PATH,
    "truncate": {*ANY_PATH, FILTER},
    "run": {*ANY_PATH, FILTER},
    "device": {LANDLOCK, FILTER},
    "fifo": {LANDLOCK, FILTER},
    "chmod": BY_PATH,
    "chmod of a link": BY_PATH,
    "chown": BY_PATH,
    "set an attribute": BY_PATH,
    "remove an attribute": BY_PATH,
    "list attributes": BY_PATH,
    "statvfs": BY_PATH,
    "change the folder": BY_PATH,
    "stat": {ROOT},
    "stat through dots": {ROOT},
    "read a link": {ROOT},
    "set times": {ROOT},
    "connect to a port": {FILTER, *([LANDLOCK] if jail.landlock_version() >= 4 else [])},
    "connect to a path": BY_PATH,
    "signal the parent": {FILTER, *([LANDLOCK] if jail.landlock_version() >= 6 else [])},
}
# What only the filter stops: its names in the child, where each makes the call.
CALLS = (
    *("socket", "socket pair", "fork", "thread", "clone3", "prlimit of the parent", "own signals", "chroot", "mount"),
    *("unshare", "ptrace", "process_vm_readv", "process_vm_writev", "io_uring", "bpf", "keyctl", "userfaultfd"),
    *("perf events", "x32", "memory file", "control device", "ask for signals", "limits"),
    *("set-uid", "set-gid", "set-uid from the start"),
)
INSIDE = (
    *("write", "mkdir", "link", "rename", "symlink", "time of a symlink", "sparse", "remove", "list", "attributes"),
    *("mode", "times", "copy", "number of open files", "much memory"),
)

CHILD = """
import _thread, ctypes, fcntl, json, os, resource, socket, sys
sys.path.insert(0, sys.argv[1])
from msb_pull.layer.unpack import jail
inside = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY)
outside, secret = sys.argv[3], sys.argv[3] + "/secret"
walls, every = json.loads(sys.argv[5]), jail.steps
jail.steps = lambda root: {name: step for name, step in every(root).items() if name in walls}
libc = ctypes.CDLL(None, use_errno=True)
machine = os.uname().machine
parent = os.getppid()
client, local = socket.socket(), socket.socket(socket.AF_UNIX)
state = jail.enter(inside, max_file_size=1 << 20)
found = {}
def attempt(name, action):
    try:
        action()
        found[name] = 0
    except OSError as error:
        found[name] = error.errno
def call(x86, arm, *words):
    number = {"x86_64": x86, "aarch64": arm}[machine]
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(word & (1 << 64) - 1) for word in words]) < 0:
        raise OSError(ctypes.get_errno(), "")
def write(path, **where):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, **where))
def thread():
    try:
        _thread.start_new_thread(int, ())
    except RuntimeError:
        raise OSError(38, "") from None
def fork():
    if os.fork() == 0:
        os._exit(0)
attempt("create outside", lambda: write(outside + "/new"))
attempt("create through dots", lambda: write("../outer/new", dir_fd=inside))
attempt("open for writing", lambda: os.close(os.open(secret, os.O_WRONLY)))
attempt("truncate", lambda: os.truncate(secret, 0))
attempt("read", lambda: os.close(os.open(secret, os.O_RDONLY)))
attempt("list", lambda: os.listdir(outside))
attempt("read the system", lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)))
attempt("mkdir", lambda: os.mkdir(outside + "/dir"))
attempt("symlink", lambda: os.symlink("x", outside + "/link"))
attempt("unlink", lambda: os.unlink(outside + "/other"))
attempt("rename out", lambda: (write("f", dir_fd=inside), os.rename("f", outside + "/f", src_dir_fd=inside)))
attempt("link in", lambda: os.link(secret, "stolen", dst_dir_fd=inside))
attempt("run", lambda: os.execv("/bin/true", ["true"]))
attempt("device", lambda: os.mknod("dev", 0o20666, os.makedev(1, 3), dir_fd=inside))
attempt("fifo", lambda: os.mkfifo("fifo", dir_fd=inside))
attempt("chmod", lambda: os.chmod(secret, 0o777))
attempt("chmod of a link", lambda: call(452, 452, -100, ctypes.addressof(ctypes.c_char_p(secret.encode())), 0o777, 0))
attempt("chown", lambda: os.chown(secret, os.getuid(), -1))
attempt("set an attribute", lambda: os.setxattr(secret, "user.x", b"x"))
attempt("remove an attribute", lambda: os.removexattr(secret, "user.there"))
attempt("list attributes", lambda: os.listxattr(secret))
attempt("statvfs", lambda: os.statvfs(outside))
attempt("change the folder", lambda: os.chdir(outside))
attempt("stat", lambda: os.stat(secret))
attempt("stat through dots", lambda: os.stat("../outer/secret", dir_fd=inside))
attempt("read a link", lambda: os.readlink(outside + "/a link"))
attempt("set times", lambda: os.utime(secret, (1, 1)))
attempt("connect to a port", lambda: client.connect(("127.0.0.1", int(sys.argv[4]))))
attempt("connect to a path", lambda: local.connect(outside + "/socket"))
attempt("signal the parent", lambda: os.kill(parent, 0))
if "a filter of system calls" in walls:
    attempt("socket", socket.socket)
    attempt("socket pair", socket.socketpair)
    attempt("fork", fork)
    attempt("thread", thread)
    attempt("clone3", lambda: call(435, 435, 0, 0))
    attempt("prlimit of the parent", lambda: resource.prlimit(parent, resource.RLIMIT_CORE))
    attempt("own signals", lambda: fcntl.fcntl(0, fcntl.F_SETOWN, parent))
    attempt("chroot", lambda: os.chroot("."))
    attempt("mount", lambda: call(165, 40, 0, 0, 0, 0, 0))
    attempt("unshare", lambda: call(272, 97, 0x10000000))
    attempt("ptrace", lambda: call(101, 117, 0, 0, 0, 0))
    attempt("process_vm_readv", lambda: call(310, 270, parent, 0, 0, 0, 0, 0))
    attempt("process_vm_writev", lambda: call(311, 271, parent, 0, 0, 0, 0, 0))
    attempt("io_uring", lambda: call(425, 425, 1, 0))
    attempt("bpf", lambda: call(321, 280, 0, 0, 0))
    attempt("keyctl", lambda: call(250, 219, 0, 0, 0, 0, 0))
    attempt("userfaultfd", lambda: call(323, 282, 1))
    attempt("perf events", lambda: call(298, 241, 0, 0, 0, 0, 0))
    attempt("x32", lambda: call(0x40000000 | 39, 172))
    attempt("memory file", lambda: os.memfd_create("x"))
    attempt("control device", lambda: call(16, 29, 0, 0x5401, 0))
    attempt("ask for signals", lambda: fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC))
    attempt("limits", lambda: resource.prlimit(0, resource.RLIMIT_CORE, (0, 0)))
attempt("write inside", lambda: write("ok", dir_fd=inside))
attempt("mkdir inside", lambda: os.mkdir("d", dir_fd=inside))
attempt("link inside", lambda: os.link("ok", "d/l", src_dir_fd=inside, dst_dir_fd=inside, follow_symlinks=False))
attempt("rename inside", lambda: os.rename("ok", "d/r", src_dir_fd=inside, dst_dir_fd=inside))
attempt("symlink inside", lambda: os.symlink("/etc", "s", dir_fd=inside))
attempt("time of a symlink inside", lambda: os.utime("s", (1, 1), dir_fd=inside, follow_symlinks=False))
attempt("sparse inside", lambda: os.ftruncate(os.open("h", os.O_WRONLY | os.O_CREAT, dir_fd=inside), 1000))
def remove():
    os.unlink("d/l", dir_fd=inside)
    os.mkdir("e", dir_fd=inside)
    os.rmdir("e", dir_fd=inside)
attempt("remove inside", remove)
attempt("list inside", lambda: (os.listdir(inside), list(os.scandir(inside))))
whole = os.open("d/r", os.O_RDWR, dir_fd=inside)
def attributes():
    os.setxattr(whole, "user.x", b"x")
    assert os.listxattr(whole) == ["user.x"] and os.getxattr(whole, "user.x") == b"x"
    os.removexattr(whole, "user.x")
attempt("attributes inside", attributes)
attempt("mode inside", lambda: os.fchmod(whole, 0o640))
if "a filter of system calls" in walls:
    attempt("set-uid", lambda: os.fchmod(whole, 0o4755))
    attempt("set-gid", lambda: os.fchmod(whole, 0o2755))
    attempt("set-uid from the start", lambda: os.open("u", os.O_WRONLY | os.O_CREAT, 0o4755, dir_fd=inside))
attempt("times inside", lambda: os.utime(whole, ns=(1, 1)))
attempt("copy inside", lambda: os.copy_file_range(whole, os.open("h", os.O_WRONLY, dir_fd=inside), 10))
attempt("number of open files inside", lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
attempt("much memory inside", lambda: bytearray(64 << 20))
attempt("too large", lambda: os.ftruncate(os.open("h", os.O_WRONLY, dir_fd=inside), 2 << 20))
found["limits now"] = [resource.getrlimit(x)[0] for x in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)]
print(json.dumps([state, found]))
"""
VARIANTS = {
    "all": WALLS,
    "all, as nobody": WALLS,
    "Landlock": (NO_PRIVILEGES, LANDLOCK),
    "filter": (NO_PRIVILEGES, FILTER),
    "root": (ROOT,),
}


class Outcome:
    """What a child could do behind these walls, and the places it tried it on."""

    def __init__(self, home: Path, walls: tuple[str, ...], *, nobody: bool) -> None:
        self.walls = walls
        self.inside, self.outer = home / "inside", home / "outer"
        self.inside.mkdir()
        self.outer.mkdir()
        secret = self.outer / "secret"
        secret.write_text("secret")
        secret.chmod(0o640)
        os.setxattr(secret, "user.there", b"x")
        (self.outer / "other").touch()
        (self.outer / "a link").symlink_to("secret")
        for path in (self.inside, self.outer, secret) if nobody else ():
            os.chown(path, 65534, 65534)
        self.before = secret.stat()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
            local.bind(str(self.outer / "socket"))
            local.listen()
            (self.outer / "socket").chmod(0o777)
            words = [str(REPOSITORY), str(self.inside), str(self.outer), str(server.getsockname()[1])]
            command = [sys.executable, "-I", "-S", "-c", CHILD, *words, json.dumps(walls)]
            if nobody:
                command = as_nobody(command, [REPOSITORY])
            ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        self.state, self.found = json.loads(ran.stdout)
        self.after = secret.stat()
        self.left = sorted(os.listdir(self.inside))
        self.beside = sorted(os.listdir(self.outer))
        self.attributes = os.listxattr(secret)


@pytest.fixture(scope="module", params=VARIANTS)
def outcome(request):
    nobody = "nobody" in request.param
    if os.geteuid() != 0 and (nobody or request.param == "root"):
        pytest.skip("needs root")
    if nobody:
        need("unshare", "setpriv")
        with folder_of_nobody() as home:
            yield Outcome(home, VARIANTS[request.param], nobody=True)
        return
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="jail-", dir="/var/tmp") as name:
        yield Outcome(Path(name), VARIANTS[request.param], nobody=False)


@pytest.mark.parametrize("attempt", STOPPED)
def test_nothing_outside_is_reached(outcome, attempt):
    if STOPPED[attempt] & set(outcome.walls):
        assert outcome.found[attempt] != 0
    if FILTER in STOPPED[attempt] & set(outcome.walls):
        assert outcome.found[attempt] == errno.ENOSYS


@pytest.mark.parametrize("attempt", CALLS)
def test_the_kernel_seems_to_lack_what_unpacking_does_not_need(outcome, attempt):
    if FILTER in outcome.walls:
        assert outcome.found[attempt] == errno.ENOSYS


@pytest.mark.parametrize("attempt", INSIDE)
def test_all_that_unpacking_needs_is_allowed(outcome, attempt):
    assert outcome.found[f"{attempt} inside"] == 0


def test_limits(outcome):
    assert outcome.found["too large"] == errno.EFBIG
    assert outcome.found["limits now"] == [0, 1 << 20]


def test_the_walls_are_named(outcome):
    assert outcome.state == ", ".join([*outcome.walls, "resource limits"])


def test_nothing_outside_has_changed(outcome):
    if not {ROOT, LANDLOCK} <= set(outcome.walls):
        return
    before, after = outcome.before, outcome.after
    assert outcome.beside == ["a link", "other", "secret", "socket"]
    assert (before.st_mode, before.st_uid, before.st_mtime_ns) == (after.st_mode, after.st_uid, after.st_mtime_ns)
    assert (before.st_size, before.st_ctime_ns) == (after.st_size, after.st_ctime_ns)
    assert outcome.attributes == ["user.there"]
    assert outcome.left == ["d", "f", "h", "s"]


def test_an_old_kernel_is_named(monkeypatch):
    monkeypatch.setattr(seccomp, "available", lambda: False)
    monkeypatch.setattr(jail, "landlock_version", lambda: 0)
    assert jail.describe() == "no new privileges, resource limits; no Landlock in this system"
    monkeypatch.setattr(jail, "landlock_version", lambda: 1)
    assert "would forbid hard links" in jail.describe()
