"""One layer under two bases: neither image may change what the other shows, whatever the order of pulls (A26)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from msb_pull.ground import events
from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.store import Store
from msb_pull.work.prune import apply_prune, plan_prune, remove_images
from msb_pull.work.pull.plan import Policy, PullOptions
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.verify.verify import Verdict, verify_images
from tests.support.archive import END, directory, hardlink, reg, symlink
from tests.support.imagebuild import simple_layout

SHARED = reg(b"a/b", b"shared") + END
BASES = {
    "one": directory(b"a", mode=0o700, uid=1) + END,
    "two": directory(b"a", mode=0o755, uid=0) + END,
    "same": directory(b"a", mode=0o700, uid=1) + reg(b"other", b"x") + END,
}


def no_registry():
    raise AssertionError("a layout needs no registry")


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(folder / "home")

    def pull(self, name: str, *tars: bytes, **options):
        layout = self.folder / name
        if not layout.exists():
            simple_layout(layout, list(tars))
        argument = parse_argument(f"oci:{layout}")
        return pull_image(
            argument,
            self.store,
            no_registry,
            PullOptions(**{"policy": Policy.ALWAYS, "name": f"localhost/{name}:1", **options}),
            observer=events.ignore,
            cancel=threading.Event(),
        )

    def owner(self, result) -> str:
        return os.getxattr(Path(result.layers[-1].path) / "a", "user.containers.override_stat").decode()

    def verdicts(self):
        report = verify_images(self.store, [], Job())
        return {layer.verdict for layer in report.layers}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_a26_each_image_shows_what_its_own_base_says(world, order):
    expected = {"one": "1:0:040700", "two": "0:0:040755"}
    results = {name: world.pull(name, BASES[name], SHARED) for name in order}
    for name, result in results.items():
        assert world.owner(result) == expected[name], name
    assert results[order[0]].layers[-1].path != results[order[1]].layers[-1].path
    assert world.verdicts() == {Verdict.PROVEN}
    for name in order:
        again = world.pull(name, BASES[name], SHARED)
        assert not again.changed
        assert [x.path for x in again.layers] == [x.path for x in results[name].layers]


def test_a26_forcing_one_image_leaves_the_other_alone(world):
    first = world.pull("one", BASES["one"], SHARED)
    world.pull("two", BASES["two"], SHARED)
    world.pull("two", BASES["two"], SHARED, force=True)
    assert world.owner(first) == "1:0:040700"


def test_a26_bases_that_say_the_same_share_one_directory(world):
    first = world.pull("one", BASES["one"], SHARED)
    second = world.pull("same", BASES["same"], SHARED)
    assert first.layers[-1].path == second.layers[-1].path


def test_a26_links_into_lower_layers_are_those_of_the_own_base(world):
    linked = hardlink(b"copy", b"file") + END
    one = world.pull("one", reg(b"file", b"of one") + END, linked)
    two = world.pull("two", reg(b"file", b"of two") + END, linked)
    assert (Path(one.layers[-1].path) / "copy").read_text() == "of one"
    assert (Path(two.layers[-1].path) / "copy").read_text() == "of two"
    assert world.verdicts() == {Verdict.PROVEN}


def test_a24_a26_a_redirected_parent_is_that_of_the_own_base(world):
    shared = reg(b"lib/x.so", b"x") + END
    one = world.pull("one", directory(b"usr/lib") + symlink(b"lib", b"usr/lib") + END, shared)
    two = world.pull("two", directory(b"lib") + END, shared)
    assert (Path(one.layers[-1].path) / "usr/lib/x.so").exists()
    assert (Path(two.layers[-1].path) / "lib/x.so").exists()
    assert world.verdicts() == {Verdict.PROVEN}


def test_a26_removing_one_image_keeps_the_other(world):
    world.pull("one", BASES["one"], SHARED)
    second = world.pull("two", BASES["two"], SHARED)
    remove_images(world.store, ["localhost/one:1"], Job())
    apply_prune(world.store, plan_prune(world.store, None), Job())
    assert world.owner(second) == "0:0:040755"
    assert world.verdicts() == {Verdict.PROVEN}
    assert not world.pull("two", BASES["two"], SHARED).changed


def test_a_rebuilt_folder_is_pulled_again_under_its_name(world):
    first = world.pull("one", BASES["one"], policy=Policy.MISSING)
    (world.folder / "one").rename(world.folder / "old")
    second = world.pull("one", BASES["two"], policy=Policy.MISSING)
    assert second.digest != first.digest
    assert not world.pull("one", BASES["two"], policy=Policy.MISSING).changed
