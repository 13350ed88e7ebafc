"""Fixtures of the tests of this room."""

from __future__ import annotations

import gc
import os

import pytest
import trustme

from tests.support.fault_registry import FaultRegistry
from tests.support.local_images import Local
from tests.support.registries import LAYER, make_bench, server_context


@pytest.fixture
def registry():
    """A scripted registry on plain HTTP."""
    with FaultRegistry() as server:
        yield server


@pytest.fixture
def other():
    """A second one: a mirror, a content network, a token service."""
    with FaultRegistry() as server:
        yield server


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture
def secure(authority):
    """A registry that speaks TLS with a certificate for 127.0.0.1 from an authority nobody knows."""
    with FaultRegistry(tls=server_context(authority)) as server:
        server.add_image("acme/app", "1", [LAYER])
        yield server


@pytest.fixture
def bench():
    """Makes clients and closes them: ``bench(credentials, retries=2)``."""
    made = []

    def make(*arguments, **named):
        made.append(make_bench(*arguments, **named))
        return made[-1]

    yield make
    for item in made:
        item.client.close()
    # A socket that nobody closed is reported as an error when it is collected: do that in the test that is to blame.
    gc.collect()


@pytest.fixture
def local(tmp_path):
    """Opens local sources with a scratch folder, in which nothing may be left; every file must be closed again."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = len(os.listdir("/dev/fd"))
    opener = Local(scratch)
    yield opener
    for source in opener.opened:
        source.close()
        source.close()
    assert os.listdir(scratch) == []
    # Fewer is possible: what an earlier test left behind may be collected in this one.
    assert len(os.listdir("/dev/fd")) <= before
