"""Several connections for one blob: only where they bring something, and never at the cost of what is read."""

from __future__ import annotations

import random
import threading

import pytest

from msb_pull.source.registry import parallel
from tests.support.fault_auth import TokenService
from tests.support.fault_registry import Fault
from tests.support.registries import describe, drain, hears_a_cancel, name

DATA = random.Random(5).randbytes(3_000_000)
DIGEST = str(describe(DATA).digest)
SLOW = 2_000_000


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Decisions within tenths of seconds, on small segments."""
    monkeypatch.setattr(parallel, "SEGMENT", 100_000)
    monkeypatch.setattr(parallel, "_WATCH", 0.15)
    monkeypatch.setattr(parallel, "_TRIAL", 0.2)


@pytest.fixture
def image(registry):
    registry.blobs[DIGEST] = DATA
    registry.connection_rate = SLOW
    return name(registry)


def connections(registry):
    return len({x.connection for x in registry.asked("/blobs/")})


def test_a_server_that_limits_each_connection(registry, bench, image):
    here = bench(real_time=True)
    assert here.blob(image, DATA) == DATA
    assert connections(registry) >= 4
    assert "trying 4 connections" in here.texts()
    assert "back to one" not in here.texts()


def test_one_connection_where_that_is_what_was_wanted(registry, bench, image):
    assert bench(real_time=True, connections=1).blob(image, DATA) == DATA
    assert connections(registry) == 1


def test_a_limit_for_all_together_is_not_beaten_and_not_tried_twice(registry, bench, image):
    registry.connection_rate = None
    registry.set_total_rate(SLOW)
    here = bench(real_time=True)
    assert here.blob(image, DATA) == DATA
    assert "no gain; back to one connection" in here.texts()
    before = here.texts().count("trying")
    assert here.blob(image, DATA, 1_000_000) == DATA[1_000_000:]
    assert here.texts().count("trying") == before == 1


def test_a_fast_server_is_left_alone(registry, bench, image):
    registry.connection_rate = None
    here = bench(real_time=True)
    assert here.blob(image, DATA) == DATA
    assert connections(registry) == 1


def test_a_limited_rate_is_left_alone(registry, bench, image):
    here = bench(real_time=True, limit_rate=2 * SLOW)
    assert here.blob(image, DATA) == DATA
    assert connections(registry) == 1


@pytest.mark.parametrize(
    "fault", [Fault(status=404), Fault(status=429), Fault(cut_after=20_000), Fault(ignore_range=True), Fault(gzip=True)]
)
def test_parts_that_fail_bring_back_the_single_connection(registry, bench, image, fault):
    registry.script("/blobs/", Fault(), Fault(), fault)
    here = bench(real_time=True)
    assert here.blob(image, DATA) == DATA
    assert "back to one connection" in here.texts()


def test_a_server_that_gives_no_parts_is_not_asked_for_any(registry, bench, image):
    registry.accept_ranges = False
    registry.always("/blobs/", Fault(headers={"Accept-Ranges": "none"}))
    assert bench(real_time=True).blob(image, DATA) == DATA
    assert connections(registry) == 1


def test_parts_go_straight_to_where_the_blob_was_found(registry, other, bench, image):
    other.files[f"/signed/{DIGEST}"] = (DATA, "application/octet-stream")
    other.connection_rate = SLOW
    registry.always("/blobs/", Fault(redirect=f"{other.url}/signed/{DIGEST}"))
    other.always("/signed/", Fault(headers={"Accept-Ranges": "bytes"}))
    TokenService(registry)
    assert bench(real_time=True).blob(image, DATA) == DATA
    assert 2 <= registry.count("/blobs/") < 12
    assert other.count("/signed/") > 12
    assert {x.headers.get("authorization") for x in other.requests} == {None}


def test_an_expired_address_leads_back_to_the_registry(registry, other, bench, image):
    other.files[f"/signed/{DIGEST}"] = (DATA, "application/octet-stream")
    other.connection_rate = SLOW
    registry.always("/blobs/", Fault(redirect=f"{other.url}/signed/{DIGEST}"))
    good = Fault(headers={"Accept-Ranges": "bytes"})
    other.script("/signed/", *[good] * 8, Fault(status=403))
    other.always("/signed/", good)
    here = bench(real_time=True)
    assert here.blob(image, DATA) == DATA
    assert "back to one connection" not in here.texts()


def test_a_cancel_is_heard(registry, bench, image):
    registry.script("/blobs/", *[Fault()] * 4)
    registry.always("/blobs/", Fault(stall_after=10))
    here = bench(real_time=True)
    hears_a_cancel(here, lambda: here.blob(image, DATA), after=0.8)


def test_leaving_early_ends_the_threads(registry, bench, image):
    here = bench(real_time=True)
    with here.source(image).open_blob(describe(DATA), 0) as stream:
        while "trying" not in here.texts():
            stream.read(65536)
        stream.read(65536)
    assert not [x for x in threading.enumerate() if x.name == "part"]
    assert here.client.downloads.connections.take(99) == 8


def test_several_blobs_share_the_connections(registry, bench, image):
    others = [random.Random(n).randbytes(len(DATA)) for n in range(3)]
    for data in others:
        registry.add_blob(data)
    here = bench(real_time=True, connections=5)
    source, got = here.source(image), {}

    def read(number):
        got[number] = drain(source, describe(others[number]))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [got[n] for n in range(3)] == others
    assert here.client.downloads.connections.take(99) == 5


def test_a_rate_that_drops_is_no_reason_to_fail(registry, bench, image):
    """Resumed in the middle of a trial: what the parts had is not asked for again."""
    registry.script("/blobs/", Fault(cut_after=500_000))
    assert bench(real_time=True).blob(image, DATA) == DATA
