"""What holds for every test: a clean environment, no user's home, no network but the loopback.

Subprocesses inherit the clean environment. Programs that only some machines have (docker-registry, skopeo, umoci,
fuse-overlayfs) are asked for with :func:`need`; a missing one skips the test loudly, and fails it where
``REQUIRE_TOOLS=1`` says that they were installed.
"""

from __future__ import annotations

import ctypes
import gc
import ipaddress
import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.leftovers import end, forget_failure, noted_starts
from tests.support.mounts import KINDS, mount, unmount
from tests.support.tools import REQUIRE_TOOLS as REQUIRE_TOOLS
from tests.support.tools import lacking as lacking
from tests.support.tools import need as need

REPOSITORY = Path(__file__).resolve().parent.parent
RIG = Path(os.environ.get("RIG", "~/.cache/msb-pull-rig")).expanduser()
KEPT_VARIABLES = frozenset({"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
KEPT_PREFIXES = ("PYTEST_", "COV_", "COVERAGE_")

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def pytest_addoption(parser: pytest.Parser) -> None:
    kinds = [kind for kind in KINDS if kind != "vfat"]
    parser.addoption("--on", choices=kinds, help="put all temporary folders on a file system of this kind (root)")


def pytest_configure(config: pytest.Config) -> None:
    """What tests mount is seen by this process and its children alone, and is gone with them however they end.

    A run that was killed would otherwise leave a dead mount in a temporary folder that no later run can remove.
    """
    if sys.platform.startswith("linux") and os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) == 0:
            libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    # A shell in the background ignores Ctrl-C, and nohup hangups; what is started from there would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    # The processes of xdist are children of the one that mounts.
    if (kind := config.getoption("on")) and not hasattr(config, "workerinput"):
        place = Path(tempfile.mkdtemp(prefix=f"msb-pull-{kind}-"))
        folder = place / "disk"
        folder.mkdir()
        place.chmod(0o755)
        config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))
        if why := mount(kind, folder, "4G"):
            raise pytest.UsageError(f"--on {kind}: {why}")
        config.add_cleanup(lambda: unmount(folder))
        folder.chmod(0o1777)
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None


# What starts the program many times or works for seconds on end, beside all of tests/whole; -m "not slow" is the quick
# selection.
SLOW = {
    "cli": "command_line completions contract_pull contract_screen contract_settings contract_store contract_words"
    " show signals store_commands whole_output",
    "display": "terminal",
    "fuzz": "corpus",
    "ground": "remove",
    "layer": "linear record",
    "layer/settle": "settle stacks",
    "layer/tree": "sentinel",
    "layer/unpack": "bombs random unpack",
    "project": "catalogue examples no_clock packaging readme",
    "source/http": "certificate_folders deadlines refusing_proxies tls_trouble transport",
    "source/local": "sparse_archives",
    "source/registry": "auth blob hidden_repositories misleading_answers parallel real_registry refused_parts registry",
    "store": "kills shared_layers",
    "store/index": "recovery",
    "work": "interrupted_save prune",
    "work/microsandbox": "program pull real",
    "work/pull": "side_by_side",
    "work/verify": "provers repair store_mutations verify verify_everything verify_records",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, and deals out what may take longest, so that no process works on it alone at the end.

    Each process of xdist begins with an even part of all tests, one after the other, and takes over from the ends of
    others' parts: so each part begins with its share of the long ones.
    """
    tests = REPOSITORY / "tests"
    for item in items:
        room, _, name = item.path.relative_to(tests).with_suffix("").as_posix().rpartition("/test_")
        if room == "whole" or name in SLOW.get(room, "").split():
            item.add_marker("slow")
    long = [item for item in items if item.get_closest_marker("timeout") or item.get_closest_marker("rig")]
    others = [item for item in items if not (item.get_closest_marker("timeout") or item.get_closest_marker("rig"))]
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    parts = [long[number::count] for number in range(count)]
    for number, part in enumerate(parts):
        room = len(items) // count + (number < len(items) % count) - len(part)
        part += [others.pop(0) for _ in range(min(room, len(others)))] if number < count - 1 else others
    items[:] = [item for part in parts for item in part]


def pytest_collection_finish() -> None:
    """All tests live to the end: without this, whoever looks for garbage would look through all of them, each time."""
    gc.collect()
    gc.freeze()


# A machine that is busy with other things must not fail a property.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


class OutsideLoopback(OSError):
    """A test reached for another machine."""


def is_loopback(host: object) -> bool:
    """True for loopback addresses, names of this machine, and what is no network address at all."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if not isinstance(name, str) or name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    done = yield
    if item.stash.get(FAILED, False):
        forget_failure()
    return done


@pytest.fixture(autouse=True)
def nothing_runs_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends what a test has started and not waited for, as one that fails in between; one that does not may not."""
    with noted_starts() as started:
        yield
    left = end(started)
    assert not left or request.node.stash.get(FAILED, False), f"left running: {left}"


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is not there yet, for each test; pytest itself would look through all that it has made so far."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, homes: Iterator[Path]) -> Path:
    """Leaves PATH and the locale, and points every folder of a user into an empty one; returns that home."""
    home = next(homes)
    home.mkdir()
    for name in list(os.environ):
        if name not in KEPT_VARIABLES and not name.startswith(KEPT_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MICROSANDBOX_HOME", str(home / "microsandbox"))
    for name, folder in (("CONFIG", ".config"), ("DATA", ".local/share"), ("CACHE", ".cache"), ("STATE", ".state")):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / folder))
    return home


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections and name look-ups end at this machine, with an error that looks like a dead network."""
    real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo

    def connect(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            raise OutsideLoopback(f"tests stay on this machine, they do not connect to {address[0]!r}")
        return real_connect(self, address)

    def lookup(host, *arguments, **named):
        if not is_loopback(host):
            raise socket.gaierror(socket.EAI_NONAME, f"tests look up no name outside this machine: {host!r}")
        return real_lookup(host, *arguments, **named)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.fixture
def rig() -> Path:
    """The folder of the measuring rig with its layouts of real images."""
    if not (RIG / "layouts" / "debian").is_dir():
        pytest.skip(f"no layouts of real images below {RIG}")
    return RIG


def program() -> list[str]:
    """The command line that starts msb-pull: the installed script, else the module of this checkout."""
    script = Path(sys.executable).parent / "msb-pull"
    return [str(script)] if script.exists() else [sys.executable, "-m", "msb_pull"]


def program_environment(**more: str) -> dict[str, str]:
    """The clean environment of the test with the checkout on Python's path; for subprocesses.

    Another HOME is another user's: the folders of this one are not for it.
    """
    of_user = ("XDG_", "MICROSANDBOX_HOME") if "HOME" in more else ()
    kept = {name: value for name, value in os.environ.items() if not (of_user and name.startswith(of_user))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), **more}
