"""A store with two images, made once."""

from __future__ import annotations

import pytest

from tests.support.archive import reg
from tests.support.exports import layout
from tests.support.podman import BASE, A, B, copied, pull


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A store with two images that share their lowest layer, and the layout ``a`` of the first."""
    place = tmp_path_factory.mktemp("made")
    for name, content in ((A, "a"), (B, "b")):
        pull(place / "home", name, layout(place / content, BASE, [reg(b"etc/own", content.encode())]))
    return place


@pytest.fixture
def home(made, tmp_path):
    return copied(made / "home", tmp_path / "home")
