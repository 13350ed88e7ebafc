"""A store that lies in a lower layer of an overlay, where no directory can be moved: everything is removed in place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from msb_pull.ground import remove
from msb_pull.ground.running import Job
from msb_pull.store import publish as exchange
from msb_pull.store.paths import LayerState
from msb_pull.store.store import Store
from msb_pull.work.prune.apply import apply_prune
from msb_pull.work.prune.plan import plan_prune
from msb_pull.work.prune.remove import remove_images
from tests.conftest import lacking
from tests.support.stores import digest, publish, pull

pytestmark = pytest.mark.disk

REAL_RENAME = os.rename


@pytest.fixture
def baked(tmp_path):
    """A store on a real overlay: its layers lie below, what is written goes on top."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    mounts = [tmp_path]
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    store = Store.open(tmp_path / "lower" / "home")
    pull(store, "localhost/a:1", "xy")
    (store.layer_dir(digest("x")) / "a" / "b").mkdir(parents=True)
    (store.layer_dir(digest("x")) / "a" / "b" / "f").touch()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work,redirect_dir=off"
    try:
        if subprocess.run(["mount", "-t", "overlay", "none", "-o", options, tmp_path / "merged"]).returncode != 0:
            lacking("no overlay can be mounted here")
        mounts.append(tmp_path / "merged")
        yield Store.open(tmp_path / "merged" / "home")
    finally:
        for mount in reversed(mounts):
            subprocess.run(["umount", "-l", mount], check=True)


@pytest.fixture
def unmovable(tmp_path, monkeypatch):
    """A store whose directories stay where they are; those that were made since can be moved."""
    store = Store.open(tmp_path / "home")
    pull(store, "localhost/a:1", "xy")
    old = {os.stat(path).st_ino for path in store.layers.glob("*.extracted")}

    def rename(source, target, **named):
        if not named and os.lstat(source).st_ino in old:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)
        return REAL_RENAME(source, target, **named)

    def exchanged(new, former, *, aside):
        rename(former, aside)
        rename(new, former)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(exchange, "exchange", exchanged)
    return store


@pytest.fixture(params=["baked", "unmovable"])
def store(request):
    return request.getfixturevalue(request.param)


def left(store) -> list[str]:
    names = [path.name for path in store.layers.glob("*.extracted")]
    return names + [f"{path.parent.name}/{path.name}" for path in (store.own / "records").iterdir()]


def test_rm_removes_layers_that_cannot_be_moved(store):
    remove_images(store, ["localhost/a:1"], Job())
    assert left(store) == []
    assert list(store.places.folder.iterdir()) == []


def test_prune_removes_layers_that_cannot_be_moved(store):
    with store.database(create=True) as database:
        database.remove(["localhost/a:1"])
    removed = apply_prune(store, plan_prune(store, None), Job())
    assert len(removed.layers) == 2
    assert left(store) == []


def test_a_layer_that_cannot_be_moved_is_replaced(store):
    publish(store, "x", "new", replace=True)
    assert store.has_layer(digest("x"))
    assert (store.layer_dir(digest("x")) / "f").read_text() == "new"
    assert list(store.places.folder.iterdir()) == []


@pytest.mark.parametrize("replacing", [True, False])
def test_a_layer_that_is_half_removed_passes_for_missing(unmovable, monkeypatch, replacing):
    def ended(name, *rest, **named):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("msb_pull.store.publish.remove_tree", ended)
    with pytest.raises(Exception, match="Input/output error"):
        if replacing:
            publish(unmovable, "x", "new", replace=True)
        else:
            remove_images(unmovable, ["localhost/a:1"], Job())
    gone = [name for name in "xy" if unmovable.layer_state(digest(name)) is LayerState.FOREIGN]
    assert len(gone) == 1
    monkeypatch.setattr("msb_pull.store.publish.remove_tree", remove.remove_tree)
    publish(unmovable, gone[0], "again")
    assert unmovable.has_layer(digest(gone[0]))
    with unmovable.database(create=True) as database:
        database.remove(["localhost/a:1"])
    apply_prune(unmovable, plan_prune(unmovable, None), Job())
    assert left(unmovable) == []
