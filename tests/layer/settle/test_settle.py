"""What a layer takes from those below it: A19, A23 to A26, E4 and E18 of the catalogue of edge cases."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.layer.notes import prefixes_moved
from msb_pull.layer.settle.settle import settle
from tests.support.archive import (
    END,
    OVERRIDE,
    assert_proven,
    derived,
    directory,
    everything,
    extract,
    hardlink,
    override,
    reg,
    symlink,
    tree,
    xattr,
)

pytestmark = pytest.mark.disk


class Stack:
    """Layers put on each other, each settled on those below."""

    def __init__(self, folder):
        self.folder = folder
        self.layers = []

    def add(self, *entries):
        folder, record = self.folder / f"layer{len(self.layers)}", self.folder / f"record{len(self.layers)}"
        report = extract(folder, *entries, record=record)
        settled = settle(folder, report, self.layers)
        assert_proven(folder, record, b"".join(entries) + END, report, settled, self.layers)
        self.layers.insert(0, folder)
        return settled

    def top(self):
        return self.layers[0]

    def record(self):
        return self.folder / f"record{len(self.layers) - 1}"


@pytest.fixture
def stack(tmp_path):
    return Stack(tmp_path)


def facts(path):
    return override(path), path.stat().st_mtime, path.stat().st_mode & 0o7777


# A23, E4, E18: directories without an entry


def test_a23_metadata_of_implied_directories_comes_from_below(stack):
    stack.add(
        *(directory(b"./", uid=1, mtime=1), directory(b"a", mode=0o700, uid=5, gid=6, mtime=100)),
        *(xattr(b"user.k", b"v\0\xff"), directory(b"a/b", mode=0o1777, mtime=200), reg(b"a/b/old")),
    )
    stack.add(reg(b"other"))
    settled = stack.add(reg(b"a/b/c/new", b"x"))
    top = stack.top()
    assert facts(top / "a") == ("5:6:040700", 100, 0o755)
    assert facts(top / "a/b") == ("0:0:041777", 200, 0o755)
    assert facts(top / "a/b/c") == ("0:0:040755", 0, 0o755)
    assert facts(top)[:2] == ("1:0:040755", 1)
    assert os.getxattr(top / "a/b", "user.k") == b"v\0\xff"
    assert prefixes_moved(settled.derived) == []
    assert [(fact["kind"], fact["path"]) for fact in settled.derived] == [
        ("directory", ""),
        ("directory", "a"),
        ("directory", "a/b"),
        ("directory", "a/b/c"),
    ]


def test_a23_the_nearest_layer_counts(stack):
    stack.add(directory(b"a", uid=1))
    stack.add(directory(b"a", uid=2))
    stack.add(reg(b"a/f"))
    stack.add(reg(b"a/g"))
    assert override(stack.top() / "a") == "2:0:040755"


@pytest.mark.parametrize(
    "between",
    [
        [reg(b".wh.a")],
        [reg(b".wh..wh..opq")],
        [reg(b"a", b"a file")],
        [reg(b".wh.a"), reg(b"other")],
    ],
)
def test_a23_what_a_layer_between_hides_does_not_count(stack, between):
    stack.add(directory(b"a", mode=0o700, uid=5))
    stack.add(*between)
    stack.add(reg(b"a/b"))
    assert facts(stack.top() / "a") == ("0:0:040755", 0, 0o755)


def test_a23_an_opaque_directory_between_hides_what_is_in_it_only(stack):
    stack.add(directory(b"a", uid=5), directory(b"a/b", uid=6))
    stack.add(reg(b"a/.wh..wh..opq"))
    stack.add(reg(b"a/b/c"))
    assert override(stack.top() / "a") == "5:0:040755"
    assert override(stack.top() / "a/b") == "0:0:040755"


def test_a23_a_directory_that_replaced_one_below(stack):
    stack.add(directory(b"a", uid=5), directory(b"a/b", uid=6))
    stack.add(reg(b".wh.a"), directory(b"a", uid=7))
    stack.add(reg(b"a/b/c"))
    assert override(stack.top() / "a") == "7:0:040755"
    assert override(stack.top() / "a/b") == "0:0:040755"


def test_a23_an_own_whiteout_hides_too(stack):
    stack.add(directory(b"a", uid=5), directory(b"a/b", uid=6), directory(b"c", uid=7), directory(b"c/d", uid=8))
    settled = stack.add(reg(b".wh.a"), reg(b"a/b/f"), reg(b"c/.wh..wh..opq"), reg(b"c/d/f"))
    top = stack.top()
    assert override(top / "a") == override(top / "a/b") == override(top / "c/d") == "0:0:040755"
    assert override(top / "c") == "7:0:040755"
    assert tree(top)["a/.wh..wh..opq"] == ""
    assert derived(stack.record(), stack.layers[1:]) == settled.derived


def test_a23_without_any_layer_below(stack):
    stack.add(reg(b"a/b/c"))
    assert facts(stack.top() / "a/b") == facts(stack.top()) == ("0:0:040755", 0, 0o755)


def test_a23_times_of_explicit_directories_survive(stack):
    stack.add(directory(b"a", mtime=5), symlink(b"a/l", b"../z"), reg(b"f", b"x"))
    stack.add(directory(b"./", mtime=70), directory(b"a", mtime=50), reg(b"a/l/f"), hardlink(b"a/h", b"f"))
    assert (stack.top().stat().st_mtime, (stack.top() / "a").stat().st_mtime) == (70, 50)


def test_e4_the_top_directory_always_carries_the_attribute(stack):
    stack.add(reg(b"f"))
    assert override(stack.top()) == "0:0:040755"
    stack.add(directory(b"./", uid=4, mode=0o711))
    stack.add()
    assert override(stack.top()) == "4:0:040711"


def test_e18_every_implied_directory_carries_it(stack):
    stack.add(reg(b"a/b/c"))
    assert override(stack.top() / "a") == override(stack.top() / "a/b") == "0:0:040755"


def test_a23_a_layer_that_others_made(tmp_path, stack):
    """Directories without the attribute, or with one that no reader takes, count by what the disk says."""
    foreign = tmp_path / "foreign"
    (foreign / "a/b").mkdir(parents=True)
    (foreign / "a").chmod(0o750)
    os.setxattr(foreign / "a/b", OVERRIDE, b"nonsense")
    stack.layers.append(foreign)
    stack.add(reg(b"a/b/c"))
    assert override(stack.top() / "a") == "0:0:040750"
    assert override(stack.top() / "a/b") == "0:0:040755"


# A24, A25: parents that are symlinks below


def test_a24_usr_merge(stack):
    stack.add(
        *(directory(b"usr", mtime=10), directory(b"usr/lib", mode=0o711, uid=3, mtime=20)),
        *(reg(b"usr/lib/old.so"), symlink(b"lib", b"usr/lib")),
    )
    settled = stack.add(reg(b"lib/x.so", b"x"), reg(b"lib/sub/y.so", b"y"), reg(b"lib/.wh.old.so"))
    top = stack.top()
    assert tree(top) == {
        "usr": "/",
        "usr/lib": "/",
        "usr/lib/x.so": "x",
        "usr/lib/sub": "/",
        "usr/lib/sub/y.so": "y",
        "usr/lib/.wh.old.so": "",
    }
    assert facts(top / "usr/lib") == ("3:0:040711", 20, 0o755)
    assert facts(top / "usr")[:2] == ("0:0:040755", 10)
    assert override(top / "usr/lib/sub") == "0:0:040755"
    assert prefixes_moved(settled.derived) == [(b"lib", b"usr/lib")]
    assert derived(stack.record(), stack.layers[1:]) == settled.derived


@pytest.mark.parametrize("target", [b"/usr/lib", b"../../usr/lib", b"usr//lib/", b"./usr/x/../lib", b"/../usr/lib"])
def test_a24_targets_are_relative_to_the_root_of_the_image(stack, target):
    stack.add(directory(b"usr/lib"), symlink(b"lib", target))
    stack.add(reg(b"lib/x.so", b"x"))
    assert tree(stack.top()) == {"usr": "/", "usr/lib": "/", "usr/lib/x.so": "x"}


def test_a24_an_entry_of_its_own_replaces_the_symlink(stack):
    stack.add(directory(b"usr/lib"), symlink(b"lib", b"usr/lib"))
    settled = stack.add(directory(b"lib"), reg(b"lib/x.so"), reg(b"lib/sub/y"))
    assert sorted(tree(stack.top())) == ["lib", "lib/sub", "lib/sub/y", "lib/x.so"]
    assert prefixes_moved(settled.derived) == []


def test_a24_a_whiteout_of_the_symlink_means_replacement(stack):
    stack.add(directory(b"usr/lib"), symlink(b"lib", b"usr/lib"))
    settled = stack.add(reg(b".wh.lib"), reg(b"lib/x.so"))
    assert sorted(tree(stack.top())) == ["lib", "lib/.wh..wh..opq", "lib/x.so"]
    assert prefixes_moved(settled.derived) == []


def test_a24_chains_of_symlinks_over_several_layers(stack):
    stack.add(directory(b"real/deep", uid=9), symlink(b"one", b"/real"))
    stack.add(symlink(b"two", b"one/deep"))
    stack.add(reg(b"two/f", b"x"))
    assert tree(stack.top()) == {"real": "/", "real/deep": "/", "real/deep/f": "x"}
    assert override(stack.top() / "real/deep") == "9:0:040755"


def test_a24_a_symlink_inside_what_moves(stack):
    stack.add(directory(b"usr/lib/new"), symlink(b"usr/lib/sub", b"new"), symlink(b"lib", b"usr/lib"))
    settled = stack.add(reg(b"lib/sub/f", b"x"))
    assert tree(stack.top()) == {"usr": "/", "usr/lib": "/", "usr/lib/new": "/", "usr/lib/new/f": "x"}
    assert prefixes_moved(settled.derived) == [(b"lib", b"usr/lib"), (b"usr/lib/sub", b"usr/lib/new")]
    assert derived(stack.record(), stack.layers[1:]) == settled.derived


def test_a24_contents_join_what_the_layer_has_there(stack):
    stack.add(directory(b"usr/lib"), symlink(b"lib", b"usr/lib"))
    settled = stack.add(
        *(reg(b"lib/x/a", b"1"), reg(b"lib/x/b", b"1"), reg(b"lib/only"), reg(b"lib/.wh.gone"), reg(b"lib/.wh.dir")),
        *(directory(b"usr/lib", uid=8, mtime=77), directory(b"usr/lib/x", uid=9, mtime=88), reg(b"usr/lib/x/b", b"2")),
        *(reg(b"usr/lib/gone", b"here"), directory(b"usr/lib/dir")),
    )
    top = stack.top()
    assert tree(top / "usr/lib") == {
        "x": "/",
        "x/a": "1",
        "x/b": "2",
        "only": "",
        "gone": "here",
        "dir": "/",
        "dir/.wh..wh..opq": "",
    }
    assert facts(top / "usr/lib")[:2] == ("8:0:040755", 77)
    assert facts(top / "usr/lib/x")[:2] == ("9:0:040755", 88)
    assert settled.warnings == ['"b" appears twice, once through a symlink of a lower layer']
    assert not (top / "lib").exists()
    assert derived(stack.record(), stack.layers[1:]) == settled.derived


def test_a24_a_directory_where_the_other_way_has_a_file(stack):
    stack.add(directory(b"usr/lib"), symlink(b"lib", b"usr/lib"))
    with pytest.raises(ContentError, match="a directory and a file"):
        stack.add(reg(b"lib/x/a"), reg(b"usr/lib/x"))


def test_a24_symlinks_of_the_layer_itself_count(stack):
    stack.add(directory(b"usr/lib"), symlink(b"lib", b"usr/lib"))
    stack.add(symlink(b"usr", b"other"), reg(b"lib/x", b"x"))
    assert tree(stack.top()) == {"usr": "-> other", "other": "/", "other/lib": "/", "other/lib/x": "x"}


@pytest.mark.parametrize("target", [b"lib", b"lib/deeper", b"loop", b"file/x", b".wh.x"])
def test_a24_symlinks_that_lead_nowhere_are_replaced(stack, target):
    stack.add(symlink(b"lib", target), symlink(b"loop", b"lib"), reg(b"file"))
    settled = stack.add(reg(b"lib/x", b"x"))
    assert tree(stack.top()) == {"lib": "/", "lib/x": "x"}
    assert facts(stack.top() / "lib")[:2] == ("0:0:040755", 0)
    assert prefixes_moved(settled.derived) == []


def test_a24_a_file_of_the_layer_itself_ends_the_symlink_below(stack):
    stack.add(symlink(b"lib", b"usr/lib"))
    settled = stack.add(reg(b"lib", b"a file"), reg(b"lib/x", b"x"))
    assert (tree(stack.top()), prefixes_moved(settled.derived)) == ({"lib": "/", "lib/x": "x"}, [])


def test_a24_a_dangling_symlink_gets_its_directory(stack):
    stack.add(symlink(b"lib", b"new/place"))
    settled = stack.add(reg(b"lib/x", b"x"))
    assert tree(stack.top()) == {"new": "/", "new/place": "/", "new/place/x": "x"}
    assert derived(stack.record(), stack.layers[1:]) == settled.derived


def test_a24_a_place_above_the_one_that_moves(stack):
    stack.add(directory(b"a"), symlink(b"a/b", b".."), reg(b"x", b"below"))
    stack.add(reg(b"a/b/f", b"f"), reg(b"a/b/a/g", b"g"))
    assert tree(stack.top()) == {"a": "/", "f": "f", "a/g": "g"}


def test_a24_deep_contents_cost_no_recursion(stack):
    stack.add(symlink(b"lib", b"usr"))
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        stack.add(directory(b"usr/" + b"d/" * 250), reg(b"lib/" + b"d/" * 250 + b"f"))
    finally:
        sys.setrecursionlimit(before)
    assert (stack.top() / "usr" / ("d/" * 250) / "f").exists()


def test_a25_lower_symlinks_never_lead_to_the_host(stack, tmp_path):
    host = tmp_path / "host"
    host.mkdir(mode=0o751)
    (host / "secret").write_text("secret")
    os.setxattr(host, OVERRIDE, b"66:66:040751")
    before = everything(host)
    stack.add(symlink(b"a", os.fsencode(host)), symlink(b"up", b"../" * 30 + os.fsencode(host).lstrip(b"/")))
    stack.add(reg(b"a/f", b"x"), reg(b"up/g", b"y"))
    inside = stack.top() / str(host).lstrip("/")
    assert ((inside / "f").read_text(), (inside / "g").read_text()) == ("x", "y")
    assert override(inside) == "0:0:040755"
    with pytest.raises(ContentError, match="in no layer"):
        stack.add(hardlink(b"h", b"a/secret"))
    assert everything(host) == before


# A19: hard links to lower layers


def test_a19_a_hard_link_to_a_lower_file_is_copied(stack):
    stack.add(
        xattr(b"user.k", b"v"), reg(b"d/a", b"content", mode=0o4755, uid=7, mtime=123), symlink(b"s", b"t", mtime=9)
    )
    stack.add(reg(b"other"))
    settled = stack.add(directory(b"n", mtime=60), hardlink(b"n/b", b"/d/a", mode=0o600), hardlink(b"n/s", b"s"))
    top = stack.top()
    assert (top / "n/b").read_text() == "content"
    assert (facts(top / "n/b"), (top / "n/b").stat().st_nlink) == (("7:0:0104755", 123, 0o755), 1)
    assert os.getxattr(top / "n/b", "user.k") == b"v"
    assert (os.readlink(top / "n/s"), (top / "n/s").lstat().st_mtime) == ("t", 9)
    assert (top / "n").stat().st_mtime == 60
    link = next(fact for fact in settled.derived if fact["path"] == "n/b")
    assert (link["size"], link["sha256"]) == (7, hashlib.sha256(b"content").hexdigest())
    assert derived(stack.record(), stack.layers[1:]) == settled.derived


def test_a19_a_rename_whose_whiteout_comes_along(stack):
    stack.add(reg(b"a", b"content"))
    stack.add(hardlink(b"b", b"a"), reg(b".wh.a"))
    assert tree(stack.top()) == {"b": "content", ".wh.a": ""}


@pytest.mark.parametrize(
    "between", [[reg(b".wh.a")], [reg(b".wh..wh..opq")], [directory(b"a")], [reg(b"d/.wh..wh..opq"), reg(b".wh.a")]]
)
def test_a19_what_a_layer_between_hides_is_not_found(stack, between):
    stack.add(reg(b"a", b"content"))
    stack.add(*between)
    with pytest.raises(ContentError, match='hard link "b": its target "a" is in no layer'):
        stack.add(hardlink(b"b", b"a"))


def test_a19_the_nearest_file_counts_and_parents_are_resolved(stack):
    stack.add(reg(b"usr/lib/a", b"1"), symlink(b"lib", b"usr/lib"))
    stack.add(reg(b"usr/lib/a", b"2"))
    stack.add(hardlink(b"lib/b", b"lib/a"))
    assert tree(stack.top()) == {"usr": "/", "usr/lib": "/", "usr/lib/b": "2"}


def test_a19_a20_a_link_that_takes_the_place_of_its_own_target_takes_the_one_below(stack):
    stack.add(reg(b"d/f", b"below"))
    stack.add(reg(b"d/f", b"x"), hardlink(b"d", b"d/f"))
    assert tree(stack.top()) == {"d": "below"}


def test_a19_an_empty_stack_has_no_targets(stack):
    with pytest.raises(ContentError, match="in no layer"):
        stack.add(hardlink(b"b", b"a"))


# A22: chains of links that end in a lower layer


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_a22_a_chain_that_ends_in_a_lower_layer(stack, order):
    links = [hardlink(b"a", b"d/b"), hardlink(b"d/b", b"z"), hardlink(b"z", b"lower/c")]
    stack.add(reg(b"lower/c", b"content", uid=7))
    stack.add(*(links[number] for number in order))
    top = stack.top()
    assert tree(top) == {"a": "content", "d": "/", "d/b": "content", "z": "content"}
    assert {(top / name).stat().st_ino for name in ("a", "d/b", "z")} == {(top / "a").stat().st_ino}
    assert override(top / "a") == "7:0:0100644"


def test_a22_an_earlier_link_covers_the_file_below_and_a_later_one_does_not(stack):
    stack.add(reg(b"b", b"old"), reg(b"c", b"new"))
    stack.add(hardlink(b"before", b"b"), hardlink(b"b", b"c"), hardlink(b"after", b"b"))
    assert tree(stack.top()) == {"before": "old", "b": "new", "after": "new"}


def test_a22_such_a_chain_goes_through_symlinks_of_both_layers(stack):
    stack.add(reg(b"usr/lib/c", b"content"), symlink(b"lib", b"usr/lib"))
    stack.add(symlink(b"own", b"lib"), hardlink(b"lib/b", b"lib/c"), hardlink(b"lib/a", b"own/b"))
    assert tree(stack.top()) == {
        "usr": "/",
        "usr/lib": "/",
        "usr/lib/a": "content",
        "usr/lib/b": "content",
        "own": "-> lib",
    }


def test_a22_a_circle_of_links_is_refused_unless_something_lies_below(stack):
    circle = hardlink(b"a", b"b"), hardlink(b"b", b"a")
    stack.add(reg(b"other"))
    with pytest.raises(ContentError, match='hard link "a": its target "b" is in no layer'):
        stack.add(*circle)
    stack.add(reg(b"b", b"below"))
    stack.add(*circle)
    assert tree(stack.top()) == {"a": "below", "b": "below"}


def test_a22_a_long_chain_that_ends_in_a_lower_layer_takes_no_square(stack):
    count = 3000
    stack.add(reg(b"f0", b"x"))
    stack.add(*(hardlink(b"f%d" % i, b"f%d" % (i - 1)) for i in range(count, 0, -1)))
    assert (stack.top() / "f1").stat().st_nlink == count


# A26: the same layer under other layers


def test_a26_another_base_derives_other_facts(stack, tmp_path):
    stack.add(directory(b"a", mode=0o700, uid=1))
    settled = stack.add(reg(b"a/f"))
    other = Stack(tmp_path / "other")
    other.folder.mkdir()
    other.add(directory(b"a", mode=0o755))
    again = derived(stack.record(), other.layers)
    assert again != settled.derived
    assert derived(stack.record(), [stack.layers[1]]) == settled.derived


@pytest.mark.parametrize(
    ("base", "other", "same"),
    [
        ([symlink(b"lib", b"usr/lib")], [directory(b"lib")], False),
        ([directory(b"lib")], [symlink(b"lib", b"usr/lib")], False),
        ([symlink(b"lib", b"usr/lib")], [symlink(b"lib", b"/usr/lib"), reg(b"more")], True),
        ([symlink(b"lib", b"usr/lib")], [symlink(b"lib", b"usr/lib64")], False),
        ([symlink(b"lib", b"usr/lib")], [symlink(b"lib", b"usr/lib"), symlink(b"usr/lib", b"lib64")], False),
        ([directory(b"lib", uid=1)], [directory(b"lib", uid=1), reg(b"lib/y")], True),
        ([directory(b"lib", mtime=1)], [directory(b"lib", mtime=2)], False),
        ([], [directory(b"lib", uid=1)], False),
        ([], [directory(b"./", uid=1)], False),
    ],
)
def test_a26_directories_and_moves(stack, tmp_path, base, other, same):
    stack.add(directory(b"./"), *base)
    before = stack.add(reg(b"lib/x", b"x"))
    content = everything(stack.top())
    elsewhere = Stack(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    if not any(b"./" in entry[:4] for entry in other):
        other = [directory(b"./"), *other]
    elsewhere.add(*other)
    assert (derived(stack.record(), elsewhere.layers) == before.derived) is same
    assert everything(stack.top()) == content


def test_a26_copied_links_compare_by_content(stack, tmp_path):
    stack.add(reg(b"a", b"one"))
    settled = stack.add(directory(b"./"), hardlink(b"b", b"a"))
    for number, (content, same) in enumerate([(b"one", True), (b"two", False)]):
        other = Stack(tmp_path / f"other{number}")
        other.folder.mkdir()
        other.add(reg(b"a", content))
        assert (derived(stack.record(), other.layers) == settled.derived) is same
    with pytest.raises(ContentError):
        derived(stack.record(), [])


def test_facts_are_plain_json(stack):
    import json

    stack.add(symlink(b"l\xff", b"r\xfe"), directory(b"r\xfe"), reg(b"f\xfd"))
    settled = stack.add(reg(b"l\xff/x"), hardlink(b"h\xfc", b"f\xfd"))
    again = json.loads(json.dumps(settled.derived))
    assert again == settled.derived
    assert derived(stack.record(), stack.layers[1:]) == again


def test_settling_without_attributes(tmp_path):
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    extract(lower, directory(b"a", mtime=5), reg(b"a/f", b"x"), symlink(b"s", b"a"), xattrs=False, proven=False)
    report = extract(upper, reg(b"s/g", b"y"), hardlink(b"h", b"a/f"), xattrs=False, proven=False)
    settle(upper, report, [lower])
    assert tree(upper) == {"a": "/", "a/g": "y", "h": "x"}
    assert os.listxattr(upper / "a") == os.listxattr(upper / "h") == []
    assert (upper / "a").stat().st_mtime == 5


def test_many_implied_directories_below_many_layers(stack):
    stack.add(*(directory(b"d%d/e" % i, uid=i) for i in range(300)))
    for number in range(20):
        stack.add(reg(b"n%d" % number))
    stack.add(*(reg(b"d%d/e/f" % i) for i in range(300)))
    assert override(stack.top() / "d299/e") == "299:0:040755"
