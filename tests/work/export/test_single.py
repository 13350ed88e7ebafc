"""One file of an image: what the whole tree says of it, from a part of the records."""

from __future__ import annotations

import random

import pytest

from msb_pull import MsbPullError, Store
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.reference import Reference
from msb_pull.layer.proof import model
from msb_pull.work.export.single import single_file
from msb_pull.work.export.tree import merged_tree
from msb_pull.work.listing import find_image
from tests.support.archive import directory, hardlink, hdr, pax, reg, symlink
from tests.support.exports import BOTTOM, LONG, NAME, TOP, layout, store_of
from tests.support.stacks import tame, wild

DEEP = b"d/" * 60 + b"deep"


def facts(inode):
    """All of a file, but for which of its names comes first."""
    said = inode.path, inode.mode, inode.uid, inode.gid, inode.mtime_ns, inode.size, inode.xattrs, inode.segments
    return *said, list(inode.pieces())


def whole(place, image):
    """What each path of the merged tree leads to where that is a file, else None."""
    found = {}
    with merged_tree(place, image, Job(lambda _: None, Cancel())) as tree:
        inodes = {inode.path: inode for inode in tree.inodes()}
        for path in inodes:
            try:
                real = inodes[tree.real_path(path, followed=True)]
            except MsbPullError:
                found[path] = None
                continue
            first = inodes[real.link_of] if real.link_of is not None else real
            found[path] = None if first.kind != 0o100000 else (real.path, *facts(first)[1:])
    return found


def opened(store: Store, name: str = NAME):
    place = store._place
    return place, find_image(place, Reference.parse(name))


def single(place, image, path):
    with single_file(place, image, path) as inode:
        return None if inode is None else facts(inode)


@pytest.mark.parametrize(
    "stack",
    [
        [BOTTOM],
        [BOTTOM, TOP],
        [
            [reg(b"a/b/c", b"1"), reg(DEEP, b"deep"), reg(b"e", b""), hdr(b"pipe", typ=b"6"), symlink(b"s", b"a/b/c")],
            [symlink(b"t", b"/s"), hardlink(b"x/y", b"x/z"), reg(b"x/z", b"linked"), reg(b"a/.wh.b")],
            [reg(b"a/b/c", b"2"), hardlink(b"x/w", b"x/z2"), symlink(b"x/z2", b"../e"), symlink(b"loop", b"loop")],
        ],
        [[reg(b"a/f", b"1"), reg(b"g", b"1")], [reg(b"a/.wh..wh..opq"), reg(b"./a/../g", b"2")], [reg(b"g/h", b"3")]],
        [[reg(b"a", b"1"), directory(b"b"), reg(b"b/c", b"2")], [directory(b"a"), reg(b"b", b"3")], [reg(b".wh.b")]],
        [[reg(b"a" * 100, b"1"), reg(b"a" * 99, b"2"), pax((b"path", b"p/q")) + reg(b"n", b"3"), reg(LONG, b"4")]],
        [[reg(b"a", b"1"), reg(b"a", b"2"), reg(b".wh.a"), pax((b"size", b"3")) + reg(b"b", b"333")]],
    ],
)
def test_it_is_what_the_whole_tree_says(tmp_path, stack):
    place, image = opened(store_of(tmp_path / "home", (layout(tmp_path / "layout", *stack), NAME)))
    for path, expected in whole(place, image).items():
        found = single(place, image, path)
        assert found is None or found == expected, path


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_stacks(tmp_path, seed):
    dice = random.Random(seed)
    for number, make in enumerate((tame, wild, tame)):
        name = f"random/stack:{number}"
        try:
            store = store_of(tmp_path / "home", (layout(tmp_path / f"layout-{number}", *make(dice)), name))
        except MsbPullError:
            continue
        place, image = opened(store, name)
        for path, expected in whole(place, image).items():
            found = single(place, image, path)
            assert found is None or found == expected, path


def test_no_other_entry_is_parsed(tmp_path, monkeypatch):
    """Where every entry lies where it says; symlinks and hard links are followed."""
    many = [reg(b"many/%d" % number, b"x") for number in range(500)]
    stack = [
        [*many, directory(b"usr"), directory(b"usr/lib"), symlink(b"lib", b"usr/lib"), reg(b"usr/lib/f", b"file")],
        [*many, hardlink(b"usr/lib/g", b"usr/h"), reg(b"usr/h", b"linked")],
    ]
    place, image = opened(store_of(tmp_path / "home", (layout(tmp_path / "layout", *stack), NAME)))
    seen = []
    add = model.Tree.add
    monkeypatch.setattr(model.Tree, "add", lambda tree, entry: (seen.append(entry.name), add(tree, entry))[1])
    assert single(place, image, b"/lib/f")[-1] == [(0, b"file")]
    assert set(seen) <= {b"usr", b"usr/", b"usr/lib", b"usr/lib/", b"lib", b"usr/lib/f"}
    assert single(place, image, b"lib/g")[-1] == [(0, b"linked")]
    assert not [name for name in seen if name.startswith(b"many")]
    assert single(place, image, b"usr/lib") is None
    assert single(place, image, b"nothing") is None


@pytest.mark.parametrize("path", [b"", b"/", b"../x", b"a\0b", b"x" * 300])
def test_paths_that_lead_to_no_file(tmp_path, path):
    place, image = opened(store_of(tmp_path / "home", (layout(tmp_path / "layout"), NAME)))
    assert single(place, image, path) is None
