"""Exports that a kernel mounts: EROFS, ext4 and SquashFS images hold what umoci makes of the image."""

from __future__ import annotations

import io
import os
import subprocess

import pytest

from msb_pull import UsageError
from msb_pull.work.export.export import ExportOptions
from tests.support.disktrees import loop_mounted
from tests.support.erofs import SECOND
from tests.support.exports import NAME, all_facts, by_umoci, layout, needs_root, real_layout, store_of
from tests.support.tools import need
from tests.support.treecompare import describe, differences


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "home", (layout(tmp_path / "layout"), NAME))


@pytest.mark.parametrize("kind", ["erofs", "ext4"])
def test_it_is_what_umoci_makes_of_the_image(store, tmp_path, kind):
    need("umoci")
    store.export(NAME, tmp_path / f"x.{kind}")
    with loop_mounted(tmp_path / f"x.{kind}", kind, tmp_path / "mounted") as where:
        assert all_facts(where) == all_facts(by_umoci(tmp_path / "layout", "1", tmp_path / "theirs"))


def test_squashfs_is_it_but_for_its_times(store, tmp_path):
    """The format has seconds of 32 bits without a sign."""
    need("umoci", "tar2sqfs")
    store.export(NAME, tmp_path / "x.squashfs")
    with loop_mounted(tmp_path / "x.squashfs", "squashfs", tmp_path / "mounted") as where:
        ours, theirs = all_facts(where), all_facts(by_umoci(tmp_path / "layout", "1", tmp_path / "theirs"))
    assert {path: facts[4] for path, facts in ours.items()} == {
        path: min(max(facts[4] // SECOND, 0), 2**32 - 1) * SECOND for path, facts in theirs.items()
    }
    timeless = [{path: facts[:4] + facts[5:] for path, facts in tree.items()} for tree in (ours, theirs)]
    assert timeless[0] == timeless[1]


@needs_root
@pytest.mark.rig
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["debian", "python", "node", "bigblob"])
def test_real_images(tmp_path, name):
    need("umoci", "tar2sqfs", "e2fsck", "fsck.erofs")
    source, tag = real_layout(name)
    store = store_of(tmp_path / "home", (source, NAME))
    theirs = describe(by_umoci(source, tag, tmp_path / "theirs"))
    for kind, check in (("erofs", ["fsck.erofs"]), ("ext4", ["e2fsck", "-fn"]), ("squashfs", ["true"])):
        image = tmp_path / f"x.{kind}"
        store.export(NAME, image)
        subprocess.run([*check, image], check=True, capture_output=True, timeout=300)
        with loop_mounted(image, kind, tmp_path / "mounted") as where:
            assert differences(theirs, describe(where)) == [], kind
        image.unlink()


@pytest.mark.parametrize("kind", ["erofs", "ext4"])
def test_it_has_the_same_bytes_from_any_store(store, tmp_path, kind):
    one, two = tmp_path / f"one.{kind}", tmp_path / f"two.{kind}"
    other = store_of(tmp_path / "other", (tmp_path / "layout", NAME))
    before = os.umask(0o077)
    try:
        other.export(NAME, one)
    finally:
        os.umask(before)
    store.export(NAME, two)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("form", ["erofs", "squashfs", "ext4"])
def test_none_goes_to_a_stream(store, form):
    with io.BytesIO() as out, pytest.raises(UsageError, match=f"{form} cannot be written to a stream"):
        store.export(NAME, out, ExportOptions(format=form))


# The size of a disk


@pytest.mark.parametrize("name", ["x.ext4", "x.img", "x.raw"])
def test_a_disk_is_as_large_as_is_asked(store, tmp_path, name):
    result = store.export(NAME, tmp_path / name, ExportOptions(size=3 << 30))
    assert (result.format, result.bytes, (tmp_path / name).stat().st_size) == ("ext4", 3 << 30, 3 << 30)
    assert (tmp_path / name).stat().st_blocks * 512 < 1 << 20


def test_a_size_is_for_disks(store, tmp_path):
    with pytest.raises(UsageError, match="--size: tar is as large as its content"):
        store.export(NAME, tmp_path / "x.tar", ExportOptions(size=1 << 30))
    with pytest.raises(UsageError, match="--size: 1 MiB is too small"):
        store.export(NAME, tmp_path / "x.ext4", ExportOptions(size=1 << 20))
    assert sorted(os.listdir(tmp_path)) == ["home", "layout"]


def test_a_disk_is_a_regular_file(store):
    with pytest.raises(UsageError, match="ext4 can be written to a regular file alone"):
        store.export(NAME, "/dev/null", ExportOptions(format="ext4", force=True))
