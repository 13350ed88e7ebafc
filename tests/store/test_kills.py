"""Killed at any moment: the next pull needs no help and leaves the same store as one that was never disturbed.

``KILL_ROUNDS=200`` runs the long form. More rounds follow until enough of them were killed before they had ended.
"""

from __future__ import annotations

import os
import random
import subprocess
import time

import pytest

from msb_pull.ground.pools import SMALL
from tests.conftest import program, program_environment
from tests.support.imagebuild import LayoutBuilder
from tests.support.make_sample import file, folder, layer_tar
from tests.support.program import run_program
from tests.support.stores import sql

FILES = 400
# The environment of a test is cleaned before it runs, so this is read here.
ROUNDS = int(os.environ.get("KILL_ROUNDS", "25"))
# How many times as many rounds there are at most.
PATIENCE = 5


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """Three layers, the largest on top: small enough for many rounds, large enough that two processes write it."""
    made = LayoutBuilder(tmp_path_factory.mktemp("layout") / "oci")
    tars = [
        layer_tar(
            [folder(f"d{number}"), *(file(f"d{number}/f{i}", random.Random(i).randbytes(3000)) for i in range(size))]
        )
        for number, size in enumerate((10, FILES // 2, FILES))
    ]
    assert 2 * len(tars[2]) > sum(map(len, tars))
    assert 3000 * FILES > SMALL
    made.add(made.image(tars), "1")
    return made.write()


def words(home, layout) -> list[str]:
    named = (f"oci:{layout}:1", "--as", "localhost/a:1")
    return ["pull", "-q", *named, "--platform", "linux/amd64", "--home", str(home)]


def trees(home) -> dict[str, object]:
    """Everything in the layers, with contents and attributes."""
    found: dict[str, object] = {}
    for base, folders, files in os.walk(home / "layers"):
        for name in [*folders, *files]:
            path = os.path.join(base, name)
            inside = os.path.relpath(path, home / "layers")
            if ".msb-pull" in inside:
                continue
            facts = os.lstat(path)
            value = os.getxattr(path, "user.containers.override_stat") if not os.path.islink(path) else b""
            found[inside] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, value)
    return found


def rounds(tmp_path, layout, count: int, seed: int) -> None:
    whole = tmp_path / "whole"
    took = 60.0
    for _ in range(2):  # the first one still reads the program from the disk
        subprocess.run(["rm", "-rf", whole], check=True)
        started = time.monotonic()
        subprocess.run(
            [*program(), *words(whole, layout)], env=program_environment(), check=True, stdout=subprocess.DEVNULL
        )
        took = min(took, time.monotonic() - started)
    expected = trees(whole)
    assert len(expected) > FILES
    chance = random.Random(seed)
    killed = 0
    for number in range(PATIENCE * count):
        if number >= count and killed > count // 6:
            break
        home = tmp_path / f"home{number % 5}"  # some rounds begin with what earlier ones left
        command = [*program(), *words(home, layout)]
        empty, started, delay = not home.exists(), time.monotonic(), chance.uniform(0, took)
        process = subprocess.Popen(command, env=program_environment(), stdout=subprocess.DEVNULL)
        try:
            process.wait(delay)
            if empty:  # what was measured is too long where the machine has less to do now
                took = min(took, time.monotonic() - started)
        except subprocess.TimeoutExpired:
            process.kill()
        killed += process.wait() == -9
        run = run_program(words(home, layout))
        assert run.returncode == 0, run.stderr
        assert trees(home) == expected, f"round {number}"
        assert list((home / "layers" / ".msb-pull" / "staging").iterdir()) == [] or not killed
        assert len(stacked_layers(home)) == 3
        if number % 2:
            subprocess.run(["rm", "-rf", home], check=True)
        elif number % 3 == 0:
            (home / "oci.db").unlink()
    assert killed > count // 6


def stacked_layers(home):
    with sql(home / "oci.db") as run:
        assert run.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return run.execute("SELECT layer_id FROM manifest_layers").fetchall()


@pytest.mark.timeout(120 + 5 * PATIENCE * 8)
def test_d3_killed_at_any_moment(tmp_path, layout):
    rounds(tmp_path, layout, 8, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(120 + 5 * PATIENCE * ROUNDS)
def test_d3_killed_many_times(tmp_path, layout):
    rounds(tmp_path, layout, ROUNDS, seed=2)
