"""Export as a folder."""

from __future__ import annotations

import os
import struct

import pytest

from msb_pull import ContentError, ExportOptions, UsageError
from tests.conftest import need
from tests.support.archive import hdr, reg, xattr
from tests.support.exports import NAME, all_facts, by_umoci, layout, needs_root, sparse, store_of
from tests.support.mounts import mounted
from tests.support.treecompare import describe


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "home", (layout(tmp_path / "layout"), NAME))


@needs_root
def test_native_is_what_umoci_makes_of_the_image(store, tmp_path):
    need("umoci")
    store.export(NAME, f"{tmp_path}/out/")
    assert all_facts(tmp_path / "out") == all_facts(by_umoci(tmp_path / "layout", "1", tmp_path / "theirs"))


@needs_root
def test_devices_keep_their_attributes(tmp_path):
    kinds = ((b"null", b"3"), (b"pipe", b"6"))
    entries = [xattr(b"trusted.of", name) + hdr(name, typ=kind, major=1, minor=3) for name, kind in kinds]
    entries.append(xattr(b"user.odd", b"no kernel takes it") + hdr(b"odd", typ=b"6"))
    store_of(tmp_path / "home", (layout(tmp_path / "layout", entries), NAME)).export(NAME, f"{tmp_path}/out/")
    found = {name: os.listxattr(tmp_path / "out" / name) for name in ("null", "pipe", "odd")}
    assert found == {"null": ["trusted.of"], "pipe": ["trusted.of"], "odd": []}
    assert os.getxattr(tmp_path / "out" / "null", "trusted.of") == b"null"


def test_containers_keeps_all_in_the_attribute(store, tmp_path):
    store.export(NAME, f"{tmp_path}/out/", ExportOptions(stat="containers"))
    said = {name: os.getxattr(tmp_path / "out" / name, "user.containers.override_stat") for name in ("su", "null")}
    assert said == {"su": b"1000:4000000000:0104755", "null": b"0:0:020666"}
    assert (tmp_path / "out" / "closed" / "none").stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "out" / "shared").stat().st_ino == (tmp_path / "out" / "second").stat().st_ino


def test_microsandbox_keeps_all_in_its_own(store, tmp_path):
    store.export(NAME, f"{tmp_path}/out/", ExportOptions(stat="microsandbox"))
    value = os.getxattr(tmp_path / "out" / "disk", "user.msb.override_stat")
    assert struct.unpack("<B3xIIII", value) == (1, 0, 6, 0o60660, os.makedev(8, 300))


def test_no_file_is_one_of_the_store(store, tmp_path):
    store.export(NAME, f"{tmp_path}/out/", ExportOptions(stat="containers"))
    before = (tmp_path / "out" / "su").stat()
    assert before.st_nlink == 1


def big_store(where):
    """A store with a file of 40 MiB, and one of 30 MiB in 1 GiB of hole."""
    entries = [reg(b"big", bytes(range(256)) * (40 << 12)), sparse(b"disk", 1 << 30, (5 << 20, b"x" * (30 << 20)))]
    return store_of(where / "home", (layout(where / "layout", entries), NAME))


@needs_root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_blocks_are_shared_where_the_file_system_can(tmp_path, kind):
    with mounted(tmp_path, kind, "400M") as where:
        store = big_store(where)
        os.sync()
        before = os.statvfs(where)
        store.export(NAME, f"{where}/out/")
        os.sync()
        taken = (before.f_bfree - os.statvfs(where).f_bfree) * before.f_frsize
        assert taken < 8 << 20
        assert (where / "out" / "big").read_bytes() == bytes(range(256)) * (40 << 12)
        with (where / "out" / "big").open("r+b") as out:
            out.write(b"changed")
        (file,) = where.glob("home/layers/sha256:*/big")
        assert file.read_bytes()[:7] == bytes(range(7))
        (file,) = where.glob("home/layers/sha256:*/disk")
        with file.open("r+b") as out:
            out.seek(6 << 20)
            out.write(b"damage")
        with pytest.raises(ContentError, match='"disk" is damaged'):
            store.export(NAME, f"{where}/other/")
        assert sorted(os.listdir(where)) == ["home", "layout", "out"]


def test_damage_leaves_nothing(store, tmp_path):
    (file,) = (path for path in (tmp_path / "home").glob("layers/sha256:*/shared") if path.stat().st_mtime == 7)
    file.write_bytes(b"One file")
    with pytest.raises(ContentError, match="damaged"):
        store.export(NAME, f"{tmp_path}/out/")
    assert sorted(os.listdir(tmp_path)) == ["home", "layout"]


def test_only_an_empty_folder_is_taken_unasked(store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    store.export(NAME, out, ExportOptions(paths=["su"]))
    assert os.listdir(out) == ["su"]
    with pytest.raises(UsageError, match="already exists"):
        store.export(NAME, out)
    store.export(NAME, out, ExportOptions(force=True, paths=["closed"]))
    assert sorted(os.listdir(tmp_path)) == ["home", "layout", "out"]
    assert sorted(describe(out)) == [b".", b"closed", b"closed/none"]


def test_what_holds_the_store_is_never_replaced(store, tmp_path):
    with pytest.raises(UsageError, match="cannot be replaced"):
        store.export(NAME, tmp_path, ExportOptions(force=True))
    assert (tmp_path / "home" / "oci.db").exists()


def test_stat_is_for_folders(store, tmp_path):
    with pytest.raises(UsageError, match="--stat"):
        store.export(NAME, tmp_path / "x.tar", ExportOptions(stat="native"))
    with pytest.raises(UsageError, match="not one of"):
        store.export(NAME, f"{tmp_path}/out/", ExportOptions(stat="odd"))
