"""File systems whose names are shorter than 255 bytes: only an entry that does not fit is refused."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.store import Store
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image
from tests.conftest import lacking, need
from tests.support.imagebuild import simple_layout
from tests.support.make_sample import BASE, TOP, file, layer_tar
from tests.support.treecompare import describe

pytestmark = pytest.mark.disk

LONG = "n" * 252


def pulled(store: Store, layout: Path) -> list[dict]:
    result = pull_image(
        parse_argument(f"oci:{layout}:1"),
        store,
        lambda: pytest.fail("asked a registry"),
        # fuse-overlayfs keeps this attribute for itself.
        PullOptions(name="localhost/a:1", allow_no_xattr=True),
        Job(),
    )
    return [describe(Path(layer.path)) for layer in result.layers]


@contextmanager
def fuse_overlay(folder: Path):
    """A fuse-overlayfs, whose names end at 251 bytes, since a whiteout of each must fit."""
    need("fuse-overlayfs")
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir(parents=True)
    options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    if subprocess.run(["fuse-overlayfs", "-o", options, folder / "merged"], capture_output=True).returncode != 0:
        lacking("nothing can be mounted with FUSE here")
    try:
        yield folder / "merged"
    finally:
        subprocess.run(["umount", "-l", folder / "merged"], check=True)


def test_a_store_on_fuse_overlayfs_takes_images_whose_names_fit(tmp_path):
    layout = simple_layout(tmp_path / "layout", [layer_tar(BASE)])
    with fuse_overlay(tmp_path / "overlay") as folder:
        (layer,) = pulled(Store.open(folder / "home"), layout)
        assert layer


def test_on_fuse_overlayfs_a_whiteout_is_named_since_it_takes_none(tmp_path):
    layout = simple_layout(tmp_path / "layout", [layer_tar(BASE), layer_tar(TOP)])
    with fuse_overlay(tmp_path / "overlay") as folder, pytest.raises(ContentError, match=r"etc/\.wh\.motd"):
        pulled(Store.open(folder / "home"), layout)


def test_on_fuse_overlayfs_the_entry_that_does_not_fit_is_named(tmp_path):
    layout = simple_layout(tmp_path / "layout", [layer_tar([file("a/" + LONG, b"x")])])
    with fuse_overlay(tmp_path / "overlay") as folder, pytest.raises(ContentError) as caught:
        pulled(Store.open(folder / "home"), layout)
    assert LONG in caught.value.message and "too long for the file system" in str(caught.value.message)


def test_shorter_names_alone_make_no_file_system_unfit(tmp_path, monkeypatch):
    """As eCryptfs has it (143 bytes), or an encrypted folder of a NAS."""
    real = os.open

    def short(path, *rest, **named):
        if len(os.path.basename(os.fsencode(path))) > 143:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", short)
    monkeypatch.setattr(Path, "touch", lambda path, **named: os.close(short(path, os.O_CREAT | os.O_WRONLY, 0o600)))
    assert Store.open(tmp_path / "home").check_file_system(need_xattrs=True)
