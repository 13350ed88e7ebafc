"""What a file system must be able to do, tried on real ones where this machine can mount them."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.store import probe
from msb_pull.store.store import Store
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image
from tests.support.imagebuild import simple_layout
from tests.support.make_sample import BASE, TOP, file, layer_tar
from tests.support.mounts import mounted
from tests.support.stores import publish
from tests.support.treecompare import describe

pytestmark = pytest.mark.disk


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "home")


def test_an_ordinary_file_system_lacks_nothing(store):
    assert store.check_file_system(need_xattrs=True)
    assert os.listdir(store.places.folder) == []


def test_tried_once(store, monkeypatch):
    assert store.check_file_system(need_xattrs=True)
    monkeypatch.setattr(probe, "probe", lambda folder: pytest.fail("tried again"))
    assert store.check_file_system(need_xattrs=False)


def cannot(*arguments, **named):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_d32_without_attributes(store, monkeypatch):
    monkeypatch.setattr(os, "setxattr", cannot)
    assert not store.check_file_system(need_xattrs=False)
    with pytest.raises(LocalError, match="no user attributes") as caught:
        store.check_file_system(need_xattrs=True)
    assert "--allow-no-xattr" in caught.value.hint


def test_d32_all_that_is_missing_is_told_at_once(store, monkeypatch):
    monkeypatch.setattr(os, "setxattr", cannot)
    monkeypatch.setattr(os, "symlink", cannot)
    monkeypatch.setattr(os, "link", cannot)
    with pytest.raises(LocalError, match="no symlinks, no hard links, no user attributes") as caught:
        store.check_file_system(need_xattrs=True)
    assert "--allow-no-xattr" not in caught.value.hint


def test_trouble_of_another_kind_is_told_as_such(store, monkeypatch):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "setxattr", full)
    with pytest.raises(LocalError, match="no space left"):
        store.check_file_system(need_xattrs=True)


def test_d32_fat(tmp_path):
    with mounted(tmp_path, "vfat", "8M") as folder:
        store = Store.open(folder / "home")
        with pytest.raises(LocalError, match="no symlinks, no hard links"):
            store.check_file_system(need_xattrs=False)


def test_a79_where_nothing_may_be_executed_an_image_is_the_same(tmp_path, store):
    layout = simple_layout(tmp_path / "layout", [layer_tar(BASE), layer_tar(TOP)])

    def pulled(here: Store) -> list[dict]:
        result = pull_image(
            parse_argument(f"oci:{layout}:1"),
            here,
            lambda: pytest.fail("asked a registry"),
            PullOptions(name="localhost/a:1"),
            Job(),
        )
        return [describe(Path(layer.path)) for layer in result.layers]

    with mounted(tmp_path, "tmpfs", "8M") as folder:
        subprocess.run(["mount", "-o", "remount,noexec,nodev,nosuid", folder], check=True)
        assert pulled(Store.open(folder / "home")) == pulled(store)


def test_a77_d9_a_small_disk_fills_and_the_next_run_works(tmp_path):
    with mounted(tmp_path, "tmpfs", "1M") as folder:
        store = Store.open(tmp_path / "home", folder / "layers")
        with pytest.raises(OSError, match="No space"):
            publish(store, "x", "x" * 3_000_000)
        assert os.listdir(store.places.folder) == []
        publish(store, "x")


def test_d9_a77_what_cannot_fit_is_not_begun(tmp_path):
    with mounted(tmp_path, "tmpfs", "1M") as folder:
        store = Store.open(tmp_path / "home", folder / "layers")
        store.check_space(500_000)
        with pytest.raises(LocalError, match="not enough space") as caught:
            store.check_space(2_000_000)
        assert "2000000 bytes" in caught.value.cause
        layout = simple_layout(tmp_path / "layout", [layer_tar([file("f", os.urandom(2_000_000))])])
        with pytest.raises(LocalError, match="not enough space"):
            pull_image(
                parse_argument(f"oci:{layout}:1"),
                store,
                lambda: pytest.fail("asked a registry"),
                PullOptions(name="localhost/a:1"),
                Job(),
            )


def test_a_file_system_that_does_not_tell_its_size(store, monkeypatch):
    real = os.statvfs

    def silent(path):
        facts = list(real(path))
        facts[2] = facts[3] = facts[4] = 0
        return os.statvfs_result(facts)

    monkeypatch.setattr(os, "statvfs", silent)
    store.check_space(1 << 60)


def test_d34_without_inodes_the_message_counts_them(tmp_path):
    with mounted(tmp_path, "ext4", "4M", "-F", "-N", "32") as folder:
        store = Store.open(folder / "home")
        for number in range(64):
            try:
                (folder / str(number)).touch()
            except OSError:
                break
        with pytest.raises(LocalError, match="no inodes left") as caught:
            store.check_file_system(need_xattrs=False)
        assert "0 inodes" in caught.value.cause
