"""Names, links, replacements and whiteouts of one layer; the rows are those of the catalogue of edge cases, part A."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from msb_pull.layer.limits import LayerError
from msb_pull.layer.settle.settle import Settled
from tests.support.archive import (
    END,
    WHEN,
    assert_proven,
    directory,
    extract,
    hardlink,
    hdr,
    override,
    pax,
    reg,
    symlink,
    tree,
    xattr,
)
from tests.support.counting import open_files

pytestmark = pytest.mark.disk


def refused(layer, *entries, why, **options):
    with pytest.raises(LayerError, match=why) as caught:
        extract(layer, *entries, **options)
    return caught.value


# A.1 Names and escapes


@pytest.mark.parametrize(
    "name", [b"../victim/f", b"a/../../victim/f", b"a/b/../../../victim/f", b"/../victim/f", b".."]
)
def test_a1_a3_climbing_names_are_refused(layer, name):
    error = refused(layer, reg(b"ok"), reg(name, b"x"), why="escapes")
    assert (error.index, error.name) == (1, name)


def test_a2_inner_dots_are_resolved_as_text(layer):
    extract(layer, reg(b"a/../b", b"b"), reg(b"dne/../.wh.etc"), reg(b"./c/./d", b"d"))
    assert tree(layer) == {"b": "b", ".wh.etc": "", "c": "/", "c/d": "d"}


def test_a3_absolute_names_lose_their_slashes(layer):
    extract(layer, reg(b"/etc/x", b"1"), reg(b"//y", b"2"), directory(b"/d/"), reg(b"/d/z", b"3"))
    assert tree(layer) == {"etc": "/", "etc/x": "1", "y": "2", "d": "/", "d/z": "3"}


@pytest.mark.parametrize(
    ("target", "lands"),
    [
        (b"/etc", "etc"),
        (b"../../../etc", "etc"),
        (b"/../../../../../../../../etc", "etc"),
        (b"/./.././../etc/.", "etc"),
        (b"..", ""),
        (b"/", ""),
        (b"etc/../deep/./er", "deep/er"),
    ],
)
def test_a4_writing_through_a_symlink_stays_inside(layer, victim, target, lands):
    report = extract(layer, symlink(b"d", target), reg(b"d/pw", b"x"), directory(b"d/sub", mode=0o700))
    assert (layer / lands / "pw").read_text() == "x"
    assert (layer / "d").is_symlink()
    assert (layer / lands / "sub").stat().st_mode & 0o777 == 0o700
    place = os.path.join(lands, "pw").encode()
    assert report.placed == {1: place, 2: place[:-2] + b"sub"}


def test_a4_absolute_path_of_the_victim(layer, victim):
    extract(layer, symlink(b"d", os.fsencode(victim)), reg(b"d/new", b"x"), reg(b"d/secret", b"mine"))
    inside = layer / str(victim).lstrip("/")
    assert (inside / "new").read_text() == "x"
    assert (inside / "secret").read_text() == "mine"


def test_a5_two_hops(layer, victim):
    extract(
        layer,
        directory(b"dir"),
        symlink(b"dir/go_up", b".."),
        symlink(b"dir/escape", b"go_up/../victim"),
        reg(b"dir/escape/newfile", b"x"),
    )
    assert (layer / "victim" / "newfile").read_text() == "x"


def test_a5_a_missing_directory_before_dots_is_not_made(layer):
    extract(layer, symlink(b"s", b"none/../real"), reg(b"s/f", b"x"))
    assert tree(layer) == {"s": "-> none/../real", "real": "/", "real/f": "x"}


def test_a5_symlink_loops_are_refused(layer):
    refused(layer, symlink(b"a", b"b"), symlink(b"b", b"a"), reg(b"a/f"), why="too many symlinks")


def test_a5_forty_symlinks_are_followed(layer):
    chain = [symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(40)]
    extract(layer, *chain, reg(b"l0/f", b"x"))
    assert (layer / "l40" / "f").read_text() == "x"
    chain.append(symlink(b"l40", b"l41"))
    refused(layer.parent / "layer", *chain, reg(b"l0/g"), why="too many symlinks")


def test_a6_a_sibling_whose_name_begins_the_same(layer, victim):
    extract(layer, symlink(b"d", b"../layer-evil"), reg(b"d/file", b"x"))
    assert (layer / "layer-evil" / "file").read_text() == "x"


@pytest.mark.parametrize("target", [b"/usr/lib", b"../../..", b"a/", b"a//b", b"caf\xe9", b"/", b"x" * 300])
def test_a7_symlink_targets_stay_byte_for_byte(layer, target):
    extract(layer, symlink(b"s", target, mtime=77))
    assert os.readlink(os.fsencode(layer / "s")) == target
    assert (layer / "s").lstat().st_mtime == 77


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (reg(b""), "empty"),
        (pax((b"path", b"a\0b")) + reg(b"x"), "NUL"),
        (pax((b"path", b"dir/a\0b")) + reg(b"x"), "NUL"),
        (pax((b"linkpath", b"a\0b")) + symlink(b"x", b"y"), "NUL"),
        (symlink(b"x", b""), "empty"),
        (hardlink(b"x", b""), "empty"),
        (reg(b"."), "root"),
        (reg(b"a/.."), "root"),
        (symlink(b"./", b"x"), "root"),
        (hardlink(b"/", b"x"), "root"),
        (hdr(b"./", typ=b"6"), "root"),
    ],
)
def test_a8_a9_impossible_names_are_refused(layer, entry, why):
    refused(layer, directory(b"dir"), reg(b"dir/f"), entry, why=why)


@pytest.mark.parametrize("name", [b"./", b".", b"/", b"a/.."])
def test_a9_the_root_takes_its_facts_from_its_entry(layer, name):
    report = extract(layer, directory(name, uid=7, mode=0o1777, mtime=1234), reg(b"f"))
    assert override(layer) == "7:0:041777"
    assert layer.stat().st_mode & 0o7777 == 0o755
    assert layer.stat().st_mtime == 1234
    assert b"" not in report.implied


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh.", b"d/.wh..", b"d/.wh..."])
def test_a10_whiteouts_of_nothing_are_refused(layer, name):
    if name == b".wh..":
        assert refused(layer, reg(name), why="whiteout without a name")
    refused(layer, directory(b"d"), reg(name), why="whiteout without a name")


def test_a11_long_paths_work_and_long_components_do_not(layer):
    extract(layer, reg(b"d/" * 600 + b"f", b"deep"), reg(b"d/" * 600 + b"g", b"too"), reg(b"n" * 255, b"long"))
    current = os.open(layer, os.O_RDONLY)
    for _ in range(600):
        following = os.open("d", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=current)
        os.close(current)
        current = following
    assert sorted(os.listdir(current)) == ["f", "g"]
    os.close(current)
    longer = (b"c" * 200 + b"/") * 60
    report = extract(layer, directory(longer, mode=0o700), reg(longer + b"f"), hardlink(longer + b"h", longer + b"f"))
    assert len(longer) > 4096 * 2
    assert (report.entries, len(report.implied), report.missing_links) == (3, 60, [])
    refused(layer, reg(b"e/" + b"n" * 256), why="longer than 255")


def test_a11_a_long_component_in_a_known_directory(layer):
    refused(layer, directory(b"d"), reg(b"d/" + b"n" * 256), why="too long|longer")


def test_a12_thousands_of_levels_are_refused(layer):
    refused(layer, reg(b"d/" * 5000 + b"f"), why="deeper than 1024")
    refused(layer, directory(b"d/" * 500), symlink(b"s", b"d/" * 500), reg(b"s/" + b"e/" * 600 + b"f"), why="deeper")


def test_a13_control_characters_are_escaped_in_messages(layer):
    error = refused(layer, reg(b"../[/bold]\x1b[2Jx\n\xff"), why="escapes")
    assert error.message == 'entry 0 "../[/bold]\\x1b[2Jx\\n\\xff": the path escapes the layer'


# A.2 Links


@pytest.mark.parametrize("target", [b"../victim/secret", b"/../victim/secret", b"a/../../victim/secret"])
def test_a14_hard_links_out_of_the_layer_are_refused(layer, target):
    refused(layer, hardlink(b"h", target), why="link target.*escapes")
    assert not list(layer.iterdir())


def test_a14_hard_links_through_a_symlink_stay_inside(layer, victim):
    report = extract(layer, symlink(b"d", b"../victim"), hardlink(b"h", b"d/secret"))
    assert report.missing_links == [(1, b"h", b"d/secret")]


def test_a15_absolute_hard_link_targets(layer):
    extract(layer, reg(b"etc/passwd", b"x"), hardlink(b"h", b"/etc/passwd"))
    assert (layer / "h").stat().st_ino == (layer / "etc/passwd").stat().st_ino


def test_a16_a_hard_link_to_a_symlink_links_the_symlink(layer):
    extract(layer, symlink(b"s", b"/etc/hostname"), hardlink(b"h", b"s"))
    assert os.readlink(layer / "h") == "/etc/hostname"
    assert (layer / "h").lstat().st_ino == (layer / "s").lstat().st_ino


def test_a16_parents_of_a_target_are_resolved_inside(layer):
    extract(layer, reg(b"real/f", b"x"), symlink(b"d", b"/real"), hardlink(b"h", b"d/f"))
    assert (layer / "h").stat().st_ino == (layer / "real/f").stat().st_ino


def test_a17_no_metadata_goes_through_a_link(layer, victim):
    secret = os.fsencode(victim / "secret")
    extract(layer, symlink(b"s", secret), hardlink(b"h", b"s", mode=0o777, mtime=1), reg(b"s", b"now a file"))
    assert os.readlink(layer / "h") == os.fsdecode(secret)
    assert (layer / "s").read_text() == "now a file"


def test_a18_a_target_that_comes_later(layer):
    report = extract(layer, hardlink(b"l", b"d/f"), reg(b"d/f", b"x", mode=0o755, uid=5))
    assert (layer / "l").stat().st_ino == (layer / "d/f").stat().st_ino
    assert report.missing_links == []


def test_a18_a_link_made_at_once_keeps_the_target_it_had(layer):
    extract(layer, reg(b"a", b"1"), hardlink(b"b", b"a"), reg(b"a", b"2"))
    assert tree(layer) == {"a": "2", "b": "1"}


def test_a18_a_later_entry_wins_over_a_link_that_waits(layer):
    extract(layer, reg(b"b", b"old"), hardlink(b"b", b"a"), reg(b"b", b"new"), reg(b"a", b"target"))
    assert tree(layer) == {"a": "target", "b": "new"}


def test_a18_a_waiting_link_replaces_what_came_before(layer):
    extract(layer, reg(b"b", b"old"), hardlink(b"b", b"a"), reg(b"a", b"target"))
    assert tree(layer) == {"a": "target", "b": "target"}


def test_a19_a_target_that_never_comes_is_reported(layer):
    report = extract(layer, reg(b"x"), hardlink(b"sub/b", b"/a"), hardlink(b"c", b"none/a"))
    assert report.missing_links == [(1, b"sub/b", b"a"), (2, b"c", b"none/a")]
    assert tree(layer) == {"x": "", "sub": "/"}
    assert b"sub" in report.implied


def test_a20_hard_links_to_directories_and_to_themselves(layer):
    refused(layer, directory(b"d"), hardlink(b"h", b"d"), why="directory")
    refused(layer, hardlink(b"h", b"./"), why="directory")
    extract(layer, reg(b"a", b"kept"), hardlink(b"a", b"a"), hardlink(b"a", b"./a"))
    assert (layer / "a").read_text() == "kept"


def test_a20_a_hard_link_that_takes_the_place_of_its_targets_directory(layer):
    report = extract(layer, reg(b"d/f", b"x"), hardlink(b"d", b"d/f"))
    assert report.missing_links == [(1, b"d", b"d/f")]
    assert tree(layer) == {}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK, errno.EXDEV])
def test_a21_a_refused_link_becomes_a_copy(layer, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "link", refuse)
    report = extract(
        layer,
        *(xattr(b"user.k", b"v"), reg(b"a", b"content", mode=0o4755, uid=3, mtime=99)),
        *(hardlink(b"b", b"a"), symlink(b"s", b"there", mtime=98), hardlink(b"t", b"s")),
    )
    assert (layer / "b").read_text() == "content"
    assert (override(layer / "b"), (layer / "b").stat().st_mtime) == ("3:0:0104755", 99)
    assert os.getxattr(layer / "b", "user.k") == b"v"
    assert os.readlink(layer / "t") == "there"
    assert [text for text in report.warnings if "2 hard links became copies" in text]


@pytest.mark.parametrize("links", [2, 30])
def test_copies_of_what_cannot_be_linked_count(layer, monkeypatch, links):
    def refuse(*_, **__):
        raise OSError(errno.EMLINK, "too many")

    monkeypatch.setattr(os, "link", refuse)
    entries = reg(b"f", b"x" * 1000), *(hardlink(b"%d" % number, b"f") for number in range(links))
    with pytest.raises(LayerError, match="copies of files that cannot be hard-linked exceed"):
        extract(layer, *entries, max_bytes=2999)
    assert sum(path.stat().st_size for path in layer.iterdir()) <= 3000


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK])
def test_a21_verify_takes_a_copy_for_a_link_and_still_reads_it(tmp_path, monkeypatch, number):
    """It was told as damage of a layer that had just been unpacked, or its content was never looked at."""
    tried = []

    def third(*arguments, **named):
        tried.append(arguments)
        if len(tried) == 3:
            raise OSError(number, "no")
        return real(*arguments, **named)

    real = os.link
    monkeypatch.setattr(os, "link", third)
    entries = [
        *(hardlink(b"z", b"a"), reg(b"a", b"content"), hardlink(b"b", b"a"), hardlink(b"c", b"a")),
        *(hardlink(b"d", b"c"), hardlink(b"e", b"d"), symlink(b"s", b"x"), hardlink(b"t", b"s")),
    ]
    for number_of_case, last in enumerate([[], [reg(b"a", b"another"), reg(b"z"), reg(b"b")]]):
        tried.clear()
        layer, record = tmp_path / f"layer{number_of_case}", tmp_path / f"record{number_of_case}"
        report = extract(layer, *entries, *last, record=record)
        assert report.copied == [4]
        with open(layer / "d", "r+b") as file:
            file.write(b"C")
            file.flush()
            os.utime(file.fileno(), ns=(WHEN * 10**9, WHEN * 10**9))
        with pytest.raises(AssertionError, match=r"Damage.b'[de]', 'content'"):
            assert_proven(layer, record, b"".join((*entries, *last)) + END, report, Settled([]))


def test_a22_chains_of_links_in_any_order(layer):
    extract(layer, hardlink(b"c", b"b"), hardlink(b"b", b"a"), hardlink(b"d", b"c"), reg(b"a", b"x"))
    assert {(layer / name).stat().st_ino for name in "abcd"} == {(layer / "a").stat().st_ino}


def test_a22_a_long_chain_backwards_takes_no_square(layer):
    count = 3000
    links = [hardlink(b"f%d" % i, b"f%d" % (i - 1)) for i in range(count, 0, -1)]
    report = extract(layer, *links, reg(b"f0", b"x"))
    assert report.missing_links == []
    assert (layer / "f0").stat().st_nlink == count + 1


# A.3 Missing parents, duplicates, type changes


def test_a23_implied_directories(layer):
    report = extract(layer, reg(b"a/b/c", b"x"), directory(b"a/e/"), directory(b"a", mode=0o700))
    assert report.implied == [b"", b"a/b"]
    assert override(layer / "a/b") == "0:0:040755"
    assert (layer / "a/b").stat().st_mode & 0o7777 == 0o755


def test_a27_the_last_of_two_files_wins_and_links_keep_the_first(layer):
    extract(layer, reg(b"a", b"1"), hardlink(b"b", b"a"), reg(b"a", b"22", mode=0o600))
    assert tree(layer) == {"a": "22", "b": "1"}
    assert (override(layer / "a"), override(layer / "b")) == ("0:0:0100600", "0:0:0100644")


def test_a28_a_directory_twice(layer):
    extract(
        layer,
        *(xattr(b"user.k", b"v"), directory(b"d", mode=0o700, uid=3), reg(b"d/f", b"x")),
        directory(b"d", mode=0o2755, uid=4, mtime=5),
    )
    assert (layer / "d/f").read_text() == "x"
    assert os.listxattr(layer / "d") == ["user.containers.override_stat"]
    assert override(layer / "d") == "4:0:042755"
    assert ((layer / "d").stat().st_mode & 0o7777, (layer / "d").stat().st_mtime) == (0o755, 5)


FILLED = directory(b"p") + reg(b"p/sub/f", b"old") + symlink(b"p/l", b"..")
KINDS = {
    "file": reg(b"p", b"new"),
    "directory": directory(b"p", mode=0o711),
    "symlink": symlink(b"p", b"elsewhere"),
    "link": reg(b"t", b"target") + hardlink(b"p", b"t"),
    "fifo": hdr(b"p", typ=b"6"),
    "filled": FILLED,
}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", [kind for kind in KINDS if kind != "filled"])
def test_a29_every_type_over_every_other(layer, first, second):
    extract(layer, KINDS[first], KINDS[second])
    found = tree(layer)
    found.pop("t", None)
    expected = {"file": "new", "directory": "/", "symlink": "-> elsewhere", "link": "target", "fifo": ""}
    if (first, second) == ("filled", "directory"):
        assert found == {"p": "/", "p/sub": "/", "p/sub/f": "old", "p/l": "-> .."}
    else:
        assert found == {"p": expected[second]}


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_a29_entries_below_a_replaced_directory(layer, kind):
    extract(layer, FILLED, KINDS[kind], directory(b"p", mode=0o750), reg(b"p/new", b"n"))
    assert tree(layer) == {"p": "/", "p/new": "n"}
    assert override(layer / "p") == "0:0:040750"


def test_a29_replacing_a_symlink_leaves_where_it_led(layer, victim):
    extract(layer, symlink(b"p", os.fsencode(victim)), directory(b"p"), reg(b"p/f", b"x"))
    assert tree(layer) == {"p": "/", "p/f": "x"}


def test_a30_a_file_used_as_a_parent_becomes_a_directory(layer):
    report = extract(layer, reg(b"nondir", b"x"), reg(b"nondir/foo/bar", b"y"))
    assert tree(layer) == {"nondir": "/", "nondir/foo": "/", "nondir/foo/bar": "y"}
    assert report.warnings == ['"nondir" was a file and became a directory']
    assert report.implied == [b"", b"nondir/foo"]


def test_a30_a_directory_made_by_its_entry_after_others(layer):
    """Implied first, then a symlink, then a directory of its own: the last one says how it looks."""
    report = extract(layer, reg(b"c/a"), symlink(b"c", b"x"), directory(b"c", mode=0o700), reg(b"c/d/e"))
    assert override(layer / "c") == "0:0:040700"
    assert report.implied == [b"", b"c/d"]


def test_a31_a_directory_that_is_a_symlink_for_a_while(layer):
    extract(
        layer,
        *(directory(b"foo"), reg(b"foo/first", b"1"), symlink(b"foo", b"/"), reg(b"foo/tmp/x", b"2")),
        *(directory(b"foo"), reg(b"foo/last", b"3")),
    )
    assert tree(layer) == {"foo": "/", "foo/last": "3", "tmp": "/", "tmp/x": "2"}


def test_a31_a_symlink_that_changes_its_target(layer):
    extract(layer, symlink(b"s", b"one"), reg(b"s/f", b"1"), symlink(b"s", b"two"), reg(b"s/f", b"2"))
    assert ((layer / "one/f").read_text(), (layer / "two/f").read_text()) == ("1", "2")


def test_a32_times_of_directories_are_those_of_their_entries(layer):
    many = [reg(b"x%d/y%d/f" % (i, i)) for i in range(300)]
    report = extract(
        layer,
        *(directory(b"./", mtime=500), directory(b"d", mtime=1000), directory(b"d/e", mtime=2000)),
        *many,
        *(reg(b"d/e/f"), hardlink(b"d/late", b"z"), reg(b"d/e/.wh.f"), reg(b"z"), reg(b"d/old"), reg(b"d/old")),
    )
    assert (layer / "d").stat().st_mtime == 1000
    assert (layer / "d/e").stat().st_mtime == 2000
    assert layer.stat().st_mtime == 500
    assert {(layer / f"x{i}/y{i}").stat().st_mtime for i in range(300)} == {0}
    assert len(report.implied) == 600


def test_a32_many_directories_filled_by_turns(layer):
    """More directories than are kept open, each visited twice."""
    entries = [directory(b"d%d" % i, mtime=1000 + i) for i in range(300)]
    for turn in range(2):
        entries += [reg(b"d%d/f%d" % (i, turn)) for i in range(300)]
    extract(layer, *entries)
    assert [(layer / f"d{i}").stat().st_mtime for i in range(300)] == list(range(1000, 1300))


# A.4 Whiteouts


def test_a33_whiteouts_stay_plain_files(layer):
    report = extract(layer, reg(b"d/.wh.foo", mode=0o600, uid=3, mtime=9), reg(b".wh.bar"))
    assert tree(layer) == {"d": "/", "d/.wh.foo": "", ".wh.bar": ""}
    assert override(layer / "d/.wh.foo") == "3:0:0100600"
    assert (layer / "d/.wh.foo").stat().st_mtime == 9
    assert report.implied == [b"", b"d"]


FOOS = {
    "file": (reg(b"d/foo", b"x"), {"d": "/", "d/foo": "x"}),
    "symlink": (symlink(b"d/foo", b"t"), {"d": "/", "d/foo": "-> t"}),
    "directory": (directory(b"d/foo"), {"d": "/", "d/foo": "/", "d/foo/.wh..wh..opq": ""}),
    "implied": (reg(b"d/foo/f"), {"d": "/", "d/foo": "/", "d/foo/f": "", "d/foo/.wh..wh..opq": ""}),
}


@pytest.mark.parametrize("kind", FOOS)
@pytest.mark.parametrize("first", [True, False])
def test_a34_a_whiteout_beside_its_own_name(layer, kind, first):
    entry, expected = FOOS[kind]
    entries = [reg(b"d/.wh.foo", mtime=7), entry]
    report = extract(layer, directory(b"d", mtime=50), *(entries if first else entries[::-1]))
    assert tree(layer) == expected
    assert (layer / "d").stat().st_mtime == 50
    opaque = b"d/foo/.wh..wh..opq" if kind in ("directory", "implied") else b""
    assert report.turned == [(b"d/.wh.foo", opaque)]


def test_a34_a_whiteout_whose_directory_went(layer):
    extract(layer, reg(b"d/.wh.foo"), reg(b"d", b"file"), reg(b"e/.wh.x"), symlink(b"e", b"d"))
    assert tree(layer) == {"d": "file", "e": "-> d"}


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a35_opaque_markers_hide_nothing_of_their_own_layer(layer, order):
    entries = [directory(b"d"), reg(b"d/f", b"x")]
    entries.insert(order, reg(b"d/.wh..wh..opq"))
    extract(layer, *entries, reg(b".wh..wh..opq"))
    assert tree(layer) == {"d": "/", "d/f": "x", "d/.wh..wh..opq": "", ".wh..wh..opq": ""}


def test_a36_whiteouts_inside_an_opaque_directory_stay(layer):
    extract(layer, reg(b"d/.wh..wh..opq"), reg(b"d/.wh.x"))
    assert tree(layer) == {"d": "/", "d/.wh..wh..opq": "", "d/.wh.x": ""}


@pytest.mark.parametrize(
    "entry",
    [symlink(b".wh.x", b"y"), directory(b".wh.x/"), hardlink(b".wh.x", b"a"), hdr(b".wh.x", typ=b"6")],
)
def test_a37_a_whiteout_of_any_type_is_an_empty_file(layer, entry):
    extract(layer, reg(b"a", b"a"), entry)
    assert stat.S_ISREG((layer / ".wh.x").lstat().st_mode)
    assert tree(layer) == {"a": "a", ".wh.x": ""}
    assert override(layer / ".wh.x").partition(":0:")[2].startswith("0100")


def test_a37_the_content_and_attributes_of_a_whiteout_are_left_out(layer):
    report = extract(layer, xattr(b"user.k", b"v"), reg(b".wh.x", b"content"), reg(b"f", b"next"))
    assert tree(layer) == {".wh.x": "", "f": "next"}
    assert os.listxattr(layer / ".wh.x") == ["user.containers.override_stat"]
    assert report.warnings == ["the content of a whiteout is ignored"]


@pytest.mark.parametrize(
    "entries",
    [
        [reg(b".wh.etc/somefile")],
        [reg(b"d/.wh.etc/a/somefile")],
        [directory(b".wh.etc"), reg(b".wh.etc/somefile")],
        [symlink(b"s", b".wh.etc"), reg(b"s/somefile")],
        [symlink(b"s", b".wh..wh.plnk"), reg(b"s/somefile")],
        [symlink(b"s", b".wh.etc/.."), reg(b"s/somefile")],
    ],
)
def test_a38_directories_named_like_whiteouts_are_refused(layer, entries):
    refused(layer, *entries, why="name of a whiteout")


def test_a39_leftovers_of_aufs(layer):
    report = extract(
        layer,
        *(reg(b".wh..wh.aufs", b"x"), directory(b".wh..wh.orph/"), reg(b".wh..wh.orph/f", b"x")),
        *(directory(b".wh..wh.plnk/"), reg(b".wh..wh.plnk/1.2", b"x", mode=0o755), hardlink(b"f", b".wh..wh.plnk/1.2")),
        hardlink(b"g", b"./.wh..wh.plnk/1.2"),
    )
    assert tree(layer) == {"f": "x", "g": "x"}
    assert override(layer / "f") == "0:0:0100755"
    assert report.placed == {4: b"f"}
    assert report.implied == [b""]


def test_hard_links_to_whiteouts_are_refused(layer):
    refused(layer, reg(b".wh.x"), hardlink(b"y", b".wh.x"), why="whiteout")


# A.5 Special files, modes, times (values of the attribute are tested on their own)


def test_a40_a_device_0_0_is_no_whiteout(layer):
    report = extract(layer, hdr(b"c", typ=b"3"), hdr(b"e", typ=b"3"))
    assert (tree(layer), override(layer / "c")) == ({"c": "", "e": ""}, "0:0:020644")
    assert [text for text in report.warnings if "0:0" in text] == report.warnings != []
    assert len(report.warnings) == 1


def test_a41_a42_devices_and_fifos_are_empty_files(layer):
    extract(
        layer,
        *(hdr(b"null", typ=b"3", mode=0o666, major=1, minor=3), hdr(b"disk", typ=b"4", mode=0o660, major=8, gid=6)),
        hdr(b"fifo", typ=b"6", mode=0o600),
    )
    assert tree(layer) == {"null": "", "disk": "", "fifo": ""}
    found = {name: override(layer / name) for name in ("null", "disk", "fifo")}
    assert found == {"null": "0:0:020666", "disk": "0:6:060660", "fifo": "0:0:010600"}
    assert (layer / "null").read_bytes() == b""


@pytest.mark.parametrize(("major", "minor"), [(-1, 0), (0, -1), (2**40, 0), (0, 2**40)])
def test_a43_device_numbers_out_of_range_are_refused(layer, major, minor):
    refused(layer, hdr(b"d", typ=b"3", major=major, minor=minor), why="out of range")


def test_a44_no_set_uid_bit_reaches_the_disk(layer):
    extract(layer, reg(b"su", mode=0o4755), reg(b"sg", mode=0o2755), directory(b"t", mode=0o1777), hdr(b"c", typ=b"6"))
    assert [(layer / name).stat().st_mode & 0o7777 for name in ("su", "sg", "t")] == [0o755, 0o755, 0o755]
    assert override(layer / "su") == "0:0:0104755"


def test_a44_a_set_gid_directory_above_passes_nothing_on(layer):
    layer.mkdir()
    layer.chmod(0o2770)
    extract(layer, reg(b"d/f"), directory(b"e"))
    found = [path.stat().st_mode & 0o7000 for path in (layer, layer / "d", layer / "e", layer / "d/f")]
    assert found == [0, 0, 0, 0]


MODES = [0, 0o200, 0o400, 0o444, 0o555, 0o111, 0o644, 0o666, 0o755, 0o775, 0o777, 0o4755, 0o7777]


@pytest.mark.parametrize("mask", [0o077, 0, 0o777])
def test_a45_a46_every_mode_whatever_the_umask(layer, mask):
    before = os.umask(mask)
    try:
        extract(
            layer,
            *(reg(b"f%o" % mode, b"x", mode=mode) for mode in MODES),
            *(directory(b"d%o" % mode, mode=mode) + reg(b"d%o/f" % mode) for mode in MODES),
            reg(b"implied/f"),
        )
    finally:
        os.umask(before)
    for mode in MODES:
        assert (layer / f"f{mode:o}").stat().st_mode & 0o7777 == (mode & 0o755) | 0o600
        assert (layer / f"d{mode:o}").stat().st_mode & 0o7777 == (mode & 0o755) | 0o700
        assert override(layer / f"f{mode:o}") == f"0:0:0{stat.S_IFREG | mode:o}"
        assert override(layer / f"d{mode:o}") == f"0:0:0{stat.S_IFDIR | mode:o}"
    assert (layer / "implied").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"0.000000001", 1),
        (b"-1", 0),
        (b"-99999999999.5", 0),
    ],
)
def test_a49_times_to_the_nanosecond(layer, seconds, expected):
    layer_before = pax((b"mtime", seconds))
    extract(
        layer,
        *(layer_before, reg(b"f"), layer_before, directory(b"d"), layer_before, symlink(b"s", b"x")),
        *(layer_before, hdr(b"p", typ=b"6")),
    )
    assert {(layer / name).lstat().st_mtime_ns for name in "fdsp"} == {expected}


@pytest.mark.parametrize("seconds", [b"9223372036854775807", b"99999999999999999999"])
def test_a49_times_beyond_every_file_system(layer, seconds):
    extract(layer, pax((b"mtime", seconds)), reg(b"f"), pax((b"mtime", seconds)), directory(b"d"))
    # Some file systems end in 2038.
    assert (layer / "f").stat().st_mtime >= 2**31 - 1 <= (layer / "d").stat().st_mtime


def test_a50_access_time_is_the_modification_time(layer):
    extract(layer, reg(b"f", mtime=12345), directory(b"d", mtime=54321), proven=False)
    assert ((layer / "f").stat().st_atime, (layer / "d").stat().st_atime) == (12345, 54321)


def test_a53_flags_of_other_systems_are_ignored(layer):
    extract(
        layer,
        pax((b"SCHILY.fflags", b"uchg"), (b"MSWINDOWS.rawsd", b"x"), (b"LIBARCHIVE.creationtime", b"1")),
        reg(b"f"),
    )
    assert os.listxattr(layer / "f") == ["user.containers.override_stat"]


def test_a59_holes_stay_holes(layer):
    sparse = pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"big"),
        (b"GNU.sparse.realsize", b"2147483648"),
    )  # fmt: skip
    body = b"2\n0\n5\n1073741824\n512\n".ljust(512, b"\0") + b"first".ljust(5, b"\0") + b"M" * 512
    extract(layer, sparse, reg(b"GNUSparseFile.0/big", body), reg(b"after", b"ok"))
    facts = (layer / "big").stat()
    assert (facts.st_size, facts.st_blocks < 100) == (2**31, True)
    with open(layer / "big", "rb") as file:
        assert file.read(6) == b"first\0"
        file.seek(2**30)
        assert file.read(513) == b"M" * 512 + b"\0"
    assert (layer / "after").read_text() == "ok"


# A.7 and what else a file system does


def test_a76_names_that_differ_only_in_case(layer, monkeypatch):
    """A file system that folds names is played by one that finds the other name."""
    from msb_pull.layer.tree import folders

    monkeypatch.setattr(folders, "_folds_names", lambda root: True)
    monkeypatch.setattr(folders.os, "stat", _folding(os.stat))
    monkeypatch.setattr("msb_pull.layer.tree.tree.open", _folding_open(os.open))
    refused(layer, reg(b"d/Makefile", b"1"), reg(b"d/makefile", b"2"), why='takes it to be "d/Makefile"')


def _folding(real):
    def look(name, *rest, **named):
        try:
            return real(name, *rest, **named)
        except FileNotFoundError:
            return real(b"Makefile" if name == b"makefile" else name, *rest, **named)

    return look


def _folding_open(real):
    def create(name, *rest, **named):
        return real(b"Makefile" if name == b"makefile" else name, *rest, **named)

    return create


def test_a76_the_same_name_twice_is_no_collision(layer, monkeypatch):
    from msb_pull.layer.tree import folders

    monkeypatch.setattr(folders, "_folds_names", lambda root: True)
    extract(layer, reg(b"d/f", b"1"), reg(b"d/f", b"2"), reg(b"d/e/f", b"3"), directory(b"d"))
    assert tree(layer) == {"d": "/", "d/f": "2", "d/e": "/", "d/e/f": "3"}


def test_a78_few_descriptors_are_enough(layer):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 64, before[1]))
    try:
        extract(
            layer,
            *(reg(b"d%d/" % i * 30 + b"f") for i in range(20)),
            *(reg(b"d%d/g" % i) for i in range(20)),
            hardlink(b"deep/" * 100 + b"l", b"d1/" * 30 + b"f"),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (layer / "d19/g").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a78_an_error_of_the_disk_names_the_entry(layer, monkeypatch, number):
    def broken(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("msb_pull.layer.tree.tree.write", broken)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        extract(layer, directory(b"d"), reg(b"d/f", b"x"))
    assert (caught.value.errno, caught.value.filename) == (number, b"d/f")


@pytest.mark.parametrize(
    "entries",
    [
        [hardlink(b"l%d" % i, b"none/" * 50) for i in range(20)],
        [symlink(b"s", b"d" * 200), *(reg(b"s/f%d" % i) for i in range(20))],
        [reg(b"d%d" % i + b"/d" * 10 + b"/f") for i in range(20)],
        [reg(b"%d/.wh.f" % i) + reg(b"%d/f/g" % i) for i in range(20)],
    ],
    ids=["links", "placed", "implied", "whiteouts"],
)
def test_a75_what_is_told_of_a_layer_is_bounded(layer, monkeypatch, entries):
    """The parent holds it as well, and has no limit of its own."""
    for module in ("unpack.unpack", "tree.folders"):
        monkeypatch.setattr(f"msb_pull.layer.{module}.MAX_NOTED", 2000)
    refused(layer, *entries, why="than a layer may have|too many of its entries")


def test_descriptors_are_closed_whatever_happens(layer):
    before = open_files()
    extract(layer, *(reg(b"d%d/f" % i) for i in range(200)))
    refused(layer, *(reg(b"e%d/f" % i) for i in range(20)), reg(b"../x"), why="escapes")
    assert open_files() <= before


def test_a69_garbage_after_the_end_is_a_warning(layer):
    assert extract(layer, reg(b"a"), bytes(1024), b"garbage").warnings == [
        "bytes other than zeros follow the end of the archive"
    ]
    assert extract(layer, reg(b"a"), bytes(8192)).warnings == []


def test_many_warnings_are_counted(layer):
    report = extract(layer, *(reg(b"n%d" % i) + reg(b"n%d/f" % i) for i in range(80)))
    assert len(report.warnings) == 51
    assert report.warnings[-1] == "30 more warnings"


def test_plain_large_and_empty_files(layer):
    large = os.urandom(3_500_001)
    extract(
        layer, reg(b"large", large), reg(b"empty"), reg(b"d/next", b"n"), directory(b"d"), reg(b"d/again/", b"slash")
    )
    assert (layer / "large").read_bytes() == large
    assert (layer / "empty").read_bytes() == b""
    assert ((layer / "d/next").read_text(), (layer / "d/again").read_text()) == ("n", "slash")
