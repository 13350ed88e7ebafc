"""A home that only Microsandbox has written: listed, unprovable, believed by nobody, in the end a store like any."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.support.fault_registry import FaultRegistry
from tests.support.home import Home, sample
from tests.support.treecompare import describe, differences


@pytest.fixture
def registry():
    with FaultRegistry() as running:
        yield running


@pytest.fixture
def world(registry, tmp_path):
    """What Microsandbox leaves: its tables and directories, none of ours; one layer is half extracted, one strange."""
    name, added = sample(registry)
    home = Home(tmp_path)
    assert home.pull(name).returncode == 0
    layers = [home.layers / f"{digest}.extracted" for digest in added.layer_digests]
    right = [describe(layer) for layer in layers]
    shutil.rmtree(home.layers / ".msb-pull")
    with contextlib.closing(sqlite3.connect(home.store / "oci.db")) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            if table.startswith("msb_pull_"):
                database.execute(f"DROP TABLE {table}")
        database.commit()
    (layers[0] / "etc" / "passwd").unlink()
    (home.layers / "sha256:strange.extracted").mkdir()
    (home.layers / "notes.txt").write_text("mine")
    registry.forget()
    return home, name, added, layers, right


def test_it_is_listed_and_unprovable(world, registry):
    home, name, *_ = world
    assert home.run("ls", "-q").stdout == f"{name}\n"
    run = home.run("verify")
    assert (run.returncode, run.stdout) == (0, "") and "2 layers cannot be proven" in run.stderr
    never = home.pull("--policy", "never", name)
    assert (never.returncode, never.stdout) == (0, f"{name}\n")
    assert "warning: " in never.stderr
    assert registry.count() == 0


@pytest.mark.parametrize("policy", ["missing", "newer", "always"])
def test_a_pull_fetches_what_nobody_can_prove(world, registry, policy):
    home, name, added, layers, right = world
    run = home.pull("--policy", policy, name)
    assert (run.returncode, run.stdout) == (0, f"{name}@{added.manifest_digest}\n"), run.stderr
    assert {path: registry.count(f"/blobs/{path}") for path in added.layer_digests} == dict.fromkeys(
        added.layer_digests, 1
    )
    for layer, tree in zip(layers, right, strict=True):
        assert differences(tree, describe(layer)) == []
    assert "Verified 2 layers" in home.run("verify").stderr
    registry.forget()
    assert home.pull("-q", name).stdout == run.stdout
    assert registry.count() == 0


def test_what_it_does_not_know_stays(world):
    home, name, _, layers, _ = world
    strange: list[Path] = [home.layers / "sha256:strange.extracted", home.layers / "notes.txt"]
    run = home.run("prune", "-y")
    assert run.returncode == 0 and all(path.exists() for path in [*strange, *layers]), run.stderr
    assert home.run("rm", name).returncode == 0
    assert all(path.exists() for path in strange) and not any(layer.exists() for layer in layers)
