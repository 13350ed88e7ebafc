"""A tar that two processes write: the same bytes wherever it is cut, and the same ends as one process has."""

from __future__ import annotations

import io
import os
import signal
import sys

import pytest

from msb_pull import Cancelled, ContentError, ExportOptions, LocalError
from msb_pull.work.export import tar
from tests.support.archive import reg
from tests.support.exports import BOTTOM, NAME, TOP, layout, sparse, store_of
from tests.support.mounts import mounted

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is one process elsewhere")

HOLES = [sparse(b"holes", 1 << 20, (5, b"five"), (300, b"same block"), ((1 << 20) - 3, b"end")), sparse(b"hole", 99)]


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Every tar in a file is written by two."""
    monkeypatch.setattr(tar, "gains", lambda work: True)


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "home", (layout(tmp_path / "layout", BOTTOM, TOP, HOLES), NAME))


def cut_at(monkeypatch, middle):
    monkeypatch.setattr(tar, "bisect_left", lambda costs, cost: min(middle, len(costs) - 1))


def test_the_same_bytes_wherever_it_is_cut(store, tmp_path, monkeypatch):
    store.export(NAME, out := io.BytesIO())
    count = store.export(NAME, tmp_path / "out.tar").entries
    assert (tmp_path / "out.tar").read_bytes() == out.getvalue()
    for middle in range(count):
        cut_at(monkeypatch, middle)
        result = store.export(NAME, tmp_path / "out.tar", ExportOptions(force=True))
        assert (tmp_path / "out.tar").read_bytes() == out.getvalue()
        assert result.bytes == len(out.getvalue())


@pytest.mark.parametrize("aside", [1, 64])
def test_large_files_in_both_halves(tmp_path, monkeypatch, aside):
    monkeypatch.setattr(tar, "processors", lambda: aside)
    entries = [reg(b"%d" % number, os.urandom(1_500_001)) for number in range(6)]
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", entries), NAME))
    store.export(NAME, out := io.BytesIO())
    told = []
    store.export(NAME, tmp_path / "out.tar", observer=told.append)
    assert (tmp_path / "out.tar").read_bytes() == out.getvalue()
    assert (told[-1].done, told[-1].total) == (9_000_006, 9_000_006)


def test_what_is_compressed_or_a_stream_is_written_by_one(store, tmp_path, monkeypatch):
    def refused(work):
        raise AssertionError

    monkeypatch.setattr(tar, "start", refused)
    store.export(NAME, tmp_path / "out.tar.gz")
    with open(tmp_path / "out", "ab") as out:
        out.write(b"before")
        out.flush()
        store.export(NAME, out)
    assert (tmp_path / "out").read_bytes()[:6] == b"before"


def test_where_there_can_be_no_second_process(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "start", lambda work: None)
    store.export(NAME, out := io.BytesIO())
    store.export(NAME, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == out.getvalue()


@pytest.mark.parametrize("middle", [0, 1000])
def test_damage_in_either_half(store, tmp_path, monkeypatch, middle):
    (file,) = (path for path in (tmp_path / "home").glob("layers/sha256:*/shared") if path.stat().st_mtime == 7)
    file.write_bytes(b"One file")
    cut_at(monkeypatch, middle)
    with pytest.raises(ContentError, match='"shared" is damaged') as caught:
        store.export(NAME, tmp_path / "out.tar")
    assert int(caught.value.exit_code) == 6
    assert sorted(os.listdir(tmp_path)) == ["home", "layout"]


def test_the_second_process_is_killed(store, tmp_path, monkeypatch):
    finish, here = tar._finish, os.getpid()

    def kill(archive, before):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(archive, before)

    monkeypatch.setattr(tar, "_finish", kill)
    with pytest.raises(LocalError, match="killed by signal 9") as caught:
        store.export(NAME, tmp_path / "out.tar")
    assert int(caught.value.exit_code) == 7
    assert sorted(os.listdir(tmp_path)) == ["home", "layout"]


def test_interrupted_while_it_waits_for_the_second(store, tmp_path, monkeypatch):
    here = os.getpid()

    def wait(archive, before):
        assert os.getpid() != here
        signal.pause()

    asked = []

    class Flag:
        """Set once only the other process is at work."""

        def is_set(self):
            asked.append(1)
            return len(asked) > 60

    monkeypatch.setattr(tar, "_finish", wait)
    with pytest.raises(Cancelled):
        store.export(NAME, tmp_path / "out.tar", cancel=Flag())
    assert sorted(os.listdir(tmp_path)) == ["home", "layout"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("middle", [1, 2])
def test_a_full_disk(tmp_path, monkeypatch, middle):
    entries = [reg(b"one", os.urandom(20 << 20)), reg(b"two", os.urandom(20 << 20))]
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", entries), NAME))
    cut_at(monkeypatch, middle)
    with mounted(tmp_path, "ext4", "24M", "-F", "-b", "4096") as where:
        with pytest.raises(LocalError) as caught:
            store.export(NAME, f"{where}/out.tar")
        assert int(caught.value.exit_code) == 7
        assert set(os.listdir(where)) <= {"lost+found"}
