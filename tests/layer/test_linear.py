"""What a layer can hold many of takes time that grows with its number, not with the square of it."""

from __future__ import annotations

import os
import shutil

import pytest

from msb_pull.layer.settle.lowers import MergedView
from tests.support.archive import directory, hardlink, pax, reg, symlink
from tests.support.counting import assert_linear
from tests.support.stacks import build

STACKS = {
    "deep directories without an entry": lambda n: [
        [reg(b"f")],
        [pax((b"path", b"%d/" % number + b"d/" * (3 * n) + b"f")) + reg(b"f") for number in range(2)],
    ],
    "directories that are symlinks below": lambda n: [
        [entry for i in range(n) for entry in (directory(b"t%d" % i), symlink(b"s%d" % i, b"t%d" % i))],
        [reg(b"s%d/f" % i) for i in range(n)],
    ],
    "the same at the top of others": lambda n: [
        [entry for i in range(n) for entry in (directory(b"t/%d" % i), symlink(b"s%d" % i, b"t/%d" % i))],
        [reg(b"s%d/d/f" % i) for i in range(n)],
    ],
    "hard links in reverse order": lambda n: [
        [*(hardlink(b"l%d" % (i + 1), b"l%d" % i) for i in reversed(range(n))), reg(b"l0", b"x")]
    ],
    "hard links in reverse order through a symlink": lambda n: [
        [
            symlink(b"s", b"d"),
            *(hardlink(b"d/l%d" % (i + 1), b"s/l%d" % i) for i in reversed(range(n))),
            reg(b"d/l0", b"x"),
        ]
    ],
    "hard links to files below": lambda n: [
        [reg(b"f%d" % i, b"x") for i in range(n)],
        [hardlink(b"l%d" % i, b"f%d" % i) for i in range(n)],
    ],
    "directories that files replace": lambda n: [
        [entry for i in range(n) for entry in (directory(b"d%d" % i), reg(b"d%d/f" % i, b"x"), reg(b"d%d" % i))]
    ],
    "files that others replace in reverse order": lambda n: [
        [*(reg(b"f%d" % i, b"%08d" % i) for i in range(n)), *(reg(b"f%d" % i) for i in reversed(range(n)))]
    ],
    "directories that symlinks replace": lambda n: [
        [entry for i in range(n) for entry in (directory(b"d%d" % i), reg(b"d%d/f" % i), symlink(b"d%d" % i, b"x"))]
    ],
    "whiteouts in directories that are nowhere": lambda n: [
        [reg(b"f")],
        [reg(b"d%d/e/.wh.x" % i) for i in range(n)],
    ],
    "whiteouts beside what they name": lambda n: [
        [entry for i in range(n) for entry in (reg(b".wh.d%d" % i), directory(b"d%d" % i))]
    ],
}


def test_a_deep_path_of_many_layers_is_opened_once_in_each(tmp_path, monkeypatch):
    lowers, deep, opened, real = [tmp_path / str(number) for number in range(90)], 40, [], os.open
    for lower in lowers:
        (lower / ("d/" * deep)).mkdir(parents=True)
    with MergedView(lowers) as view:
        monkeypatch.setattr(os, "open", lambda *x, **more: opened.append(x) or real(*x, **more))
        for level in range(1, deep + 1):
            assert view.look(b"/".join([b"d"] * level)) is not None
    # Once to go on from there, and once to see whether it is opaque.
    assert len(opened) <= 2 * len(lowers) * deep


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_work_grows_with_the_layer(tmp_path, stack):
    number = 0

    def work(size):
        nonlocal number
        number += 1
        for layer in build(tmp_path / str(number), stack(size)):
            layer.check()
        shutil.rmtree(tmp_path / str(number))

    assert_linear(work, 60)
