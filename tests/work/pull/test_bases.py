"""One layer under two bases: neither image may change what the other shows, whatever the order of pulls (A26)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msb_pull.ground.running import Job
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.store import Store
from msb_pull.work.listing import inspect_image, list_files
from msb_pull.work.prune.apply import apply_prune
from msb_pull.work.prune.plan import plan_prune
from msb_pull.work.prune.remove import remove_images
from msb_pull.work.pull.plan import Policy, PullOptions
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.save import Format, save_images
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import verify_images
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

    def pull(self, name: str, *tars: bytes, jobs=4, **options):
        layout = self.folder / name
        if not layout.exists():
            simple_layout(layout, list(tars))
        argument = parse_argument(f"oci:{layout}")
        return pull_image(
            argument,
            self.store,
            no_registry,
            PullOptions(**{"policy": Policy.ALWAYS, "name": f"localhost/{name}:1", **options}),
            Job(jobs=jobs),
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


# One blob at two positions of an image


def keys(world, name: str) -> list[LayerKey]:
    with world.store.database(create=False) as database:
        return [layer.key for layer in database.find(f"localhost/{name}:1").layers]


def forms(result) -> list[str]:
    """The owner and mode of ``a`` at each position."""
    return [os.getxattr(Path(layer.path) / "a", "user.containers.override_stat").decode() for layer in result.layers]


@pytest.mark.parametrize("jobs", [1, 4])
def test_a26_a_layer_that_is_listed_twice_shows_at_each_position_what_lies_below(world, jobs):
    stack = (SHARED, BASES["one"], SHARED)
    result = world.pull("twice", *stack, jobs=jobs)
    assert forms(result) == ["0:0:040755", "1:0:040700", "1:0:040700"]
    first, _, last = keys(world, "twice")
    assert (first.digest, first.variant) == (last.digest, "")
    assert last.variant
    assert [layer.path for layer in result.layers] == [str(world.store.layer_dir(key)) for key in keys(world, "twice")]
    assert world.verdicts() == {Verdict.PROVEN}
    again = world.pull("twice", *stack)
    assert not again.changed
    assert [x.path for x in again.layers] == [x.path for x in result.layers]
    assert not world.pull("twice", *stack, policy=Policy.MISSING).changed


def test_a26_a_layer_that_is_listed_twice_is_one_directory_where_both_bases_say_the_same(world):
    result = world.pull("twice", BASES["one"], SHARED, reg(b"b", b"x") + END, SHARED, SHARED)
    assert len({layer.path for layer in result.layers}) == 3
    assert [key.variant for key in keys(world, "twice")] == [""] * 5
    assert world.verdicts() == {Verdict.PROVEN}


def test_a26_three_positions_of_a_layer_have_three_forms(world):
    result = world.pull("thrice", SHARED, BASES["one"], SHARED, BASES["two"], SHARED, force=True)
    assert forms(result)[::2] == ["0:0:040755", "1:0:040700", "0:0:040755"]
    # The times of the directory differ as well.
    assert len({layer.path for layer in result.layers[::2]}) == 3
    assert world.verdicts() == {Verdict.PROVEN}
    forced = world.pull("thrice", force=True)
    assert forced.changed
    assert [x.path for x in forced.layers] == [x.path for x in result.layers]
    assert world.verdicts() == {Verdict.PROVEN}


def test_a26_the_forms_of_a_layer_in_one_image_leave_those_of_others_alone(world):
    other = world.pull("one", BASES["one"], SHARED)
    result = world.pull("twice", SHARED, BASES["two"], SHARED)
    assert forms(other)[-1] == "1:0:040700"
    assert forms(result)[::2] == ["0:0:040755", "0:0:040755"]
    assert [bool(key.variant) for key in keys(world, "twice")] == [True, False, True]
    assert world.verdicts() == {Verdict.PROVEN}
    remove_images(world.store, ["localhost/one:1"], Job())
    apply_prune(world.store, plan_prune(world.store, None), Job())
    assert not world.pull("twice").changed
    remove_images(world.store, ["localhost/twice:1"], Job())
    # The plain form, which no image has any more, was kept for Microsandbox.
    apply_prune(world.store, plan_prune(world.store, None), Job())
    assert not list(world.store.layers.glob("*.extracted"))


def test_a26_each_position_is_listed_mounted_and_saved(world):
    result = world.pull("twice", SHARED, BASES["one"], SHARED)
    reference = Reference.parse("localhost/twice:1")
    shown = {file.path: (file.uid, file.mode) for file in list_files(world.store, reference)}
    assert shown[b"a"] == (1, 0o700)
    image = inspect_image(world.store, reference)
    assert image.directories() == [layer.path for layer in result.layers]
    mounted = [os.path.realpath(link) for link in image.lowerdir().split(":")]
    assert mounted == [layer.path for layer in reversed(result.layers)]
    with (world.folder / "saved.tar").open("wb") as out:
        save_images(world.store, [str(reference)], out, Format.OCI, Job())
    loaded = World(world.folder / "elsewhere")
    argument = parse_argument(f"oci-archive:{world.folder / 'saved.tar'}")
    saved = pull_image(argument, loaded.store, no_registry, PullOptions(name="localhost/twice:1"), Job())
    assert forms(saved) == forms(result)


def test_a26_a_lost_record_of_a_layer_for_another_base_ends_no_pull(world):
    first = world.pull("one", BASES["one"], SHARED)
    world.store.record_path(keys(world, "one")[-1]).unlink()
    second = world.pull("two", BASES["two"], SHARED)
    assert (world.owner(first), world.owner(second)) == ("1:0:040700", "0:0:040755")


def test_a26_a_lost_form_stays_that_of_the_image_that_has_it(world):
    first = world.pull("one", BASES["one"], SHARED)
    # As after a pull that was killed while it swapped the layer for a new one.
    world.store.notes_path(LayerKey.parse(Path(first.layers[-1].path).name.removesuffix(".extracted"))).unlink()
    second = world.pull("two", BASES["two"], SHARED)
    assert second.layers[-1].path != first.layers[-1].path
    again = world.pull("one", BASES["one"], SHARED, policy=Policy.MISSING)
    assert (world.owner(again), world.owner(second)) == ("1:0:040700", "0:0:040755")
    assert world.verdicts() == {Verdict.PROVEN}
