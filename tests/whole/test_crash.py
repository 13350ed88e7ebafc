"""Killed with kill -9 at any moment of a pull over HTTP: the same command, run again, ends as if nothing had been (D3).

Every round kills the installed program and its whole process group at a random moment, runs it again to the end, and
compares the store with one that was never disturbed: trees, notes, records, the rows of the database, and the names of
everything that lies around. ``CRASH_ROUNDS=200`` runs the long form; ``CRASH_SEED`` other moments. More rounds follow
until enough different stages have been met.
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.conftest import program, program_environment
from tests.support.counting import wait_for
from tests.support.fault_registry import FaultRegistry
from tests.support.home import LINUX, Home
from tests.support.make_sample import BASE, TOP, file, folder, hardlink, layer_tar, symlink
from tests.support.processes import ImageState, children, gone

# The environment of a test is cleaned before it runs, so these are read here.
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "6"))
SEED = int(os.environ.get("CRASH_SEED", "3"))
# How many stages must be met, within how many times as many rounds.
STAGES, PATIENCE = (3 if ROUNDS < 50 else 6), 5


def many(name: str, count: int, size: int) -> bytes:
    files = [file(f"{name}/{i % 20}/f{i}", random.Random(f"{name}{i}").randbytes(size)) for i in range(count)]
    return layer_tar([folder(name), *files])


def images(registry: FaultRegistry) -> list[str]:
    """Two images with layers in common, one of them twice in an image, and some that take facts from those below."""
    base, top = layer_tar(BASE), layer_tar(TOP)
    # Of more than a mebibyte, and larger than all others together, so that two processes write it.
    large, small = many("large", 450, 3000), many("small", 60, 1500)
    derived = layer_tar(
        [
            file("lib/through-a-symlink", "lands in usr/lib"),
            file("home/user/implied", "below a folder of uid 1000"),
            hardlink("linked", "etc/passwd"),
            file("usr/.wh.share"),
            symlink("to", "usr/../etc"),
        ]
    )
    other_base = layer_tar([folder("home", 0o711, uid=7), folder("home/user", 0o750, uid=9), *BASE[4:8]])
    stacks = {"one": [base, large, small, large, derived, top], "two": [other_base, small, derived, large]}
    names = []
    for tag, stack in stacks.items():
        registry.add_image("acme/app", tag, [gzip.compress(x, 6, mtime=0) for x in stack])
        names.append(f"{registry.host}/acme/app:{tag}")
    return names


def stage(home: Home, code: int) -> str:
    """How far the killed run had come."""
    if code == 0:
        return "ended before"
    own = home.layers / ".msb-pull"
    published = len(list(home.layers.glob("*.extracted")))
    if (home.store / "oci.db").exists():
        return f"{len(home.sql('SELECT id FROM images'))} images recorded"
    if published:
        return "layers published"
    if any(own.glob("staging/*/tree/*")):
        return "unpacking"
    if home.partials():
        return "downloading"
    return "store laid out" if own.exists() else "nothing written"


@dataclass
class Moment:
    """So many seconds after the registry has sent so many bytes: what a pull has reached by then depends on no load."""

    bytes: int
    seconds: float

    def wait(self, process: subprocess.Popen, registry: FaultRegistry) -> None:
        wait_for(lambda: registry.bytes_sent() >= self.bytes or process.poll() is not None, 60)
        time.sleep(self.seconds)


def killed(home: Home, names: list[str], moment: Moment, registry: FaultRegistry) -> int:
    """Starts the pull, kills its group, waits until nothing of it is left; returns its exit status."""
    process = subprocess.Popen(
        [*home.program_line("pull", "-q", *LINUX, *names)],
        env=home.environment(), cwd=home.folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        moment.wait(process, registry)
        left = children(process.pid)
        left += [grandchild for child in left for grandchild in children(child)]
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        code = process.wait(10)
    wait_for(lambda: all(map(gone, left)))
    return code


class Crashing(Home):
    def program_line(self, *arguments: str) -> list[str]:
        return [*program(), *arguments, *self.command]

    def environment(self) -> dict[str, str]:
        return program_environment()


def fresh(folder) -> Crashing:
    folder.mkdir()
    return Crashing(folder)


@pytest.mark.timeout(120 + 12 * PATIENCE * ROUNDS)
def test_d3_killed_at_any_moment_of_a_pull_over_http(tmp_path, record_property):
    chance = random.Random(SEED)
    stages: Counter[str] = Counter()
    failures = []
    with FaultRegistry() as registry:
        names = images(registry)
        whole = fresh(tmp_path / "whole")
        run = whole.pull("-q", *names)
        assert run.returncode == 0, run.stderr
        expected, said = ImageState(whole, names), run.stdout
        total = sum(map(len, registry.blobs.values()))
        for number in range(PATIENCE * ROUNDS):
            if number >= ROUNDS and len(stages) >= STAGES:
                break
            rate = total / chance.uniform(0.3, 1.4)
            home = fresh(tmp_path / f"home{number}")
            registry.forget()
            try:
                for _ in range(chance.choice((1, 1, 1, 2))):
                    registry.set_total_rate(rate)
                    # One in five comes before the first byte, and one after the last.
                    sent, share = registry.bytes_sent(), min(chance.uniform(-0.3, 1.3), 1)
                    moment = Moment(int(sent + (total - sent) * share), chance.uniform(0, 0.4))
                    code = killed(home, names, moment, registry)
                    reached = stage(home, code)
                    stages[reached] += 1
                    assert code in (0, -signal.SIGKILL)
                registry.set_total_rate(None)
                again = home.pull("-q", *names)
                assert (again.returncode, again.stdout) == (0, said), again.stderr
                assert "Traceback" not in again.stderr
                assert os.listdir(home.layers / ".msb-pull" / "staging") == []
                assert os.listdir(home.layers / ".msb-pull" / "partial") == []
                ImageState(home, names).compare(expected)
                verified = home.run("verify", "-q")
                assert verified.returncode == 0, verified.stdout
            except AssertionError as error:
                failures.append(f"round {number}, {moment}: {error}")
            subprocess.run(["rm", "-rf", home.folder], check=True)
    print(f"\n{stages.total()} kills, {len(failures)} failures, seed {SEED}; killed at: {dict(stages)}")
    record_property("stages", dict(stages))
    assert not failures, "\n\n".join(failures)
    assert len(stages) >= STAGES, stages


def test_d3_leftovers_go_though_no_layer_is_missing(tmp_path):
    """A layer that another base makes different is there and yet unpacked again: a crash of that leaves staging too."""
    home = fresh(tmp_path / "home")
    with FaultRegistry() as registry:
        below = [layer_tar([folder("a", mode)]) for mode in (0o700, 0o755)]
        upper = layer_tar([file("a/f", "takes the mode of a from below")])
        for tag, base in zip(("one", "two", "base"), (below[0], below[1], below[1]), strict=True):
            stack = [base, upper] if tag != "base" else [base]
            registry.add_image("acme/app", tag, [gzip.compress(x, 6, mtime=0) for x in stack])
        one, two, base = (f"{registry.host}/acme/app:{tag}" for tag in ("one", "two", "base"))
        assert home.pull(one, base).returncode == 0
        for arguments in ((two,), ("--policy", "always", two)):
            left = home.layers / ".msb-pull" / "staging" / "0123456789ab-1-deadbeef"
            (left / "tree" / "d").mkdir(parents=True)
            left.with_name(left.name + ".lock").touch()
            run = home.pull(*arguments)
            assert run.returncode == 0, run.stderr
            assert os.listdir(left.parent) == []
