"""Places for the program to work in: one for each test, or one for all tests of a module."""

from __future__ import annotations

import pytest

from tests.support.contract import Place
from tests.support.fault_registry import FaultRegistry


@pytest.fixture
def place(tmp_path):
    with FaultRegistry() as registry:
        yield Place(tmp_path, registry)


@pytest.fixture(scope="module")
def one_place(tmp_path_factory):
    with FaultRegistry() as registry:
        yield Place(tmp_path_factory.mktemp("place"), registry)


@pytest.fixture
def shared(one_place):
    """Configured as it was made, whatever the tests before have written."""
    one_place.configure()
    return one_place
