"""Export as tar: what other programs unpack is the tree that they make of the image, and always the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from msb_pull import ContentError, ExportOptions, LocalError, NotFoundError, UsageError
from tests.conftest import need
from tests.support.archive import directory, hardlink, reg, symlink
from tests.support.exports import (
    BOTTOM,
    CAPABILITY,
    GIB,
    LATIN,
    LONG,
    NAME,
    TOP,
    all_facts,
    by_umoci,
    layout,
    needs_root,
    real_layout,
    sparse,
    store_of,
    untarred,
)
from tests.support.treecompare import describe, differences


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "home", (layout(tmp_path / "layout"), NAME))


@pytest.fixture
def members(tmp_path):
    """Exports an image of the given layers; returns its tar's members by name."""

    def make(*layers):
        made = store_of(tmp_path / "home", (layout(tmp_path / "layout", *layers), NAME))
        made.export(NAME, out := io.BytesIO())
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
            return {x.name: (x, archive.extractfile(x).read() if x.isreg() else b"") for x in archive.getmembers()}

    return make


@needs_root
def test_gnu_tar_makes_of_it_what_umoci_makes_of_the_image(store, tmp_path):
    need("umoci")
    store.export(NAME, tmp_path / "out.tar")
    ours = all_facts(untarred(tmp_path / "out.tar", tmp_path / "ours"))
    assert ours == all_facts(by_umoci(tmp_path / "layout", "1", tmp_path / "theirs"))


@needs_root
@pytest.mark.rig
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["debian", "python", "node"])
def test_real_images(tmp_path, name):
    need("umoci")
    source, tag = real_layout(name)
    store = store_of(tmp_path / "home", (source, NAME))
    store.export(NAME, tmp_path / "out.tar")
    ours = describe(untarred(tmp_path / "out.tar", tmp_path / "ours"))
    assert differences(describe(by_umoci(source, tag, tmp_path / "theirs")), ours) == []


def test_the_known_traps(members):
    found = members(BOTTOM, TOP)
    assert (found["closed/none"][0].mode, found["closed/none"][1]) == (0, b"secret")
    assert (found["closed"][0].mode, found["su"][0].mode, found["guid"][0].mode) == (0o555, 0o4755, 0o2755)
    assert (found["su"][0].gid, found["guid"][0].uid) == (4_000_000_000, 4_000_000_000)
    capability = found["ping"][0].pax_headers["SCHILY.xattr.security.capability"]
    assert capability.encode("utf-8", "surrogateescape") == CAPABILITY
    assert found["noted"][0].pax_headers["SCHILY.xattr.user.note"] == "a\nb=c\0"
    assert found["back/old"][1] == b"new"
    assert [name for name in found if name.startswith("veiled/")] == ["veiled/new"]
    assert (found["shared"][0].islnk(), found["second"][0].isreg()) == (True, True)
    assert {found[name][0].linkname for name in ("shared", "third")} == {"second"}
    assert (found["second"][0].uid, found["second"][0].gid, found["second"][1]) == (5, 6, b"one file")
    assert (found["second-link"][0].uid, found["second-link"][0].linkname) == (8, "shared")
    assert found["shared-link"][0].linkname == "second-link"
    assert found["usr/lib/through"][1] == b"through the symlink below"
    assert (found["lib"][0].issym(), found["lib"][0].linkname) == (True, "usr/lib")
    assert (found[LONG.decode()][1], found["d/" + LONG.decode()][1]) == (b"long", b"long below")
    assert found["d/far"][0].linkname == "x" * 300
    assert found[os.fsdecode(LATIN)][1] == b"latin"
    assert found["before-1970"][0].pax_headers["mtime"] == "-12345.987654321"
    assert found["after-2038"][0].pax_headers["mtime"] == "4102444800.000000001"
    assert (found["null"][0].ischr(), found["null"][0].devmajor, found["null"][0].devminor) == (True, 1, 3)
    assert (found["disk"][0].isblk(), found["disk"][0].devminor, found["pipe"][0].isfifo()) == (True, 300, True)
    assert "gone" not in found
    assert not [name for name in found if ".wh." in name]


def test_names_are_sorted_and_parents_come_first(members):
    names = list(members(BOTTOM, TOP))
    assert names == sorted(names, key=lambda name: [] if name == "." else os.fsencode(name).split(b"/"))
    assert names[0] == "."


def test_a_large_sparse_file_stays_small(tmp_path):
    entries = [sparse(b"disk", GIB, (5, b"five"), (300, b"same block"), (GIB - 3, b"end")), sparse(b"hole", GIB)]
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", entries), NAME))
    result = store.export(NAME, tmp_path / "out.tar")
    assert result.bytes == (tmp_path / "out.tar").stat().st_size <= 65_536
    with tarfile.open(tmp_path / "out.tar") as archive:
        # In whole blocks, since GNU tar reads them so.
        assert archive.getmember("disk").sparse == [(0, 512), (GIB - 512, 512)]
        assert (archive.getmember("hole").size, archive.getmember("hole").issparse()) == (GIB, True)
    if sys.platform.startswith("linux"):
        (tmp_path / "there").mkdir()
        head = bytes(5) + b"five" + bytes(291) + b"same block"
        subprocess.run(["tar", "-xSf", tmp_path / "out.tar", "-C", tmp_path / "there"], check=True, timeout=60)
        for name, ends in (("disk", b"end"), ("hole", bytes(3))):
            made = tmp_path / "there" / name
            assert (made.stat().st_size, made.stat().st_blocks * 512 < 1 << 20) == (GIB, True)
            with made.open("rb") as file:
                assert file.read(310) == (bytes(310) if name == "hole" else head)
                file.seek(-3, os.SEEK_END)
                assert file.read() == ends


def test_the_same_bytes_from_any_store(store, tmp_path, monkeypatch):
    """Another order of pulls gives layers other names; umask, locale and time zone are others, too."""
    store.export(NAME, one := io.BytesIO())
    other = [directory(b"back", mode=0o700), reg(b"back/old", b"elsewhere"), symlink(b"usr", b"back")]
    images = (layout(tmp_path / "stranger", other, TOP[:2], [reg(b"x")]), "stranger:1"), (tmp_path / "layout", NAME)
    before = os.umask(0o077)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("LC_ALL", "C")
    try:
        second = store_of(tmp_path / "second", *images)
        second.export(NAME, tmp_path / "two.tar")
    finally:
        os.umask(before)
    assert hashlib.sha256((tmp_path / "two.tar").read_bytes()).digest() == hashlib.sha256(one.getvalue()).digest()


def test_a_link_that_the_disk_could_not_hold_is_one_again(tmp_path):
    entries = [reg(b"a", b"content"), hardlink(b"b", b"a")]
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", entries), NAME))
    (link,) = (tmp_path / "home").glob("layers/sha256:*/b")
    link.unlink()
    link.write_bytes(b"content")
    (notes,) = (tmp_path / "home" / "layers" / ".msb-pull" / "records").glob("*.json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"copied": [1]}) + "\n")
    store.export(NAME, out := io.BytesIO())
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert (archive.getmember("b").islnk(), archive.getmember("b").linkname) == (True, "a")


def test_names_that_say_how_to_compress(store, tmp_path):
    store.export(NAME, plain := io.BytesIO())
    for name in ("a.tar.gz", "a.TGZ", "a.tar.zst"):
        store.export(NAME, tmp_path / name)
    assert gzip.decompress((tmp_path / "a.tar.gz").read_bytes()) == plain.getvalue()
    assert gzip.decompress((tmp_path / "a.TGZ").read_bytes()) == plain.getvalue()
    assert (tmp_path / "a.tar.zst").read_bytes().startswith(b"\x28\xb5\x2f\xfd")


# Some paths only


@pytest.mark.parametrize("path", ["usr/lib/through", "/lib/through", "lib/../usr/lib//through"])
def test_one_file_goes_to_a_stream_as_it_is(store, path):
    result = store.export(NAME, out := io.BytesIO(), ExportOptions(paths=[path]))
    assert (out.getvalue(), result.format, result.entries) == (b"through the symlink below", "file", 1)


def test_a_symlink_to_one_file_gives_what_the_file_holds(store):
    store.export(NAME, out := io.BytesIO(), ExportOptions(paths=["shared-link"]))
    assert out.getvalue() == b"one file"


def test_a_sparse_file_goes_to_a_stream_with_its_zeros(tmp_path):
    entries = [sparse(b"disk", 1_000_000, (5, b"five"))]
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", entries), NAME))
    store.export(NAME, out := io.BytesIO(), ExportOptions(paths=["disk"]))
    assert out.getvalue() == bytes(5) + b"five" + bytes(1_000_000 - 9)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["closed"], [".", "closed", "closed/none"]),
        (["lib/through", "su"], [".", "su", "usr", "usr/lib", "usr/lib/through"]),
        (["shared", "third"], [".", "shared", "third"]),
        (["shared-link", "null"], [".", "null", "shared-link"]),
    ],
)
def test_paths_with_the_folders_on_the_way(store, paths, expected):
    store.export(NAME, out := io.BytesIO(), ExportOptions(format="tar", paths=paths))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert archive.getnames() == expected
        if "third" in paths:
            assert archive.extractfile("third").read() == b"one file"


def test_no_other_file_is_read(store, tmp_path):
    for path in (tmp_path / "home").rglob("su"):
        path.unlink()
    store.export(NAME, out := io.BytesIO(), ExportOptions(paths=["back/old"]))
    assert out.getvalue() == b"new"


@pytest.mark.parametrize(("path", "error"), [("nothing", NotFoundError), ("gone", NotFoundError), ("../x", UsageError)])
def test_paths_that_are_none(store, path, error):
    with pytest.raises(error):
        store.export(NAME, io.BytesIO(), ExportOptions(paths=[path]))


# What goes wrong


def damage_content(file: Path) -> None:
    file.write_bytes(b"One file")


def damage_size(file: Path) -> None:
    file.write_bytes(b"one file and more")


@pytest.mark.parametrize("harm", [damage_content, damage_size, Path.unlink])
def test_damage_ends_it_and_leaves_no_file(store, tmp_path, harm):
    (file,) = (path for path in (tmp_path / "home").glob("layers/sha256:*/shared") if path.stat().st_mtime == 7)
    harm(file)
    (tmp_path / "there.tar").write_bytes(b"the old one")
    for name in ("out.tar", "there.tar"):
        with pytest.raises(ContentError, match='"shared" is damaged') as caught:
            store.export(NAME, tmp_path / name, ExportOptions(force=True))
        assert int(caught.value.exit_code) == 6
    assert sorted(os.listdir(tmp_path)) == ["home", "layout", "there.tar"]
    assert (tmp_path / "there.tar").read_bytes() == b"the old one"


def test_data_in_a_hole_is_damage(tmp_path):
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", [sparse(b"disk", 99_999, (5, b"five"))]), NAME))
    (file,) = (tmp_path / "home").glob("layers/sha256:*/disk")
    with file.open("r+b") as out:
        out.seek(50_000)
        out.write(b"!")
    with pytest.raises(ContentError, match="data at byte 50000"):
        store.export(NAME, io.BytesIO())


def test_a_layer_that_is_lost(store, tmp_path):
    for notes in (tmp_path / "home" / "layers" / ".msb-pull" / "records").glob("*.json"):
        notes.unlink()
    with pytest.raises(NotFoundError, match="has no record"):
        store.export(NAME, tmp_path / "out.tar")


def test_the_store_is_not_changed(store, tmp_path):
    def state():
        found = describe(tmp_path / "home")
        return {
            name: facts for name, facts in found.items() if not name.startswith((b"layers/.msb-pull/locks", b"oci.db-"))
        }

    before = state()
    store.export(NAME, tmp_path / "out.tar")
    assert differences(before, state()) == []


@pytest.mark.parametrize("place", ["home/out.tar", "home/layers/out.tar", "link/out.tar"])
def test_the_store_is_no_place_for_it(store, tmp_path, place):
    (tmp_path / "link").symlink_to(tmp_path / "home" / "layers")
    with pytest.raises(UsageError, match="lies in the store"):
        store.export(NAME, tmp_path / place, ExportOptions(force=True))


def test_what_exists_is_replaced_only_on_request(store, tmp_path):
    out = tmp_path / "out.tar"
    out.write_bytes(b"old")
    with pytest.raises(UsageError, match="already exists"):
        store.export(NAME, out)
    assert out.read_bytes() == b"old"
    store.export(NAME, out, ExportOptions(force=True))
    assert tarfile.is_tarfile(out)


def test_outputs_that_cannot_be(store, tmp_path):
    with pytest.raises(UsageError, match="does not tell the format"):
        store.export(NAME, tmp_path / "out.zip")
    with pytest.raises(UsageError, match="not one of"):
        store.export(NAME, tmp_path / "out.tar", ExportOptions(format="zip"))
    with pytest.raises(LocalError, match="no such folder"):
        store.export(NAME, tmp_path / "none" / "out.tar")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        store.export(NAME, tmp_path / "folder.tar", ExportOptions(force=True))
    with pytest.raises(NotFoundError):
        store.export("other:1", tmp_path / "out.tar")
