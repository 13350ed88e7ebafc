"""Exports that a kernel mounts: EROFS and SquashFS images hold what umoci makes of the image."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest

from msb_pull import UsageError
from msb_pull.work.export.export import ExportOptions
from tests.support.exports import NAME, all_facts, by_umoci, layout, store_of
from tests.support.tools import lacking, need


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "home", (layout(tmp_path / "layout"), NAME))


def mounted_facts(image: Path, kind: str, where: Path) -> object:
    """Everything of a tree as the kernel shows it."""
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", kind, "-o", "loop,ro", str(image), str(where)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lacking(f"cannot mount {kind}: {done.stderr.strip()}")
    try:
        return all_facts(where)
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_erofs_is_what_umoci_makes_of_the_image(store, tmp_path):
    need("umoci")
    store.export(NAME, tmp_path / "x.erofs")
    theirs = all_facts(by_umoci(tmp_path / "layout", "1", tmp_path / "theirs"))
    assert mounted_facts(tmp_path / "x.erofs", "erofs", tmp_path / "mounted") == theirs


def test_erofs_has_the_same_bytes_from_any_store(store, tmp_path):
    other = store_of(tmp_path / "other", (tmp_path / "layout", NAME))
    before = os.umask(0o077)
    try:
        other.export(NAME, tmp_path / "b.erofs")
    finally:
        os.umask(before)
    store.export(NAME, tmp_path / "a.erofs")
    assert (tmp_path / "a.erofs").read_bytes() == (tmp_path / "b.erofs").read_bytes()


def test_squashfs_holds_the_tree(store, tmp_path):
    need("tar2sqfs")
    store.export(NAME, tmp_path / "x.squashfs")
    assert (tmp_path / "x.squashfs").read_bytes()[:4] == b"hsqs"


@pytest.mark.parametrize("form", ["erofs", "squashfs"])
def test_neither_goes_to_a_stream(store, form):
    with io.BytesIO() as out, pytest.raises(UsageError, match=f"{form} cannot be written to a stream"):
        store.export(NAME, out, ExportOptions(format=form))
