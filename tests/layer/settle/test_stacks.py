"""What layers show together: the writer, the proof, the listing, the merged view and umoci give the same answer.

``MSB_PULL_STACKS`` says how many random stacks are tried; ``python -m tests.support.stacks`` tries many.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.layer.settle import derive
from msb_pull.layer.settle.settle import settle
from msb_pull.layer.tree.holes import sha256_of
from tests.conftest import need
from tests.support.archive import directory, extract, hardlink, pax, reg, symlink, tree, xattr
from tests.support.stacks import build, compare, compare_with_umoci, ranges, scratch, shown, tame, wild

# The environment of a test is cleaned before it runs.
STACKS = os.environ.get("MSB_PULL_STACKS", "200")


@pytest.fixture
def show(tmp_path):
    """Builds a stack, has every reader look at it, and says what each layer's directory holds and what all show."""

    def work(*stack):
        with scratch() as folder:
            assert compare(folder, list(stack))
        layers = build(Path(tempfile.mkdtemp(dir=tmp_path)), list(stack))
        return [tree(layer.tree) for layer in layers], shown(layers)

    return work


# Whiteouts imply no directory


def test_a_whiteout_in_a_directory_that_goes_as_well(show):
    trees, all_of_it = show([directory(b"test"), reg(b"test/t")], [reg(b".wh.test"), reg(b"test/.wh.t")])
    assert trees[1] == {".wh.test": ""}
    assert all_of_it == {}


def test_a_whiteout_below_a_file_of_a_lower_layer(show):
    trees, all_of_it = show([directory(b"test"), reg(b"test/t")], [reg(b"test", b"a file")], [reg(b"test/.wh.t")])
    assert trees[2] == {}
    assert all_of_it[b"test"][4] == b"a file"


def test_a_whiteout_below_a_file_of_its_own_layer(show):
    trees, _ = show([reg(b"f", b"x"), reg(b"f/.wh.t")])
    assert trees == [{"f": "x"}]


def test_a_whiteout_in_a_directory_that_is_nowhere(show):
    trees, all_of_it = show([reg(b"x")], [reg(b"nowhere/deep/.wh.t")])
    assert trees[1] == {}
    assert list(all_of_it) == [b"x"]


def test_whiteouts_alone_make_nothing(show):
    assert show([reg(b"nowhere/deep/.wh.t"), reg(b"opaque/.wh..wh..opq")])[0][0] == {}


def test_a_whiteout_in_a_directory_below_stays(show):
    trees, all_of_it = show([directory(b"d", mode=0o700, uid=5), reg(b"d/t"), reg(b"d/u")], [reg(b"d/.wh.t")])
    assert trees[1] == {"d": "/", "d/.wh.t": ""}
    assert list(all_of_it) == [b"d", b"d/u"]
    assert all_of_it[b"d"][:3] == ("directory", 0o700, 5)


def test_an_opaque_marker_where_a_symlink_leads(show):
    below = [directory(b"real"), reg(b"real/old"), symlink(b"way", b"real")]
    trees, all_of_it = show(below, [reg(b"way/.wh..wh..opq"), reg(b"way/new")])
    assert trees[1] == {"real": "/", "real/.wh..wh..opq": "", "real/new": ""}
    assert list(all_of_it) == [b"real", b"way", b"real/new"]


@pytest.mark.parametrize("target", [b"nowhere", b"file"])
def test_a_whiteout_where_a_symlink_leads_to_no_directory(show, target):
    trees, all_of_it = show([reg(b"file", b"x"), symlink(b"way", target)], [reg(b"way/.wh.t")])
    assert trees[1] == {}
    assert set(all_of_it) == {b"file", b"way"}


def test_a_whiteout_of_the_directory_that_its_way_leads_through(show):
    trees, all_of_it = show([directory(b"c"), symlink(b"c/b", b"..")], [reg(b"c/b/.wh.c")])
    assert trees[1] == {".wh.c": ""}
    assert all_of_it == {}


def test_an_opaque_marker_that_its_way_leads_to_the_top(show):
    below = [symlink(b"a", b"/"), directory(b"b", uid=5), reg(b"b/c")]
    trees, all_of_it = show(below, [reg(b"b/a/.wh.b"), reg(b"a/.wh..wh..opq")])
    assert trees[1] == {".wh..wh..opq": ""}
    assert all_of_it == {}
    trees, all_of_it = show(below, [reg(b"b/new"), reg(b"a/.wh..wh..opq")])
    assert all_of_it[b"b"][:4] == ("directory", 0o755, 0, 0)


def test_a_directory_made_for_whiteouts_goes_with_what_it_hides(show):
    below = [symlink(b"a", b"/"), symlink(b"c", b"tmp"), directory(b"tmp")]
    trees, all_of_it = show(below, [reg(b"c/.wh.b"), reg(b"a/.wh..wh..opq")])
    assert trees[1] == {".wh..wh..opq": ""}
    assert all_of_it == {}


def test_a_whiteout_that_its_way_leads_beside_what_it_names(show):
    below = [symlink(b"a/c", b"/"), symlink(b"b/b/b", b"/")]
    trees, all_of_it = show(below, [reg(b"b/b/.wh.c"), reg(b"a/c/.wh.b"), reg(b"b/c")])
    assert trees[1] == {"a": "/", "b": "/", "b/.wh..wh..opq": "", "b/c": ""}
    assert b"b/b" not in all_of_it


def test_a_file_that_a_way_leaves_again(show):
    trees, _ = show([directory(b"a"), reg(b"c"), symlink(b"b", b"c/../a")], [reg(b"b/x")])
    assert trees[1] == {"a": "/", "a/x": ""}


def test_a_file_stays_where_a_directory_for_whiteouts_moves_to(show):
    trees, _ = show([symlink(b"b", b"../a"), directory(b"a/b")], [reg(b".wh.a"), reg(b"b/a/.wh.b"), reg(b"a/a", b"1")])
    assert trees[1] == {"a": "/", "a/.wh..wh..opq": "", "a/a": "1"}
    below = [directory(b"a/c"), symlink(b"b", b"a")]
    trees, _ = show(below, [reg(b".wh.a"), reg(b"b/a/.wh.a"), symlink(b"a/a", b"a/b")])
    assert trees[1] == {"a": "/", "a/.wh..wh..opq": "", "a/a": "-> a/b"}


def test_a_file_moves_to_where_a_directory_for_leftovers_is_gone(show):
    above = [hardlink(b"c/b/.wh..wh.plnk", b"c/c"), directory(b"c/a/c"), directory(b".wh.c"), reg(b"a/b", b"1")]
    trees, _ = show([symlink(b"a", b"/c")], above)
    assert trees[1]["c/b"] == "1"


# What an entry says counts for more than what is implied


def test_an_entry_that_moves_to_a_directory_for_whiteouts_stays(show):
    below = [directory(b"c/c/c"), symlink(b"b", b"..")]
    above = [reg(b"b/b/.wh..wh..opq"), reg(b"c/.wh.c"), directory(b"b/c", mode=0o700, uid=7)]
    trees, all_of_it = show(below, above)
    assert trees[1].keys() == {".wh..wh..opq", "c", "c/.wh.c"}
    assert all_of_it == {b"c": ("directory", 0o700, 7, 0, b"")}


def test_an_entry_counts_where_its_directory_moved_to_by_two_ways(show):
    below = [directory(b"data/run"), symlink(b"run", b"data/run"), symlink(b"lock", b"run/lock")]
    above = [directory(b"run/lock", uid=3, gid=4, mode=0o1777, mtime=77), xattr(b"user.k", b"v"), reg(b"lock/f")]
    trees, all_of_it = show(below, above)
    assert trees[1] == {"data": "/", "data/run": "/", "data/run/lock": "/", "data/run/lock/f": ""}
    assert all_of_it[b"data/run/lock"][:4] == ("directory", 0o1777, 3, 4)


# One routine resolves paths


def test_a_link_to_itself_through_a_symlink(show):
    trees, _ = show([symlink(b"lib", b"usr/lib"), reg(b"lib/x", b"1"), hardlink(b"lib/x", b"lib/x")])
    assert trees[0]["usr/lib/x"] == "1"


def test_a_link_whose_way_changes_under_it(show):
    entries = [symlink(b"c", b"one"), hardlink(b"h", b"c/f"), symlink(b"c", b"two"), reg(b"two/f", b"2")]
    assert show(entries)[0][0]["h"] == "2"


# Copies of what lies below


def test_links_to_one_lower_file_are_one_copy(tmp_path):
    size = 8 << 20
    _, above = build(
        tmp_path, [[reg(b"big", bytes(range(256)) * (size // 256))], [hardlink(b"l%d" % i, b"big") for i in range(20)]]
    )
    above.check()
    assert {(above.tree / f"l{i}").stat().st_ino for i in range(20)} == {(above.tree / "l0").stat().st_ino}
    assert (above.tree / "l0").stat().st_nlink == 20


def test_copies_count_against_the_limit(tmp_path):
    extract(tmp_path / "below", *(reg(b"f%d" % i, b"x" * 100_000) for i in range(10)))
    report = extract(tmp_path / "above", *(hardlink(b"l%d" % i, b"f%d" % i) for i in range(10)), proven=False)
    with pytest.raises(ContentError, match="more than a layer is allowed") as raised:
        settle(tmp_path / "above", report, [tmp_path / "below"], max_bytes=900_000)
    assert "--max-layer-size" in (raised.value.hint or "")


def test_holes_of_a_lower_file_stay_holes(tmp_path):
    size = 1 << 30
    sparse = pax(
        *((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")),
        *((b"GNU.sparse.name", b"lastlog"), (b"GNU.sparse.realsize", b"%d" % size)),
    )
    content = (b"1\n%d\n4\n" % (size - 4)).ljust(512, b"\0") + b"tail"
    _, above = build(tmp_path, [[sparse + reg(b"lastlog", content)], [hardlink(b"l", b"lastlog")]])
    above.check()
    facts = (above.tree / "l").stat()
    assert facts.st_size == size
    assert facts.st_blocks * 512 < 1 << 20
    with open(above.tree / "l", "rb") as file:
        file.seek(size - 4)
        assert file.read() == b"tail"


def test_a_file_that_many_links_lead_to_is_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(derive, "sha256_of", lambda handle: read.append(handle) or sha256_of(handle))
    build(tmp_path, [[symlink(b"s", b"."), reg(b"f", b"x")], [hardlink(b"a", b"f"), hardlink(b"b", b"s/f")]])
    assert len(read) == 1


def test_what_short_symlinks_to_deep_directories_make_is_bounded(tmp_path, monkeypatch):
    """Before it is noted: a thousand directories for each of them took all memory."""
    monkeypatch.setattr(derive, "MAX_NOTED", 100_000)
    below = [pax((b"linkpath", b"%d/" % i + b"d/" * 300)) + symlink(b"s%d" % i, b"x") for i in range(2)]
    with pytest.raises(ContentError, match="too much of the layer depends on those below it"):
        build(tmp_path, [below, [reg(b"s%d/f" % i) for i in range(2)]])


def test_what_two_moves_say_of_a_directory_is_said_once(show):
    """An opaque directory hides what the first of them has found below."""
    below = [symlink(b"a/c/b/b", b"/a"), xattr(b"user.k", b"v") + directory(b"a/c/b")]
    show(below, [reg(b"a/c/b/b/c/.wh..wh..opq"), reg(b"a/c/b/b/c/b/f")])


def test_a_copy_that_could_not_be_linked_is_none_that_is_missing(tmp_path, monkeypatch):
    real = os.link

    def refuse(*args, **more):
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "link", refuse)
    _, above = build(tmp_path, [[reg(b"f", b"x")], [hardlink(b"a", b"f"), hardlink(b"b", b"f")]])
    above.check()
    monkeypatch.setattr(os, "link", real)
    assert tree(above.tree) == {"a": "x", "b": "x"}


# Names


@pytest.mark.parametrize("length", [252, 255])
def test_a_whiteout_that_no_directory_can_hold_is_refused_with_the_reason(tmp_path, length):
    with pytest.raises(ContentError, match=f"a whiteout of a name of {length} bytes.* at most 251"):
        build(tmp_path, [[reg(b"d/.wh." + b"n" * length)]])


def test_the_longest_whiteout_is_kept(show):
    _, all_of_it = show([reg(b"n" * 251)], [reg(b".wh." + b"n" * 251)])
    assert all_of_it == {}


@pytest.mark.parametrize("length", [252, 255])
def test_a_directory_whose_whiteout_would_be_too_long_may_hold_whiteouts(show, length):
    name = b"n" * length
    _, all_of_it = show([reg(name + b"/x"), reg(name + b"/y")], [reg(name + b"/.wh.x")])
    assert all_of_it.keys() == {name, name + b"/y"}


# The listing


@pytest.mark.parametrize(
    "stack",
    [
        [[reg(b".wh..wh.orph/x"), reg(b"y")]],
        [[reg(b"a/.wh..wh..opq")]],
        [[directory(b"a"), reg(b"a/b")], [reg(b"a/.wh..wh..opq")]],
        [[reg(b"a", b"1"), hardlink(b"b", b"a"), reg(b"a", b"22")]],
        [[directory(b"c", mode=0, gid=9), symlink(b"b", b"/c")], [reg(b".wh.c"), reg(b"b/a/x")]],
        [[directory(b"a", mode=0, gid=9)], [reg(b"a"), reg(b"a/b")]],
    ],
    ids=[
        "what AUFS left",
        "an opaque nothing",
        "an opaque directory",
        "a link that outlives its target",
        "a directory that its layer hides and has anew",
        "a directory in place of a file that replaced one",
    ],
)
def test_the_listing_shows_what_lies_there(show, stack):
    show(*stack)


# Random stacks


@pytest.mark.parametrize("make", [wild, tame])
def test_random_stacks(make):
    taken = 0
    for seed in ranges(STACKS):
        with scratch() as folder:
            try:
                taken += compare(folder, make(random.Random(seed)))
            except Exception as error:
                error.add_note(f"seed {seed} of {make.__name__}")
                raise
    assert taken


@pytest.mark.skipif(os.geteuid() != 0, reason="umoci sets owners")
def test_random_stacks_are_what_umoci_unpacks():
    need("umoci")
    compared = 0
    for seed in ranges(STACKS):
        dice = random.Random(seed)
        with scratch() as folder:
            try:
                compared += compare_with_umoci(folder, tame(dice), dice)
            except AssertionError as error:
                error.add_note(f"seed {seed}")
                raise
    assert compared
