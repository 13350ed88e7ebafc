"""Random layers of few names and many tricks: whatever they hold, nothing outside changes and nothing crashes, verify
finds what was just written to be right, and settling once more derives the same.

``MSB_PULL_RANDOM_SEEDS`` says how many seeds are tried (20 unless told), each with about 20 layers that are accepted
and 30 that are refused; ``400-450`` tries those.
"""

from __future__ import annotations

import os
import random

import pytest

from msb_pull.ground.errors import ContentError
from tests.support.archive import directory, everything, hardlink, hdr, override, reg, symlink
from tests.support.counting import open_files
from tests.support.stacks import Layer, ranges

NAMES = [b"a", b"b", b"c"]
TRICKS = [*NAMES, b"..", b".wh.a", b".wh.b", b".wh..wh..opq", b".wh..wh.plnk"]
TARGETS = [b"a", b"/b", b"../a", b"b/c", b"..", b"/", b"../../../../tmp", b"c/../a", b"../victim", b"../layer-evil"]


def name(dice: random.Random) -> bytes:
    parts = [dice.choice(TRICKS if dice.random() < 0.2 else NAMES) for _ in range(dice.randint(1, 3))]
    return (b"/" if dice.random() < 0.1 else b"") + b"/".join(parts)


def entry(dice: random.Random, index: int) -> bytes:
    kind = dice.random()
    if kind < 0.35:
        return reg(name(dice), b"%d" % index)
    if kind < 0.55:
        return directory(name(dice), mode=dice.choice([0, 0o700, 0o1777]))
    if kind < 0.75:
        return symlink(name(dice), dice.choice([*TARGETS, name(dice)]))
    if kind < 0.9:
        return hardlink(name(dice), name(dice))
    return hdr(name(dice), typ=b"6")


FOUND = {
    # What verify said was wrong, though it had just been written:
    "what moved came before a file of that name": [
        [symlink(b"c", b"a/b/b")],
        [symlink(b"c/a/b", b"b"), hardlink(b"a", b"a/c/a"), reg(b"a/b/a")],
    ],
    "what moved left its parent": [[symlink(b"a/a", b"../victim")], [symlink(b"a/a/c", b"a")]],
    "a directory moved onto its parent": [[symlink(b"a/b", b"/")], [directory(b"a/b/a", mode=0)]],
    "a file moved onto an earlier one": [
        [symlink(b"a", b".."), symlink(b"a/b", b"../a")],
        [reg(b"c", b"early"), reg(b"b/a/c", b"late")],
    ],
    "a file moved onto a symlink": [[symlink(b"b", b"/")], [symlink(b"c/b/..", b"x"), reg(b"b/c", b"1")]],
    "a link gave way to a directory": [
        [symlink(b"b", b"/")],
        [reg(b"b/a/a", b"1"), hardlink(b"a", b"b/b"), reg(b"a/c", b"2")],
    ],
    "the name of what AUFS left, through a symlink": [[symlink(b"a", b"/"), directory(b"a/.wh..wh.plnk")]],
    "the same through a symlink below": [[symlink(b"a", b"/")], [reg(b"a/.wh..wh.plnk"), reg(b"a/b", b"1")]],
    "a name that ends in two dots": [[reg(b"a/a/..", b"1"), reg(b"a/a/c", b"2")]],
    "a whiteout beside a directory that a move made": [
        [symlink(b"a", b"b/c")],
        [reg(b"a/b/x", b"1"), reg(b".wh.b")],
    ],
    "a whiteout beside a link to what it hides": [[reg(b"a", b"1")], [reg(b".wh.b"), hardlink(b"b", b"a")]],
    # Settling failed:
    "two links of one name": [[reg(b"a", b"1"), reg(b"b", b"2")], [hardlink(b"c", b"b"), hardlink(b"c", b"a")]],
    "a link moved onto a file": [[symlink(b"b", b"/"), reg(b"a", b"1")], [hardlink(b"b/c", b"a"), reg(b"c", b"2")]],
    # Settling once more derived something else, though nothing had changed:
    "contents moved onto their own path": [[symlink(b"b", b"/")], [reg(b"b/b/b", b"1")]],
    "a directory moved onto its own path": [[symlink(b"a", b"..")], [directory(b"a/a")]],
    "a link moved onto its own path": [[symlink(b"b", b"/"), reg(b"b/b/a", b"1")], [hardlink(b"/b/b", b"a")]],
}


@pytest.mark.parametrize("layers", FOUND.values(), ids=FOUND)
def test_what_random_layers_found(victim, layers):
    below = []
    for number, entries in enumerate(layers):
        layer = Layer(victim.parent.parent / f"layer-{number}", entries, list(below))
        layer.check()
        below.insert(0, layer.tree)


def test_the_last_of_two_links_of_one_name_counts(victim):
    below = Layer(victim.parent.parent / "below", [reg(b"a", b"1"), reg(b"b", b"2")], [])
    above = Layer(victim.parent.parent / "above", [hardlink(b"c", b"a"), hardlink(b"c", b"b")], [below.tree])
    assert (above.tree / "c").read_bytes() == b"2"
    within = [hardlink(b"c", b"a"), hardlink(b"c", b"b"), reg(b"b", b"2"), reg(b"a", b"1")]
    alone = Layer(victim.parent.parent / "alone", within, [])
    assert (alone.tree / "c").read_bytes() == b"2"
    alone.check()


@pytest.mark.parametrize("name", [b"d/e/..", b"d/.", b"d/e/"])
def test_a_name_of_dots_does_not_lead_its_neighbours_elsewhere(victim, name):
    """The file after it went into the parent of the directory it belongs to."""
    layer = Layer(victim.parent.parent / "layer-0", [reg(name, b"1"), reg(name.rpartition(b"/")[0] + b"/f", b"2")], [])
    assert (layer.tree / os.fsdecode(name.rpartition(b"/")[0]) / "f").read_bytes() == b"2"
    layer.check()


def test_a_whiteout_spares_a_link_to_what_it_hides(victim):
    below = Layer(victim.parent.parent / "below", [reg(b"a", b"1"), reg(b"b", b"2")], [])
    above = Layer(victim.parent.parent / "above", [reg(b".wh.b"), hardlink(b"b", b"a")], [below.tree])
    assert os.listdir(above.tree) == ["b"]


@pytest.mark.parametrize("seed", ranges(os.environ.get("MSB_PULL_RANDOM_SEEDS", "20")))
def test_random_layers(victim, seed):
    dice = random.Random(seed)
    secret = everything(victim)
    before = open_files()
    for number in range(40):
        below = []
        for _ in range(dice.randint(1, 3)):
            folder = victim.parent.parent / f"layer-{number}-{len(below)}"
            entries = [entry(dice, i) for i in range(dice.randint(1, 9))]
            try:
                layer = Layer(folder, entries, list(below))
            except ContentError:
                break
            layer.check()
            below.insert(0, layer.tree)
            for path, _, _ in os.walk(layer.tree):
                assert override(os.path.join(path, "")).count(":") == 2
            assert not os.path.lexists(layer.tree / ".wh..wh.plnk")
            assert not os.path.lexists(layer.tree / ".wh..wh.aside")
    assert everything(victim) == secret
    assert open_files() <= before
