"""Random layers of few names and many tricks: whatever they hold, nothing outside changes and nothing crashes."""

from __future__ import annotations

import os
import random

import pytest

from msb_pull.errors import ContentError
from msb_pull.layer.settle import settle
from tests.layer.archive import directory, everything, extract, hardlink, hdr, override, reg, symlink

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


@pytest.mark.parametrize("seed", range(20))
def test_random_layers(victim, seed):
    dice = random.Random(seed)
    secret = everything(victim)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        below = []
        for _ in range(dice.randint(1, 3)):
            layer = victim.parent.parent / f"layer-{number}-{len(below)}"
            try:
                report = extract(layer, *(entry(dice, i) for i in range(dice.randint(1, 9))))
                settle(layer, report, below)
            except ContentError:
                break
            below.insert(0, layer)
            for folder, _, _ in os.walk(layer):
                assert override(os.path.join(folder, "")).count(":") == 2
            assert not os.path.lexists(layer / ".wh..wh.plnk")
            assert not os.path.lexists(layer / ".wh..wh.aside")
    assert everything(victim) == secret
    assert len(os.listdir("/proc/self/fd")) == descriptors
