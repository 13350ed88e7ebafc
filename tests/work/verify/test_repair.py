"""verify --repair as a user runs it: fresh layers in place of damaged ones, and what is said when there are none."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import threading

import pytest

from tests.support.archive import END, directory, reg
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.home import Home, gz, sample
from tests.support.make_sample import file, layer_tar
from tests.support.treecompare import describe, differences


@pytest.fixture
def registry():
    with FaultRegistry() as running:
        yield running


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def layer_of(home: Home, digest: str):
    return home.layers / f"{digest}.extracted"


def rows(run) -> list[list[str]]:
    return [line.split("\t") for line in run.stdout.splitlines()]


class Watcher:
    """Opens a file of a layer again and again, and counts what it finds."""

    def __init__(self, path) -> None:
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.inodes: set[int] = set()
        self.looks = 0
        self.failures: list[OSError] = []

    def _look(self) -> None:
        while not self._done.is_set():
            self.looks += 1
            try:
                self.inodes.add(os.stat(self._path).st_ino)
            except OSError as error:
                self.failures.append(error)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def test_a_damaged_layer_is_swapped_with_no_moment_without_one(registry, home):
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    trees = [layer_of(home, digest) for digest in added.layer_digests]
    good = [describe(tree) for tree in trees]
    untouched = trees[1].stat().st_ino
    victim = trees[0] / "etc" / "passwd"
    with Watcher(trees[0] / "etc" / "os-release") as watcher:
        for damage in (lambda: victim.write_bytes(b"x"), victim.unlink, lambda: victim.chmod(0o777)):
            damage()
            before = registry.count("/blobs/", "GET")
            run = home.run("verify", "--repair")
            # What was found is told though it is mended.
            assert run.returncode == 0 and "/etc/passwd" in {row[1] for row in rows(run)}, run.stderr
            assert "1 layer repaired" in run.stderr
            # Neither the config nor the sound layer is asked for again.
            assert registry.count("/blobs/", "GET") == before + 1
    assert watcher.failures == []
    # Inodes that have been freed may come again.
    assert len(watcher.inodes) > 1 and watcher.looks > 1000
    assert [differences(*pair) for pair in zip(good, map(describe, trees), strict=True)] == [[], []]
    assert trees[1].stat().st_ino == untouched
    assert list((home.layers / ".msb-pull" / "staging").iterdir()) == []
    assert home.run("verify").returncode == 0


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_missing_layer_and_a_missing_record_come_back(registry, home, options):
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    shutil.rmtree(layer_of(home, added.layer_digests[0]))
    (home.layers / ".msb-pull" / "records" / f"{added.layer_digests[1]}.tar").unlink()
    found = home.run("verify", *options)
    assert found.returncode == 6 and len(found.stdout.splitlines()) == 2, found
    run = home.run("verify", "--repair", *options, "--format", "json")
    document = json.loads(run.stdout)
    assert (run.returncode, document["status"]) == (0, "ok"), run.stderr
    assert [layer["repaired"] for layer in document["layers"]] == [True, True]
    assert home.run("verify").returncode == 0


@pytest.mark.parametrize("failure", ["stopped", "gone", "denied", "broken"])
def test_without_a_registry_the_damage_is_still_told(registry, home, failure):
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    victim = layer_of(home, added.layer_digests[0]) / "etc" / "passwd"
    victim.write_bytes(b"x")
    if failure == "stopped":
        registry.stop()
    else:
        fault = {"gone": Fault(status=404), "denied": Fault(status=401), "broken": Fault(flip=9)}[failure]
        registry.always("/blobs/", fault)
    run = home.run("verify", "--repair")
    assert run.returncode == 6, run.stderr
    assert {row[1] for row in rows(run)} >= {"/etc/passwd"}
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and errors[1] == "error: 1 of 2 layers damaged", run.stderr
    assert "cause: not repaired: " in run.stderr
    assert victim.read_bytes() == b"x"
    document = json.loads(home.run("verify", "--repair", "--format", "json").stdout)
    assert (document["status"], document["error"]["code"]) == ("failed", 6)
    assert document["error"]["cause"].startswith("not repaired: ")
    assert [layer["verdict"] for layer in document["layers"]] == ["damaged", "proven"]


def test_what_can_be_repaired_is_though_another_registry_is_gone(registry, home):
    with FaultRegistry() as other:
        names = [sample(other)[0]]
        added = registry.add_image("acme/b", "1", [gz(layer_tar([file("b", "b")]))])
        names.append(f"{registry.host}/acme/b:1")
        assert home.pull(*names).returncode == 0
    for path in home.layers.glob("sha256:*/*"):
        if path.name in ("b", "app"):
            path.chmod(0o111 | path.stat().st_mode ^ 0o022)
    run = home.run("verify", "--repair", "--format", "json")
    assert run.returncode == 6
    document = json.loads(run.stdout)
    mended = {layer["digest"] for layer in document["layers"] if layer["repaired"]}
    assert mended == {added.layer_digests[0]}


def test_a_layer_that_two_images_share_comes_from_the_one_that_still_can(registry, home):
    shared = gz(layer_tar([file("shared", "x")]))
    with FaultRegistry() as other:
        for place in (other, registry):
            added = place.add_image("acme/a", "1", [shared])
        assert home.pull(f"{other.host}/acme/a:1", f"{registry.host}/acme/a:1").returncode == 0
    (layer_of(home, added.layer_digests[0]) / "shared").write_text("y")
    run = home.run("verify", "--repair")
    assert run.returncode == 0, run.stderr


def test_an_image_from_a_folder_cannot_be_fetched_again(home):
    from tests.support.sample import SAMPLE

    assert home.pull(f"oci:{SAMPLE}:1", "--as", "sample:1").returncode == 0
    (next(home.layers.glob("sha256:*")) / "new").touch()
    run = home.run("verify", "--repair")
    assert run.returncode == 6
    assert "/new" in run.stdout and "1 damaged layer cannot be fetched: no image from a registry has" in run.stderr


def test_a_layer_of_two_bases_is_repaired_on_each(registry, home):
    """The second base's layer lies under a name of its own, and is fetched for that name."""
    shared = gz(reg(b"a/b", b"shared") + END)
    for name, base in (("one", directory(b"a", mode=0o700, uid=1)), ("two", directory(b"a"))):
        added = registry.add_image(f"acme/{name}", "1", [gz(base + END), shared])
        assert home.pull(f"{registry.host}/acme/{name}:1").returncode == 0
    trees = list(home.layers.glob(f"{added.layer_digests[1]}*"))
    assert len(trees) == 2
    good = [describe(tree) for tree in trees]
    for tree in trees:
        (tree / "a" / "b").write_text("damage")
        run = home.run("verify", "--repair")
        assert run.returncode == 0 and {row[1] for row in rows(run)} == {"/a/b"}, run.stderr
        assert [describe(tree) for tree in trees] == good


def test_an_image_with_the_form_of_anothers_base_gets_its_own(registry, home):
    """As two pulls could leave it, when the layer was lost between them."""
    shared = gz(reg(b"a/b", b"shared") + END)
    for name, base in (("one", directory(b"a", mode=0o700, uid=1)), ("two", directory(b"a"))):
        added = registry.add_image(f"acme/{name}", "1", [gz(base + END), shared])
        assert home.pull(f"{registry.host}/acme/{name}:1").returncode == 0
    plain = added.layer_digests[1]
    (other,) = (tree for tree in home.layers.glob(f"{plain}*") if tree != layer_of(home, plain))
    good = describe(other)
    with sqlite3.connect(home.store / "oci.db") as rows:
        (keys,) = rows.execute("SELECT layers_json FROM msb_pull_images WHERE reference LIKE '%two%'").fetchone()
        alike = re.sub(rf"({plain})\+\w+", r"\1", keys)
        assert alike != keys
        rows.execute("UPDATE msb_pull_images SET layers_json = ? WHERE reference LIKE '%two%'", (alike,))
    rows.close()
    shutil.rmtree(other)
    assert home.run("verify").returncode == 6
    run = home.run("verify", "--repair")
    assert run.returncode == 0 and "1 layer repaired" in run.stderr, run.stderr
    assert describe(other) == good
    assert home.run("verify").returncode == 0


def test_the_form_of_a_layer_that_microsandbox_alone_reads_is_proven_and_repaired(registry, home):
    """Its rows know layers by their digests: the plain form stays while any image has the layer, on whatever base."""
    shared = gz(reg(b"a/b", b"shared") + END)
    for name, base in (("one", directory(b"a", mode=0o700, uid=1)), ("two", directory(b"a"))):
        added = registry.add_image(f"acme/{name}", "1", [gz(base + END), shared])
        assert home.pull(f"{registry.host}/acme/{name}:1").returncode == 0
    assert home.run("rm", f"{registry.host}/acme/one:1").returncode == 0
    plain = home.layers / f"{added.layer_digests[1]}.extracted"
    (plain / "a" / "b").write_text("damage")
    run = home.run("verify")
    assert run.returncode == 6 and {row[1] for row in rows(run)} == {"/a/b"}, run.stderr
    run = home.run("verify", "--repair")
    assert run.returncode == 0 and (plain / "a" / "b").read_text() == "shared", run.stderr
    assert home.run("verify").returncode == 0


@pytest.mark.parametrize("kind", ["tar", "json"])
@pytest.mark.parametrize("command", [("verify", "--repair"), ("pull", "--force")])
def test_a_folder_in_the_place_of_a_record_gives_way(registry, home, kind, command):
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    place = home.layers / ".msb-pull" / "records" / f"{added.layer_digests[0]}.{kind}"
    place.unlink()
    (place / "inside").mkdir(parents=True)
    assert home.run("verify").returncode == 6
    run = home.run(*command) if command[0] == "verify" else home.pull(name, "--force")
    assert run.returncode == 0, run.stderr
    assert home.run("verify").returncode == 0


def test_layers_of_ours_without_a_record_are_fetched_again(registry, home):
    """Nothing says that they are bad, but nothing could say that they are good either."""
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    for kind in ("tar", "json"):
        (home.layers / ".msb-pull" / "records" / f"{added.layer_digests[0]}.{kind}").unlink()
    document = json.loads(home.run("verify", "--format", "json").stdout)
    assert [layer["verdict"] for layer in document["layers"]] == ["damaged", "proven"]
    assert document["error"]["code"] == 6
    run = home.run("verify", "--repair")
    assert run.returncode == 0 and "1 layer repaired" in run.stderr, run.stderr
    assert home.run("verify").returncode == 0


def test_a26_both_forms_of_a_layer_in_one_image_come_back(registry, home):
    shared = reg(b"a/b", b"shared") + END
    tars = (shared, directory(b"a", mode=0o700, uid=1) + END, shared)
    registry.add_image("acme/twice", "1", [gz(tar) for tar in tars])
    assert home.pull(f"{registry.host}/acme/twice:1").returncode == 0
    forms = sorted(path.parent.parent for path in home.layers.glob("*/a/b"))
    assert len(forms) == 2
    good = [describe(tree) for tree in forms]
    for damaged in (forms, forms[:1], forms[1:]):
        for tree in damaged:
            (tree / "a" / "b").write_bytes(b"x")
        assert home.run("verify").returncode == 6
        run = home.run("verify", "--repair")
        assert run.returncode == 0, run.stderr
        assert [differences(*pair) for pair in zip(good, map(describe, forms), strict=True)] == [[], []]
        assert home.run("verify").returncode == 0
