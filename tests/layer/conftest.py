"""A staging directory among things that must never change."""

from __future__ import annotations

import os

import pytest

from tests.support.archive import everything


@pytest.fixture
def victim(tmp_path):
    """A directory beside the layer whose every fact is compared after the test."""
    folder = tmp_path / "outer" / "victim"
    folder.mkdir(parents=True)
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o400)
    (folder / "empty").mkdir()
    evil = tmp_path / "outer" / "layer-evil"
    evil.mkdir()
    (evil / "file").write_text("sibling")
    os.utime(folder, ns=(5, 5))
    before = [everything(folder), everything(evil)]
    yield folder
    assert [everything(folder), everything(evil)] == before
    assert sorted(x.name for x in folder.parent.iterdir()) in (
        ["layer", "layer-evil", "victim"],
        ["layer-evil", "victim"],
    )


@pytest.fixture
def layer(victim):
    """Where a layer is unpacked: beside the victim, and beside a directory whose name only begins the same."""
    return victim.parent / "layer"
