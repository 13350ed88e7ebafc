"""verify on stores that are large, closed, read-only or being written to: its processes, exit codes, no false alarm."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, LocalError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.reference import parse_argument
from msb_pull.layer.proof.prove import prove
from msb_pull.layer.proof.prover import Prover
from msb_pull.layer.proof.task import Damage, Findings
from msb_pull.store.store import Store
from msb_pull.work.pull.plan import Policy, PullOptions
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.verify import layers as proof
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import verify_images
from tests.conftest import REPOSITORY, program, program_environment
from tests.support.archive import END, directory, reg
from tests.support.counting import wait_for
from tests.support.fault_registry import FaultRegistry
from tests.support.home import Home, gz
from tests.support.imagebuild import simple_layout
from tests.support.processes import children, gone
from tests.support.unprivileged import as_nobody, folder_of_nobody

LINUX = sys.platform.startswith("linux")
FILES = [reg(b"d/%d" % number, b"%d" % number) for number in range(4000)]
MANY = directory(b"d") + b"".join(FILES) + END
SOME = directory(b"d") + b"".join(FILES[:1000]) + END
OTHER = reg(b"other", random.Random(2).randbytes(3_000_000)) + END


def no_registry():
    raise AssertionError("a layout needs no registry")


class World:
    """A store with one image of two layers, the first of them with a thousand entries."""

    def __init__(self, folder: Path, tars=(SOME, OTHER)) -> None:
        self.layout = simple_layout(folder / "layout", list(tars))
        self.home = folder / "home"
        self.store = Store.open(self.home)
        self.seen: list[events.CheckProgress] = []
        self.trees = [Path(layer.path) for layer in self.pull().layers]

    def pull(self, **options):
        return pull_image(
            parse_argument(f"oci:{self.layout}"),
            self.store,
            no_registry,
            PullOptions(name="localhost/image:1", policy=Policy.ALWAYS, **options),
            Job(),
        )

    def observe(self, event) -> None:
        if isinstance(event, events.CheckProgress):
            self.seen.append(event)

    def verify(self, cancel=None, jobs=2, **options):
        return verify_images(self.store, [], Job(self.observe, cancel or Cancel(), jobs), **options)

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*program(), "verify", *words, "--home", str(self.home)],
            env=program_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def processes(monkeypatch):
    """However small a layer is."""
    monkeypatch.setattr(proof, "_SMALL_RECORDS", -1)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_processes_find_what_one_thread_finds(world, monkeypatch, quick, jobs):
    (world.trees[0] / "d" / "7").write_bytes(b"X")
    (world.trees[0] / "d" / os.fsdecode(b"\xff\n")).touch()
    (world.trees[1] / "other").chmod(0o700)
    reports = []
    for limit in (1 << 30, -1):
        monkeypatch.setattr(proof, "_SMALL_RECORDS", limit)
        reports.append(world.verify(quick=quick, jobs=jobs).layers)
    alone, apart = ([[repr(x) for x in report.damages] for report in layers] for layers in reports)
    assert alone == apart and [bool(x) for x in alone] == [True, True]
    assert [x.verdict for x in reports[0]] == [x.verdict for x in reports[1]] == [Verdict.DAMAGED] * 2
    assert [(x.bytes, x.entries) for x in reports[0]] == [(x.bytes, x.entries) for x in reports[1]]


@pytest.mark.parametrize(("quick", "unit"), [(False, "bytes"), (True, "entries")])
def test_progress_comes_from_the_processes(world, processes, quick, unit):
    world.verify(quick=quick)
    assert {event.unit for event in world.seen} == {unit}
    for digest in {event.digest for event in world.seen}:
        told = [(event.done, event.total) for event in world.seen if event.digest == digest]
        assert told[0][0] == 0 and told[-1][0] == told[-1][1] and told == sorted(told)
    assert len({event.digest for event in world.seen}) == 2


def test_a_cancelled_verification_ends_its_processes(world, processes):
    cancel = Cancel()
    cancel.set()
    before = {*children(os.getpid())}
    with pytest.raises(Cancelled):
        world.verify(cancel)
    assert {*children(os.getpid())} <= before


def test_a_process_that_dies_is_no_damage(world, processes, monkeypatch):
    start = Prover.__init__

    def doomed(self) -> None:
        start(self)
        self._child.process.kill()
        self._child.process.wait()

    monkeypatch.setattr(Prover, "__init__", doomed)
    before = {*children(os.getpid())}
    with pytest.raises(LocalError, match="the verifying process was killed by signal 9") as caught:
        world.verify()
    assert "memory" in caught.value.hint
    assert {*children(os.getpid())} <= before


def test_what_a_process_says_last_stands_in_the_error(world, processes, monkeypatch):
    monkeypatch.setattr("msb_pull.layer.proof.prover._BOOTSTRAP", "raise SystemError('of the test')")
    with pytest.raises(LocalError) as caught:
        world.verify()
    assert caught.value.cause == "SystemError: of the test"


# Signals


@pytest.fixture
def stopped(tmp_path):
    """A verification whose process hangs, and that process."""
    big = reg(b"big", random.Random(3).randbytes(17_000_000)) + END
    running = World(tmp_path, [big]).start()
    with ExitStack() as ends:
        ends.callback(running.communicate)
        ends.callback(running.kill)
        (child,) = wait_for(lambda: children(running.pid))
        # Killed also where the test fails, since a stopped process stays; by handle, as its number may be reused.
        handle = os.pidfd_open(child)
        ends.callback(os.close, handle)
        ends.callback(kill, handle)
        # Not before it is a program of its own: whoever starts one waits for that.
        wait_for(lambda: b"prover" in Path(f"/proc/{child}/cmdline").read_bytes())
        os.kill(child, signal.SIGSTOP)
        yield running, child


def kill(handle: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_though_a_process_does_not_answer(stopped, number, code):
    running, child = stopped
    time.sleep(0.3)
    running.send_signal(number)
    out, error = running.communicate(timeout=60)
    assert (running.returncode, out) == (code, "") and "interrupted" in error
    wait_for(lambda: gone(child))


@pytest.mark.skipif(not LINUX, reason="the kernel must end them")
def test_processes_go_with_a_parent_that_is_killed(stopped):
    running, child = stopped
    running.kill()
    # If it was stopped before it had asked the kernel for that, it sees by itself whose child it is now.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGCONT)
    wait_for(lambda: gone(child))


# A store that somebody is writing to


def damage() -> Findings:
    found = Findings()
    found.damages.append(Damage(b"x", "missing", "a file", "nothing"))
    return found


def checks(world: World) -> list[proof.LayerCheck]:
    with world.store.database(create=False) as database:
        (image,) = database.images()
    return [proof.LayerCheck(world.store, layer, (), (), False, Job()) for layer in image.layers]


def test_damage_of_a_layer_that_was_swapped_meanwhile_is_looked_at_again(world):
    calls = 0

    def look(task, progress):
        nonlocal calls
        calls += 1
        if calls == 1:
            world.pull(force=True)
            return damage()
        return prove(task, progress)

    report = checks(world)[0].run(look)
    assert (report.verdict, report.damages, calls) == (Verdict.PROVEN, (), 2)


def test_damage_of_a_layer_that_nobody_touched_is_looked_at_once(world):
    calls = []
    report = checks(world)[0].run(lambda task, progress: calls.append(task) or damage())
    assert (report.verdict, len(calls)) == (Verdict.DAMAGED, 1)


def test_a_layer_whose_notes_are_away_for_a_moment_is_looked_at_again(world):
    """While a layer is swapped it has no notes; the lock of its maker says when it has them again."""
    check = checks(world)[0]
    notes = next(
        x for x in (world.home / "layers/.msb-pull/records").glob("*.json") if world.trees[0].name.startswith(x.stem)
    )
    digest = check.layer.digest
    holding = threading.Event()

    def swap() -> None:
        with world.store.lock_layer(digest, lambda holder: None, threading.Event()):
            notes.rename(notes.with_suffix(".away"))
            holding.set()
            time.sleep(0.3)
            notes.with_suffix(".away").rename(notes)

    swapper = threading.Thread(target=swap)
    swapper.start()
    holding.wait()
    assert check.run(prove).verdict is Verdict.PROVEN
    swapper.join()


@pytest.mark.timeout(300)
def test_nothing_is_reported_beside_pulls_that_swap_every_layer(tmp_path):
    home = Home(tmp_path)
    with FaultRegistry() as registry:
        registry.add_image("acme/app", "1", [gz(MANY), gz(OTHER), gz(reg(b"d/7", b"on top") + END)])
        name = f"{registry.host}/acme/app:1"
        assert home.pull(name).returncode == 0
        pulls: list[subprocess.CompletedProcess] = []
        puller = threading.Thread(target=lambda: pulls.extend(home.pull("--force", name) for _ in range(3)))
        puller.start()
        rounds = 0
        while puller.is_alive():
            run = home.run("verify", *(["--quick"] if rounds % 2 else []))
            assert (run.returncode, run.stdout) == (0, ""), run.stderr
            assert "proven" not in run.stderr, run.stderr
            rounds += 1
        puller.join()
        assert [pull.returncode for pull in pulls] == [0] * 3 and rounds > 1


# Users


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="only root becomes another user")
class TestAnotherUser:
    """uid 65534 on a store that root owns and nobody else may write to."""

    @pytest.fixture
    def shared(self):
        with folder_of_nobody() as folder:
            store = folder / "root"
            store.mkdir(mode=0o755)
            layers = [
                directory(b"./") + reg(b"open", b"x" * 100) + directory(b"d") + END,
                reg(b"closed", b"secret", mode=0o640) + directory(b"inner", mode=0o700) + reg(b"inner/f", b"x") + END,
            ]
            yield lambda count: self.shared_store(store, layers[:count])

    def shared_store(self, folder: Path, layers) -> World:
        world = World(folder, layers)
        for own in (world.home, world.home / "layers", world.home / "layers" / ".msb-pull"):
            own.chmod(0o755)
        for path in (world.home / "layers" / ".msb-pull").rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
        for path in world.home.glob("oci.db*"):
            path.chmod(0o644)
        return world

    def run(self, world: World, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "msb_pull", "verify", *words, "--home", str(world.home)]
        return subprocess.run(
            as_nobody(command, [REPOSITORY, world.home]),
            env=program_environment(HOME="/nonexistent"), cwd="/", capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    @pytest.mark.parametrize("words", [(), ("--quick",)])
    def test_what_may_be_read_is_verified_and_nothing_is_written(self, shared, words):
        world = shared(1)
        before = sorted(world.home.rglob("*"))
        run = self.run(world, *words)
        assert (run.returncode, run.stdout) == (0, ""), run.stderr
        assert "1 layer (100 B)" in run.stderr
        assert sorted(world.home.rglob("*")) == before
        (world.trees[0] / "open").write_bytes(b"y" * 100)
        assert self.run(world, *words).returncode == 6

    def test_what_may_not_be_read_is_no_damage_but_code_7(self, shared):
        world = shared(2)
        run = self.run(world)
        assert (run.returncode, run.stdout) == (7, ""), run.stderr
        assert "error: 1 of 2 layers could not be read" in run.stderr
        assert "2 paths not readable by this user, the first is /" in run.stderr
        document = json.loads(self.run(world, "--format", "json").stdout)
        assert [layer["verdict"] for layer in document["layers"]] == ["proven", "unreadable"]
        assert (document["status"], document["error"]["code"]) == ("failed", 7)

    def test_damage_beside_what_may_not_be_read_is_damage(self, shared):
        world = shared(2)
        (world.trees[1] / "new").touch()
        run = self.run(world)
        assert run.returncode == 6
        assert {row.split("\t")[1] for row in run.stdout.splitlines()} >= {"/new"}
        assert "closed" not in run.stdout and "inner" not in run.stdout

    def test_a_closed_store_is_no_damage_either(self, shared):
        world = shared(1)
        (world.home / "layers").chmod(0o700)
        run = self.run(world)
        assert (run.returncode, run.stdout) == (7, ""), run.stderr
        assert "Permission denied" in run.stderr

    def test_on_a_read_only_mount(self, tmp_path):
        world = World(tmp_path)
        script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, "sh", str(world.home)]
        run = subprocess.run(
            [*words, *program(), "verify", "--home", str(world.home)],
            env=program_environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (run.returncode, run.stdout) == (0, ""), run.stderr
        assert run.stderr.startswith("Verified 2 layers"), run.stderr
