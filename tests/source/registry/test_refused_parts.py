"""A part that is refused costs a download of the whole, and never the image; more connections cost nothing at all."""

from __future__ import annotations

import random

import pytest

from msb_pull.ground.errors import MsbPullError, NetworkError
from msb_pull.source.registry import parallel
from tests.support.fault_auth import errors
from tests.support.fault_registry import Fault
from tests.support.raw import RawServer, answer, read_head
from tests.support.registries import LAYER, describe, name

SIZE = len(LAYER)


def ranges(registry):
    return [x.headers.get("range") for x in registry.asked("/blobs/")]


def refuse_parts(registry, fault):
    """Whoever asks for a part meets this fault, whoever asks for the whole gets it."""
    plain = registry.next_fault

    def next_fault(request):
        return fault if "range" in request.headers else plain(request)

    registry.next_fault = next_fault


@pytest.fixture
def image(registry):
    registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


REFUSALS = {
    **{str(status): Fault(status=status, body=b"no") for status in (400, 403, 404, 405, 416, 500, 501, 502, 503)},
    "401": Fault(status=401),
    "denied": Fault(status=403, body=errors("DENIED", "no ranges here")),
    "another range": Fault(content_range=f"bytes 0-{SIZE - 1}/{SIZE}"),
    "no range": Fault(content_range=""),
    "a different length": Fault(content_length=7),
    "a page": Fault(headers={"Content-Type": "text/html"}, content_length=7),
    "hangs up": Fault(drop=True),
    "nothing of it": Fault(cut_after=0),
    "ends at once": Fault(end_after=0),
}


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS)
def test_a_resume_that_is_refused_becomes_a_whole_download(registry, bench, image, fault):
    refuse_parts(registry, fault)
    assert bench(retries=2).blob(image, LAYER, 1000) == LAYER[1000:]
    assert ranges(registry)[-1] is None
    assert ranges(registry).count(None) == 1


@pytest.mark.parametrize("status", [403, 501])
def test_a_blob_that_broke_off_is_fetched_whole_where_parts_are_refused(registry, bench, image, status):
    refuse_parts(registry, Fault(status=status))
    registry.script("/blobs/", Fault(cut_after=100_000))
    assert bench().blob(image, LAYER) == LAYER
    assert ranges(registry) == [None, "bytes=100000-", None]


def test_a_later_run_gets_past_a_partial_download(registry, bench, image):
    refuse_parts(registry, Fault(status=403))
    for _ in range(2):
        assert bench().blob(image, LAYER, 100_000) == LAYER[100_000:]


def test_where_the_whole_is_refused_too_that_is_the_error(registry, bench, image):
    registry.always("/blobs/", Fault(status=403))
    with pytest.raises(MsbPullError, match="access denied"):
        bench().blob(image, LAYER, 1000)
    assert ranges(registry) == ["bytes=1000-", None]


def test_a_registry_that_asks_for_patience_is_not_asked_for_the_whole(registry, bench, image):
    registry.always("/blobs/", Fault(status=429))
    with pytest.raises(NetworkError, match="is rate limiting requests"):
        bench(retries=1).blob(image, LAYER, 1000)
    assert set(ranges(registry)) == {"bytes=1000-"}


def test_a_registry_that_is_away_is_not_asked_twice_as_often(bench):
    here = bench(retries=2, mirrors={})
    with pytest.raises(NetworkError):
        here.blob("127.0.0.1:9/acme/app:1", LAYER, 1000)
    assert here.time.waits == []


def test_a_foreign_address_that_refuses_parts_serves_the_whole(registry, other, bench, image):
    digest = str(describe(LAYER).digest)
    other.files["/layer"] = (LAYER, "application/octet-stream")
    refuse_parts(other, Fault(status=403))
    registry.always(f"/blobs/{digest}", Fault(status=404))
    got = bench().blob(image, LAYER, 1000, urls=(f"{other.url}/layer",))
    assert got == LAYER[1000:]


# Several connections


DATA = random.Random(11).randbytes(3_000_000)


@pytest.fixture
def large(registry, monkeypatch):
    """A blob of a slow server for which several connections are tried, on small segments."""
    monkeypatch.setattr(parallel, "SEGMENT", 100_000)
    monkeypatch.setattr(parallel, "_WATCH", 0.1)
    monkeypatch.setattr(parallel, "_TRIAL", 0.2)
    registry.connection_rate = 2_000_000
    registry.add_blob(DATA)
    return name(registry)


PART_FAULTS = {
    **{str(status): Fault(status=status) for status in (400, 401, 403, 404, 416, 429, 500, 501, 503)},
    "the whole": Fault(ignore_range=True),
    "another range": Fault(content_range="bytes 0-9/10"),
    "hangs up": Fault(drop=True),
    "says nothing": Fault(stall_after=0),
    "breaks off": Fault(cut_after=0),
    "encoded": Fault(headers={"Content-Encoding": "gzip"}, content_length=7),
}


@pytest.mark.parametrize("fault", PART_FAULTS.values(), ids=PART_FAULTS)
def test_the_single_connection_is_kept_until_a_part_has_come(registry, bench, large, fault):
    refuse_parts(registry, fault)
    here = bench(real_time=True, retries=0)
    assert here.blob(large, DATA) == DATA
    assert "trying 4 connections" in here.texts()
    assert ranges(registry).count(None) == 1
    assert not [x for x in ranges(registry) if x and x.endswith("-")]


def test_a_place_that_gave_no_part_is_not_tried_again(registry, bench, large):
    refuse_parts(registry, Fault(status=403))
    here = bench(real_time=True)
    for _ in range(2):
        assert here.blob(large, DATA) == DATA
    assert here.texts().count("trying 4 connections") == 1


def test_parts_that_come_late_do_not_hold_up_the_single_connection(registry, bench, large):
    refuse_parts(registry, Fault(delay=0.5))
    here = bench(real_time=True)
    assert here.blob(large, DATA) == DATA
    assert "back to one" not in here.texts() or "no gain" in here.texts()


def test_a_single_connection_that_breaks_while_others_are_tried_is_resumed(registry, bench, large):
    registry.script("/blobs/", Fault(cut_after=500_000))
    assert bench(real_time=True).blob(large, DATA) == DATA


def test_parts_that_fail_once_they_are_in_use_lead_back_to_one_connection(registry, bench, large):
    """Parts came, so the single connection is gone; then every part is refused, and so is its resume."""
    asked = []

    def next_fault(request):
        asked.append(request)
        return Fault(status=403) if "range" in request.headers and len(asked) > 12 else None

    registry.next_fault = next_fault
    assert bench(real_time=True).blob(large, DATA) == DATA
    assert ranges(registry)[-1] is None


def test_a_part_begins_where_it_was_asked_for_whatever_came_before(registry, bench, large):
    """Every reader's step, from every place of the blob."""
    here = bench(real_time=True)
    for offset in (0, 1, 99_999, 100_000, 1_234_567):
        assert here.blob(large, DATA, offset) == DATA[offset:]


def test_a_server_that_hangs_up_on_every_range_ends_with_an_error_where_the_whole_breaks_too(bench):
    """One last try for the whole, no more: nothing here goes on for ever."""
    content = bytes(5000)

    def talk(connection, number):
        if "Range" not in read_head(connection):
            connection.sendall(answer("200 OK", content)[:-100])

    with RawServer(talk) as server:
        with pytest.raises(NetworkError, match="broke off"):
            bench(plain_http=frozenset({server.host}), retries=2).blob(f"{server.host}/a/b:1", content, 10)
        assert server.count < 20
