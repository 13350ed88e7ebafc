"""The jail holds even a writer that has gone wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from msb_pull.layer import jail
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(jail.landlock_version() < 2, reason=f"no jail to test here: {jail.describe()}")

CHILD = """
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from msb_pull.layer import jail
inside = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY)
outside, secret = sys.argv[3], sys.argv[3] + "/secret"
state = jail.enter(inside, max_file_size=1 << 20)
found = {}
def attempt(name, action):
    try:
        action()
        found[name] = "done"
    except OSError as error:
        found[name] = error.strerror
def write(path, **where):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, **where))
attempt("create outside", lambda: write(outside + "/new"))
attempt("create through dots", lambda: write("../outer/new", dir_fd=inside))
attempt("open for writing", lambda: os.close(os.open(secret, os.O_WRONLY)))
attempt("truncate", lambda: os.truncate(secret, 0))
attempt("read", lambda: os.close(os.open(secret, os.O_RDONLY)))
attempt("list", lambda: os.listdir(outside))
attempt("read the system", lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)))
attempt("mkdir", lambda: os.mkdir(outside + "/dir"))
attempt("symlink", lambda: os.symlink("x", outside + "/link"))
attempt("unlink", lambda: os.unlink(secret))
attempt("rename out", lambda: (write("f", dir_fd=inside), os.rename("f", outside + "/f", src_dir_fd=inside)))
attempt("link in", lambda: os.link(secret, "stolen", dst_dir_fd=inside))
attempt("run", lambda: os.execv("/bin/true", ["true"]))
attempt("device", lambda: os.mknod("dev", 0o20666, os.makedev(1, 3), dir_fd=inside))
attempt("fifo", lambda: os.mkfifo("fifo", dir_fd=inside))
def connect():
    with socket.socket() as client:
        client.connect(("127.0.0.1", int(sys.argv[4])))
attempt("connect", connect)
attempt("write inside", lambda: write("ok", dir_fd=inside))
attempt("mkdir inside", lambda: os.mkdir("d", dir_fd=inside))
attempt("link inside", lambda: os.link("ok", "d/l", src_dir_fd=inside, dst_dir_fd=inside, follow_symlinks=False))
attempt("rename inside", lambda: os.rename("ok", "d/r", src_dir_fd=inside, dst_dir_fd=inside))
attempt("symlink inside", lambda: os.symlink("/etc", "s", dir_fd=inside))
attempt("sparse inside", lambda: os.ftruncate(os.open("h", os.O_WRONLY | os.O_CREAT, dir_fd=inside), 1000))
def remove():
    os.unlink("d/l", dir_fd=inside)
    os.mkdir("e", dir_fd=inside)
    os.rmdir("e", dir_fd=inside)
attempt("remove inside", remove)
attempt("too large", lambda: os.ftruncate(os.open("h", os.O_WRONLY, dir_fd=inside), 2 << 20))
import resource
found["limits"] = [resource.getrlimit(x)[0] for x in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)]
print(json.dumps([state, found]))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What a child could do once it was jailed, and the places it tried it on."""
    import socket

    home = tmp_path_factory.mktemp("jail")
    inside, outer = home / "inside", home / "outer"
    inside.mkdir()
    outer.mkdir()
    (outer / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHILD, str(REPOSITORY), str(inside), str(outer), port],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ran.returncode == 0, ran.stderr
    state, found = json.loads(ran.stdout)
    return state, found, inside, outer


@pytest.mark.parametrize(
    "attempt",
    [
        *("create outside", "create through dots", "open for writing", "truncate", "read", "list", "read the system"),
        *("mkdir", "symlink", "unlink", "run", "device", "fifo"),
    ],
)
def test_the_kernel_stops(outcome, attempt):
    assert outcome[1][attempt] == "Permission denied"


@pytest.mark.parametrize("attempt", ["rename out", "link in"])
def test_nothing_crosses_the_border(outcome, attempt):
    assert outcome[1][attempt] in ("Permission denied", "Invalid cross-device link")


def test_no_connections(outcome):
    expected = "Permission denied" if jail.landlock_version() >= 4 else "done"
    assert outcome[1]["connect"] == expected


@pytest.mark.parametrize(
    "attempt",
    [
        *("write inside", "mkdir inside", "link inside", "rename inside", "symlink inside", "sparse inside"),
        "remove inside",
    ],
)
def test_all_that_unpacking_needs_is_allowed(outcome, attempt):
    assert outcome[1][attempt] == "done"


def test_limits(outcome):
    state, found, *_ = outcome
    assert found["too large"] == "File too large"
    assert found["limits"] == [0, 1 << 20]
    assert state == jail.describe()
    assert state.startswith("Landlock version")


def test_nothing_outside_has_changed(outcome):
    *_, inside, outer = outcome
    assert [path.name for path in outer.iterdir()] == ["secret"]
    assert (outer / "secret").read_text() == "secret"
    assert sorted(os.listdir(inside)) == ["d", "f", "h", "s"]


def test_an_old_kernel_is_named(monkeypatch):
    monkeypatch.setattr(jail, "landlock_version", lambda: 0)
    assert jail.describe() == "resource limits only (no Landlock in this system)"
    monkeypatch.setattr(jail, "landlock_version", lambda: 1)
    assert "would forbid hard links" in jail.describe()
