"""Which images go so that a store fits: a rule on plain values."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.ground.sizes import Percent
from msb_pull.store.store import Store
from msb_pull.work.prune.budget import Budget, Candidate, choose

SIZES = dict.fromkeys("abcdefg", 10)


def image(name: str, used: float, layers: str) -> Candidate:
    return Candidate(used, name, frozenset(layers))


def gone(candidates, excess, *, needed="", sizes=SIZES):
    return "".join(x.name for x in choose(candidates, set(needed), sizes, excess))


OLD, MIDDLE, NEW = image("old", 1, "ab"), image("mid", 2, "cd"), image("new", 3, "ef")


@pytest.mark.parametrize(
    ("excess", "expected"),
    [(0, ""), (1, "old"), (20, "old"), (21, "oldmid"), (60, "oldmidnew"), (61, "oldmidnew")],
)
def test_the_least_recently_used_go_first_and_no_more_than_must(excess, expected):
    assert gone([NEW, OLD, MIDDLE], excess) == expected


def test_layers_that_others_need_free_nothing():
    assert gone([OLD, MIDDLE], 11, needed="a") == "oldmid"
    assert gone([OLD, MIDDLE], 10, needed="a") == "old"


def test_shared_layers_are_freed_once_with_the_last_image_that_has_them():
    one, two, three = image("one", 1, "ab"), image("two", 2, "bc"), image("six", 3, "abc")
    assert gone([one, two, three], 10) == "onetwosix"
    assert gone([one, two], 10) == "one"
    assert gone([one, two], 20) == "onetwo"


def test_an_image_that_frees_nothing_stays():
    """Whenever it was used: what it consists of stays in any case."""
    tag = image("tag", 0, "ef")
    assert gone([tag, OLD, NEW], 20) == "old"
    assert gone([tag, OLD, NEW], 21) == "tagoldnew"
    assert gone([image("kept", 0, "g"), OLD], 1, needed="g") == "old"
    assert gone([image("lost", 0, "xyz"), OLD], 1) == "old"


def test_an_unfinished_download_goes_in_its_turn():
    partial = Candidate(1.5, "partial/x", size=5)
    assert gone([partial, OLD, MIDDLE], 20) == "old"
    assert gone([partial, OLD, MIDDLE], 25) == "oldpartial/x"


def test_random_images_never_free_too_little_and_lose_no_layer_for_nothing():
    chance = random.Random(7)
    for _ in range(500):
        names = "abcdefghij"[: chance.randint(1, 10)]
        sizes = {name: chance.randint(0, 50) for name in names if chance.random() < 0.9}
        stacks = ["".join(chance.sample(names, chance.randint(1, len(names)))) for _ in range(6)]
        images = [image(str(n), chance.random(), stack) for n, stack in enumerate(stacks)]
        needed = set(chance.sample(names, chance.randint(0, len(names))))
        excess = chance.randint(0, 200)
        chosen = choose(images, needed, sizes, excess)
        stay = [x for x in images if x not in chosen]
        left = needed.union(*(x.layers for x in stay))
        freed = sum(size for name, size in sizes.items() if name not in left and any(name in x.layers for x in images))
        all_of_it = sum(sizes.get(name, 0) for name in set("".join(stacks)) - needed)
        assert freed >= min(excess, all_of_it)
        # Without the one that was used last of those that go, it would not have been enough.
        if chosen:
            last = max(chosen)
            spared = left | last.layers
            without = sum(
                size for name, size in sizes.items() if name not in spared and any(name in x.layers for x in images)
            )
            assert without < excess
        for x in chosen:
            assert any(name not in left and name in sizes for name in x.layers)


def test_what_must_be_free_counts_as_well(monkeypatch, tmp_path):
    store = Store.open(tmp_path / "home")
    facts = SimpleNamespace(f_blocks=1000, f_frsize=1000, f_bavail=100)
    monkeypatch.setattr(os, "statvfs", lambda path: facts)
    assert Budget(keep=30).excess(store, 100) == 70
    assert Budget(min_free=100_000).excess(store, 100) == 0
    assert Budget(min_free=100_300).excess(store, 100) == 300
    assert Budget(min_free=100_300).excess(store, 100, freed=200) == 100
    assert Budget(min_free=Percent(11)).excess(store, 100) == 10_000
    assert Budget(keep=30, min_free=100_300).excess(store, 100) == 300
    assert Budget(keep=30, min_free=100_030).excess(store, 100) == 70
    for keep, part, expected in (
        (30, None, 30),
        (None, 100_030, 70),
        (90, 100_030, 70),
        (None, 99_000, 1100),
        (9, 1, 9),
    ):
        assert Budget(keep=keep, min_free=part).limit(store, 100) == expected
    assert Budget(min_free=Percent(50)).limit(store, 100) == 0
    assert Budget().limit(store, 100) is None and Budget().excess(store, 100) == 0
    facts.f_blocks = facts.f_bavail = 0
    assert Budget(keep=30).excess(store, 100) == 70
    with pytest.raises(LocalError, match="does not say how much is free"):
        Budget(min_free=1).excess(store, 100)
