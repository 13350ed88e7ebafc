"""Where an export may go, and what it never takes away."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from msb_pull import ExportOptions, LocalError, UsageError, events
from tests.support.exports import NAME, layout, needs_root, store_of

FORCED = ExportOptions(force=True, paths=["su"])


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "home", (layout(tmp_path / "layout"), NAME))


@pytest.fixture
def bound(tmp_path):
    """Folders with what the user needs in another one, bound into each by name; unbound at the end."""
    mounted: list[Path] = []

    def bind(at: Path) -> Path:
        needed = tmp_path / "needed"
        needed.mkdir()
        (needed / "file").write_text("needed")
        at.mkdir(parents=True)
        done = subprocess.run(["mount", "--bind", needed, at], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        mounted.append(at)
        return needed

    yield bind
    for at in mounted:
        subprocess.run(["umount", at], check=True, timeout=60)


@needs_root
@pytest.mark.parametrize("name", ["mnt", "with a space", "back\\slash"])
def test_a_folder_with_something_mounted_is_not_replaced(store, tmp_path, bound, name):
    needed = bound(tmp_path / "out" / name)
    with pytest.raises(UsageError, match="cannot be replaced, it holds") as caught:
        store.export(NAME, tmp_path / "out", FORCED)
    assert caught.value.hint == "unmount that first"
    assert (needed / "file").read_text() == "needed"


@needs_root
def test_nor_one_where_something_is_mounted_meanwhile(store, tmp_path, bound):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    needed: list[Path] = []

    def mount(event: events.Event) -> None:
        if isinstance(event, events.ExportProgress) and not needed:
            needed.append(bound(tmp_path / "out" / "mnt"))

    with pytest.raises(UsageError, match="cannot be replaced, it holds"):
        store.export(NAME, tmp_path / "out", FORCED, observer=mount)
    assert (needed[0] / "file").read_text() == "needed"
    assert sorted(os.listdir(tmp_path)) == ["home", "layout", "needed", "out"]


@pytest.mark.parametrize("out", ["out", "out.tar"])
def test_what_comes_to_stand_there_meanwhile_stays(store, tmp_path, out):
    place = tmp_path / out
    new = place if place.suffix else place / "file"

    def write(event: events.Event) -> None:
        new.parent.mkdir(exist_ok=True)
        new.write_text("new")

    with pytest.raises(LocalError):
        store.export(NAME, place if place.suffix else f"{place}/", observer=write)
    assert new.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["home", "layout", out]


def test_the_current_folder_is_not_replaced_though_empty(store, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(UsageError, match="cannot be replaced"):
        store.export(NAME, ".")


def test_a_name_of_255_bytes(store, tmp_path):
    name = "\N{HONEYBEE}" * 62 + "xxx.tar"
    store.export(NAME, tmp_path / name, FORCED)
    assert sorted(os.listdir(tmp_path)) == ["home", "layout", name]


@pytest.mark.parametrize("out", ["out.tar", "out.erofs"])
def test_a_file_that_comes_at_the_last_moment_stays(store, tmp_path, monkeypatch, out):
    def just_before(call):
        def made(*names: object, **options: object) -> None:
            if Path(str(names[1])) == tmp_path / out:
                (tmp_path / out).write_text("another's")
            call(*names, **options)

        return made

    for name in ("link", "replace", "rename"):
        monkeypatch.setattr(os, name, just_before(getattr(os, name)))
    with pytest.raises(LocalError, match="File exists"):
        store.export(NAME, tmp_path / out)
    assert (tmp_path / out).read_text() == "another's"
    assert sorted(os.listdir(tmp_path)) == ["home", "layout", out]


def test_where_the_file_system_knows_no_links(store, tmp_path, monkeypatch):
    def refuse(*names: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store.export(NAME, tmp_path / "out.tar")
    assert sorted(os.listdir(tmp_path)) == ["home", "layout", "out.tar"]
