"""The merged tree of an image, from records alone."""

from __future__ import annotations

import io

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.ground.limits import Limits
from msb_pull.layer.notes import Notes
from msb_pull.layer.tar.record import RecordWriter
from msb_pull.layer.tar.tar import TarReader
from msb_pull.work.merge import merge
from tests.support.make_sample import BASE, TOP, file, folder, hardlink, layer_tar, pipe, symlink


@pytest.fixture
def tree(tmp_path):
    """Merges layers given as lists of entries; returns the files by path."""

    def make(*layers, moved=()):
        sources = []
        for number, entries in enumerate(layers):
            record, notes = tmp_path / f"{number}.tar", tmp_path / f"{number}.json"
            with open(record, "wb") as out:
                writer = RecordWriter(out.fileno())
                stream = io.BytesIO(layer_tar(entries))
                reader = TarReader(stream, limits=Limits(max_entries=10**6, max_bytes=10**9), record=writer)
                while reader.next() is not None:
                    while reader.chunk():
                        pass
                reader.drain()
                writer.close()
            derived = [{"kind": "moved", "asked": old, "path": old, "to": new} for old, new in moved if number]
            Notes(diff_id="", tar_bytes=0, entries=0, content_bytes=0, chain="", derived=derived).save(notes)
            sources.append((f"sha256:{number}", record, notes))
        return {found.path.decode("utf-8", "surrogateescape"): found for found in merge(sources)}

    return make


def test_sample(tree):
    found = tree(BASE, TOP)
    assert "etc/motd" not in found
    assert not [path for path in found if ".wh." in path]
    assert [path for path in found if path.startswith("var/cache/")] == ["var/cache/new"]
    assert (found["etc"].mode, found["etc"].layer) == (0o750, "sha256:1")
    assert found["etc/passwd"].layer == "sha256:0"
    assert found["home/user/link"].target == b"notes.txt"
    assert found["usr/bin/hi"].kind == "hardlink"
    assert (found["usr/bin/passwd"].mode, found["home/user"].uid) == (0o4755, 1000)
    assert found["etc/os-release"].layer == "sha256:1"
    assert found["usr/lib/libsample.so.1.0"].size == 256 * 64
    assert "usr/share/café.txt" in found
    assert list(found) == sorted(found, key=lambda path: path.split("/"))


def test_whiteouts_spare_their_own_layer(tree):
    below = [folder("d"), file("d/old"), file("d/both")]
    above = [folder("d"), file("d/both", "new"), file("d/.wh.both"), file("d/.wh..wh..opq"), file("d/young")]
    assert list(tree(below, above)) == ["d", "d/both", "d/young"]


def test_a_whiteout_takes_a_whole_tree(tree):
    below = [folder("d"), folder("d/e"), file("d/e/f"), file("x")]
    assert list(tree(below, [file(".wh.d")])) == ["x"]
    assert list(tree(below, [file(".wh.none"), file("x/.wh.none")]))[:2] == ["d", "d/e"]


def test_kinds_replace_one_another(tree):
    below = [folder("a"), file("a/b"), file("c"), symlink("s", "a")]
    above = [file("a", "now a file"), folder("c"), file("c/d"), pipe("s")]
    found = tree(below, above)
    assert {path: x.kind for path, x in found.items()} == {"a": "file", "c": "directory", "c/d": "file", "s": "fifo"}


def test_a_directory_over_a_directory_keeps_what_is_in_it(tree):
    found = tree([folder("d", 0o700), file("d/f")], [folder("d", 0o755)])
    assert (found["d"].mode, list(found)) == (0o755, ["d", "d/f"])


def test_parents_that_no_layer_describes(tree):
    found = tree([file("a/b/c")])
    assert [(path, x.kind, x.mode) for path, x in found.items()][:2] == [
        ("a", "directory", 0o755),
        ("a/b", "directory", 0o755),
    ]


def test_entries_are_where_settling_moved_them(tree):
    found = tree(
        [folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib")], [file("lib/x")], moved=[("lib", "usr/lib")]
    )
    assert list(found) == ["lib", "usr", "usr/lib", "usr/lib/x"]
    assert found["lib"].kind == "symlink"


def test_later_entries_of_a_layer_win(tree):
    found = tree([file("a", "1"), file("a", "12"), hardlink("b", "a"), file("b", "123")])
    assert (found["a"].size, found["b"].size, found["b"].kind) == (2, 3, "file")


def test_a_time_before_1970_is_told_as_the_image_has_it(tree):
    assert tree([file("old", when=-86_400)])["old"].mtime_ns == -86_400 * 10**9


def test_a_directory_that_a_layer_only_implies_is_that_of_the_layer_below(tree):
    found = tree([folder("d", 0o1777, when=-5)], [file("d/f")])
    assert (found["d"].mode, found["d"].mtime_ns) == (0o1777, -5 * 10**9)


def test_very_deep_trees_need_no_stack(tree):
    deep = "/".join(["d"] * 1000)
    assert len(tree([file(deep)])) == 1000


def test_a_damaged_record_is_an_error(tree, tmp_path):
    tree([file("a")])
    (tmp_path / "0.tar").write_bytes(b"no gzip")
    with pytest.raises(ContentError, match="damaged"):
        merge([("sha256:0", tmp_path / "0.tar", tmp_path / "0.json")])
