"""prune --keep, df, and pulls into a store with a budget, as a script and as a person see them."""

from __future__ import annotations

import gzip
import os
import random
import re

import pytest

from msb_pull.store.index.keys import copy_name
from msb_pull.store.store import Store
from tests.support.contract import IMAGE, PINNED, Said
from tests.support.holders import holder
from tests.support.make_sample import file, layer_tar
from tests.support.stores import set_used
from tests.support.terminal import Terminal, plain

BIG, OTHER = "HOST/acme/big:1", "HOST/acme/other:1"
SIZES = re.compile(r"\d+(\.\d)? [kMG]?B")
GONE = f"image {IMAGE}\nlayer BASE SIZE\nlayer TOP SIZE\n"
# Long ago.
THEN = 1_700_000_000


def add(place, name: str) -> str:
    """An image of one layer of 200,000 bytes; returns what is printed for it."""
    layer = gzip.compress(layer_tar([file(name, random.Random(name).randbytes(200_000))]), 1, mtime=0)
    added = place.registry.add_image(f"acme/{name}", "1", [layer])
    return f"HOST/acme/{name}:1@{added.manifest_digest}\n"


@pytest.fixture
def filled(place):
    """The sample, used longest ago, and two large images."""
    for name in ("big", "other"):
        add(place, name)
    assert place.run("-q", IMAGE, BIG, OTHER).code == 0
    store = Store.open(place.home)
    for when, name in enumerate((IMAGE, BIG, OTHER)):
        set_used(store, *place.words(name), THEN + when)
    return place


def used(place, name: str) -> float:
    return os.stat(Store.open(place.home).homes.copies / copy_name(*place.words(name))).st_mtime


def sized(said: Said) -> Said:
    return Said(
        said.code, SIZES.sub("SIZE", re.sub("sha256:[0-9a-f]{64}", "DIGEST", said.out)), SIZES.sub("SIZE", said.error)
    )


def listed(place) -> list[str]:
    return place.run("ls", "-q").out.split()


def total(place) -> int:
    return place.run("df", "--format", "json").document["total_bytes"]


def budget(place, text: str) -> None:
    place.config.write_text(f"[pull]\nretries = 0\n[store]\n{text}\n")


# prune


def test_prune_keep(filled):
    before = total(filled)
    dry = filled.run("prune", "-n", "--keep", "450kB")
    assert sized(dry) == Said(0, GONE, "Would remove 1 image and 2 layers (SIZE).\n")
    assert total(filled) == before
    done = sized(filled.run("prune", "-y", "--keep", "450kB"))
    assert done == Said(0, GONE, "Removed 1 image and 2 layers, freed SIZE\n")
    assert listed(filled) == [BIG, OTHER] and total(filled) <= 450_000
    assert filled.run("prune", "-y", "--keep", "450kB") == Said(0, "", "Nothing to remove.\n")
    document = filled.run("prune", "-y", "--keep", "230kB", "--format", "json").document
    assert (document["images"], document["over_bytes"]) == ([BIG], 0)
    assert document["left_bytes"] == total(filled) <= 230_000
    assert filled.run("verify", "-q") == Said(0, "", "")


def test_prune_min_free(filled):
    assert filled.run("prune", "-y", "--min-free", "1B") == Said(0, "", "Nothing to remove.\n")
    done = filled.run("prune", "-y", "-q", "--min-free", "99.9%")
    assert done.code == 0 and listed(filled) == []
    assert re.fullmatch(r"warning: [\d.]+ [kMGTP]B more would have to go: what is left is in use, .*\n", done.error)


def test_prune_keep_chooses_among_those_that_match(filled):
    done = sized(filled.run("prune", "-y", "--keep", "1kB", "--filter", "reference=*/big"))
    assert done.out == f"image {BIG}\nlayer DIGEST SIZE\n"
    left = (
        "what is left is in use, was left out, is shown to podman, or belongs to Microsandbox, to another home or to "
        "another program"
    )
    assert done.error == f"Removed 1 image and 1 layer, freed SIZE\nwarning: SIZE more would have to go: {left}\n"
    assert listed(filled) == [IMAGE, OTHER]


def test_what_is_asked_for_is_what_goes(filled, tmp_path):
    """Meanwhile another image comes, and the store would be too large even without what was shown."""
    add(filled, "third")
    with Terminal(
        filled.argv("prune", "--keep", "450kB"),
        env=filled.environment(LC_ALL="C.UTF-8"),
        cwd=tmp_path,
        stdout=tmp_path / "out",
    ) as terminal:
        terminal.expect(r"Remove 1 image and 2 layers \([\d.]+ kB\)\? \[y/N\] ")
        assert filled.run("-q", "HOST/acme/third:1").code == 0
        terminal.send("y\n")
        assert terminal.wait() == 0
        assert "more would have to go" in plain(terminal.text)
    assert listed(filled) == [BIG, OTHER, "HOST/acme/third:1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--all --keep 1GB", "--all and --keep: choose one"),
        ("--all --min-free 1GB", "--all and --min-free: choose one"),
        ("--keep 0", "--keep: must be above 0"),
        ("--keep 10%", "--keep: '10%' is not a size; write bytes or something like 50M, 1.5G or 64GiB"),
        ("--min-free 100%", "--min-free: '100%' is not a percentage above 0 and below 100"),
        ("--min-free x%", "--min-free: 'x%' is not a percentage above 0 and below 100"),
        ("--min-free ٣%", "--min-free: '٣%' is not a percentage above 0 and below 100"),
    ],
)
def test_budgets_that_make_no_sense(place, words, message):
    done = place.run("prune", *words.split())
    assert (done.code, done.error.splitlines()[0]) == (2, f"error: {message}")


def test_the_file_has_the_budget_of_prune_too(filled):
    budget(filled, 'keep = "450kB"')
    assert sized(filled.run("prune", "-n")).out == GONE
    assert filled.run("prune", "-n", "--keep", "1GB").error == "Nothing to remove.\n"
    # All images are to go, whatever they take.
    assert len(filled.run("prune", "-n", "--all", "--format", "json").document["images"]) == 3
    budget(filled, 'min_free = "lots"')
    message = "~/config.toml: store.min_free: 'lots' is not a size; write bytes or something like 50M, 1.5G or 64GiB"
    assert filled.run("prune", "-n") == Said(2, "", f"error: {message}\n")


# pull


def test_a_pull_makes_the_store_fit_again(filled):
    budget(filled, 'keep = "450kB"')
    third = add(filled, "third")
    done = sized(filled.run("HOST/acme/third:1", "--progress", "none"))
    pulled = "Pulled HOST/acme/third:1: SIZE in Ns\n"
    told = "Removed 2 images and 3 layers, freed SIZE; the store now takes SIZE\n"
    assert done == Said(0, re.sub("sha256:[0-9a-f]{64}", "DIGEST", third), pulled + told)
    assert listed(filled) == [OTHER, "HOST/acme/third:1"] and total(filled) <= 450_000
    add(filled, "fourth")
    document = filled.run("HOST/acme/fourth:1", "--format", "json").document
    pruned = document["pruned"]
    assert (pruned["images"], pruned["left_bytes"]) == ([OTHER], total(filled))
    assert pruned["freed_bytes"] > 200_000
    assert document["images"][0]["status"] == "ok"
    assert filled.run("verify", "-q").code == 0


def test_a_pull_that_makes_room_leaves_what_podman_shows(filled):
    assert filled.run("export", BIG, "--to", "podman").code == 0
    budget(filled, 'keep = "450kB"')
    add(filled, "third")
    done = filled.run("HOST/acme/third:1", "--progress", "none")
    assert "podman" not in done.error
    assert listed(filled) == [BIG, "HOST/acme/third:1"]


def test_what_was_pulled_stays_whatever_the_budget(filled):
    budget(filled, 'keep = "1kB"')
    add(filled, "third")
    done = filled.run("HOST/acme/third:1", IMAGE, "-q")
    assert done.code == 0 and "more would have to go" in done.error
    assert listed(filled) == [IMAGE, "HOST/acme/third:1"]
    # It did not make the store larger.
    assert filled.run("-q", IMAGE) == Said(0, PINNED, "")
    assert listed(filled) == [IMAGE, "HOST/acme/third:1"]
    assert "pruned" not in filled.run("-q", IMAGE, "--format", "json").document


def test_nothing_is_waited_for_and_no_pull_fails_for_the_budget(filled):
    budget(filled, 'keep = "1kB"')
    add(filled, "third")
    with holder(filled.layers / ".msb-pull" / "locks", kind="s"):
        done = filled.run("-q", "HOST/acme/third:1")
    assert (done.code, done.error, len(listed(filled))) == (0, "", 4)
    (filled.layers / ".msb-pull" / "images" / f"{'0' * 64}.json").write_text("x")
    add(filled, "fourth")
    done = filled.run("-q", "HOST/acme/fourth:1")
    assert (done.code, len(listed(filled))) == (0, 5)
    assert done.error.startswith(
        "warning: the store was not made to fit its budget: ~/home/layers/.msb-pull/images/000"
    )


def test_uses(filled):
    """What counts as one, and what does not."""
    looks = (
        ["ls"],
        ["inspect", IMAGE],
        ["inspect", "--files", BIG],
        ["verify", "-q"],
        ["-n", IMAGE],
        ["prune", "-n"],
        ["df"],
    )
    for words in looks:
        assert filled.run(*words).code == 0
    assert used(filled, IMAGE) == THEN
    for words in (
        ["-q", IMAGE],
        ["--policy", "always", "-q", IMAGE],
        ["--policy", "never", "-q", IMAGE],
        ["inspect", "--layers", IMAGE],
        ["inspect", "--lowerdir", IMAGE],
        ["export", "-q", IMAGE, "-o", "rootfs.tar"],
        ["save", "-q", IMAGE, "-o", "/dev/null"],
    ):
        set_used(Store.open(filled.home), *filled.words(IMAGE), THEN)
        assert filled.run(*words).code == 0, words
        assert used(filled, IMAGE) > THEN, words
    assert filled.run("prune", "-y", "-q", "--keep", "450kB").code == 0
    assert listed(filled) == [IMAGE, OTHER]


# df


def test_df(filled):
    size = r" +([\d.]+ [kMGT]?B)"
    lines = filled.run("df").out.splitlines()
    assert lines[0].split() == ["WHAT", "COUNT", "SIZE"]
    rows = {line.split()[0]: re.fullmatch(rf"[a-z]+ +(\d*){size}", line).groups() for line in lines[1:]}
    assert {name: count for name, (count, _) in rows.items()} == {
        "images": "3", "layers": "4", "shared": "0", "records": "4", "partial": "0", "total": "", "reclaimable": "",
        "free": "",
    }  # fmt: skip
    assert rows["images"] == ("3", rows["layers"][1]) and rows["reclaimable"] == ("", "0 B")
    document = filled.run("df", "--format", "json").document
    assert document.pop("total_bytes") == sum(document[name]["size_bytes"] for name in ("layers", "records", "partial"))
    assert document.pop("free_bytes") <= document.pop("file_system_bytes")
    sizes = {name: document[name].pop("size_bytes") for name in ("images", "layers", "shared", "records", "partial")}
    assert sizes["images"] == sizes["layers"] > 400_000
    assert document == {
        "images": {"count": 3}, "layers": {"count": 4}, "shared": {"count": 0}, "records": {"count": 4},
        "partial": {"count": 0}, "reclaimable_bytes": 0, "budget_bytes": None,
    }  # fmt: skip


def test_df_of_no_store(place):
    document = place.run("df", "--format", "json").document
    assert (document["images"], document["total_bytes"]) == ({"count": 0, "size_bytes": 0}, 0)
    assert not place.home.exists()


def test_a_first_pull_that_failed_leaves_layers_that_prune_takes(place):
    contents = {"here": random.Random(1).randbytes(200_000), "gone": b"gone"}
    layers = [gzip.compress(layer_tar([file(*x)]), 1, mtime=0) for x in contents.items()]
    added = place.registry.add_image("acme/half", "1", layers)
    del place.registry.blobs[added.layer_digests[1]]
    # One at a time, the largest first.
    assert place.run("-q", "--jobs", "1", "HOST/acme/half:1").code != 0
    assert len(list(place.layers.glob("*.extracted"))) == 1
    assert place.run("verify") == Said(0, "", "No images.\n")
    assert place.run("df", "--format", "json").document["reclaimable_bytes"] > 0
    done = place.run("prune", "-y")
    assert done.code == 0 and done.error.startswith("Removed 1 layer, freed "), done


def test_df_of_a_store_whose_database_is_lost(filled):
    for path in (*filled.home.glob("oci.db*"), *(filled.layers / ".msb-pull" / "images").iterdir()):
        path.unlink()
    done = filled.run("df")
    assert done.code == 0 and re.search("^reclaimable +unknown$", done.out, re.M)
    assert done.error.startswith("warning: ~/home/oci.db: missing, with 4 layers left in ~/home/layers; ")


def test_df_shows_how_full_the_budget_is(filled, tmp_path):
    budget(filled, 'keep = "1MB"')
    last = filled.run("df").out.splitlines()[-1]
    share = 100 * total(filled) // 1_000_000
    assert re.fullmatch(rf"budget  [\d.]+ kB of 1\.0 MB \({share}%\)", last)
    assert filled.run("df", "--format", "json").document["budget_bytes"] == 1_000_000
    for locale, full in (("C.UTF-8", "━"), ("C", "#")):
        with Terminal(filled.argv("df"), env=filled.environment(LC_ALL=locale, NO_COLOR="1"), cwd=tmp_path) as terminal:
            assert terminal.wait() == 0
            bar = plain(terminal.text).splitlines()[-1].split("  ")[1]
        assert bar.count(full) == 30 * total(filled) // 1_000_000


def test_the_bar_of_the_budget_fits_a_narrow_terminal(filled, tmp_path):
    budget(filled, 'keep = "200kB"')
    text = filled.run("df").out.splitlines()[-1].removeprefix("budget  ")
    taken = len(f"budget    {text}")
    for width, bar in ((taken + 10, "#" * 10 + "  "), (taken + 3, "")):
        env = filled.environment(LC_ALL="C", NO_COLOR="1")
        with Terminal(filled.argv("df"), env=env, cwd=tmp_path, columns=width) as terminal:
            assert terminal.wait() == 0
            assert plain(terminal.text).splitlines()[-1] == f"budget  {bar}{text}"
