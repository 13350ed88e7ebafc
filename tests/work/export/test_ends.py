"""Every format: what an export leaves that is stopped, killed, has no space or meets damage."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from msb_pull import Cancelled, ContentError, ExportOptions, LocalError, UsageError
from tests.support.archive import reg
from tests.support.exports import NAME, layout, store_of
from tests.support.mounts import mounted
from tests.support.tools import need

OUTS = ["out.tar", "out.tar.gz", "out/", "out.erofs", "out.ext4", "out.squashfs"]


@pytest.fixture(params=OUTS)
def out(request):
    if request.param == "out.squashfs":
        need("tar2sqfs")
    return request.param


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "home", (layout(tmp_path / "layout"), NAME))


def names(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {"home", "layout", "lost+found", "home.disk"})


def state(place: Path) -> object:
    """What stands there: of a folder its names, and which one it is."""
    if place.is_dir():
        return place.stat().st_ino, sorted(os.listdir(place))
    return place.read_bytes()


class After:
    """A flag that is set once it has been asked so often."""

    def __init__(self, count: int) -> None:
        self._left = itertools.count(count, -1)

    def is_set(self) -> bool:
        return next(self._left) <= 0


def test_interrupted_at_any_moment(store, tmp_path, out):
    place = tmp_path / out
    store.export(NAME, f"{tmp_path}/{out}", ExportOptions(paths=["su"]))
    before = state(place)
    for count in range(1, 1000):
        try:
            store.export(NAME, f"{tmp_path}/{out}", ExportOptions(force=True), cancel=After(count))
        except Cancelled:
            assert state(place) == before
            assert names(tmp_path) == [place.name]
        else:
            break
    assert count > 10
    assert state(place) != before


def test_killed_at_any_moment(store, tmp_path, out):
    """At any call that the export makes of the system: the old one or the new one stands there, and nothing is left
    once the next run has begun."""
    code = (
        "import os, sys, msb_pull\n"
        "store, left = msb_pull.Store.open(sys.argv[1]), int(sys.argv[3])\n"
        "EVENTS = ('open', 'os.rename', 'os.mkdir', 'os.link', 'os.remove', 'os.rmdir', 'os.truncate', 'os.utime')\n"
        "def count(event, _):\n"
        "    global left\n"
        "    left -= event in EVENTS\n"
        "    if left == 0: os._exit(9)\n"
        "sys.addaudithook(count)\n"
        "store.export('made/here:1', sys.argv[2], msb_pull.ExportOptions(force=True))\n"
    )
    place = tmp_path / out
    store.export(NAME, f"{tmp_path}/{out}", ExportOptions(paths=["su"]))
    before = state(place)
    killed = 0
    for count in (1, 5, *range(10, 400, 23)):
        command = [sys.executable, "-c", code, tmp_path / "home", f"{tmp_path}/{out}", str(count)]
        done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        if done.returncode == 0:
            break
        killed += 1
        assert place.exists()
        if state(place) != before:
            break
    assert killed
    store.export(NAME, f"{tmp_path}/{out}", ExportOptions(force=True))
    assert names(tmp_path) == [place.name]


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_full_disk(tmp_path, out):
    entries = [reg(b"random", os.urandom(40 << 20))]
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", entries), NAME))
    with mounted(tmp_path, "ext4", "24M", "-F", "-b", "4096") as where:
        with pytest.raises(LocalError) as caught:
            store.export(NAME, f"{where}/{out}")
        assert int(caught.value.exit_code) == 7
        assert "space" in str(caught.value).lower() + (caught.value.cause or "").lower()
        assert names(where) == []


def test_damage_leaves_the_old_one(store, tmp_path, out):
    store.export(NAME, f"{tmp_path}/{out}", ExportOptions(paths=["su"]))
    before = state(tmp_path / out)
    (file,) = (path for path in (tmp_path / "home").glob("layers/sha256:*/shared") if path.stat().st_mtime == 7)
    file.write_bytes(b"One file")
    with pytest.raises(ContentError, match='"shared" is damaged') as caught:
        store.export(NAME, f"{tmp_path}/{out}", ExportOptions(force=True))
    assert int(caught.value.exit_code) == 6
    assert state(tmp_path / out) == before
    assert names(tmp_path) == [Path(out).name]


def test_the_store_is_no_place_for_it(store, tmp_path, out):
    with pytest.raises(UsageError, match="lies in the store"):
        store.export(NAME, f"{tmp_path}/home/layers/{out}", ExportOptions(force=True))
