"""A staging directory among things that must never change."""

from __future__ import annotations

import os

import pytest

from tests.support.archive import END, everything
from tests.support.records import Layer


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


@pytest.fixture
def make(tmp_path):
    """Builds layers of archives; gives each with its tar stream."""
    made: list[Layer] = []

    def build(*parts: bytes, end: bytes = END) -> tuple[Layer, bytes]:
        stream = b"".join(parts) + end
        made.append(Layer(tmp_path / str(len(made)), stream))
        return made[-1], stream

    yield build
    for layer in made:
        os.close(layer.root)
