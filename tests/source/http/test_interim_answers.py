"""Interim answers (RFC 9110 15.2) before the one that counts."""

from __future__ import annotations

import pytest

from msb_pull.ground.errors import NetworkError
from tests.support.raw import RawServer, pass_on
from tests.support.registries import LAYER

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
INTERIM = [
    HINTS,
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    HINTS + b"HTTP/1.1 100 x\r\n\r\n",
]


@pytest.fixture
def behind(registry):
    """A registry behind something that says the given bytes before each answer."""
    registry.add_image("acme/app", "1", [LAYER])
    return lambda before: RawServer(pass_on(registry.port, before))


@pytest.mark.parametrize("before", INTERIM, ids=["103", "100", "102", "several"])
def test_interim_answers_are_read_over(bench, behind, before):
    with behind(before) as server:
        here = bench(plain_http=frozenset({server.host}))
        here.resolve(f"{server.host}/acme/app:1")
        assert here.blob(f"{server.host}/acme/app:1", LAYER, 1000) == LAYER[1000:]


def test_interim_answers_without_an_end_are_an_error(bench, behind):
    with behind(HINTS * 1000) as server, pytest.raises(NetworkError) as caught:
        bench(plain_http=frozenset({server.host}), retries=0).resolve(f"{server.host}/acme/app:1")
    assert "interim answers" in caught.value.cause


def test_switching_protocols_that_nobody_asked_for_is_an_error(bench, behind):
    with behind(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n") as server, pytest.raises(NetworkError):
        bench(plain_http=frozenset({server.host}), retries=0).resolve(f"{server.host}/acme/app:1")
