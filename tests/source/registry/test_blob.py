"""Blobs: resumed, measured, verified by whoever reads them (rows B75 to B88)."""

from __future__ import annotations

import random
import threading

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import ContentError, NetworkError, NotFoundError
from msb_pull.ground.running import Cancel
from msb_pull.image.readers import BlobReader, DigestMismatch
from tests.support.fault_registry import Fault
from tests.support.registries import LAYER, describe, drain, hears_a_cancel, name

SIZE = len(LAYER)


@pytest.fixture
def image(registry):
    """The one image that most tests here read."""
    registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


def ranges(registry):
    return [x.headers.get("range") for x in registry.asked("/blobs/")]


def test_reads_in_pieces_of_any_size(registry, bench, image):
    source = bench().source(image)
    for size in (1000, 4096, 1 << 20):
        assert drain(source, describe(LAYER), 0, size) == LAYER


def test_reads_from_an_offset(registry, bench, image):
    assert bench().blob(image, LAYER, 1234) == LAYER[1234:]
    assert ranges(registry) == ["bytes=1234-"]


def test_a_complete_part_asks_for_nothing(registry, bench, image):
    assert bench().blob(image, LAYER, SIZE) == b""
    assert registry.count() == 0


def test_b75_a_flipped_byte_is_fetched_again_by_the_reader(registry, bench, image):
    """B75: the stream itself cannot judge; the reader above refuses, and a second pass from zero gets it right."""
    registry.script("/blobs/", Fault(flip=5000))
    source = bench().source(image)

    def read() -> bytes:
        reader = BlobReader(
            describe(LAYER).digest, SIZE, lambda at: source.open_blob(describe(LAYER), at),
            keep=None, progress=lambda n: None, cancel=Cancel(),
        )  # fmt: skip
        data = b"".join(reader.chunks())
        reader.verify()
        return data

    with pytest.raises(DigestMismatch):
        read()
    assert read() == LAYER


@pytest.mark.parametrize("fault", [Fault(extra=b"more"), Fault(content_length=SIZE - 10), Fault(body=LAYER[:-10])])
def test_b76_a_wrong_length_is_refused_before_reading(registry, bench, image, fault):
    registry.always("/blobs/", fault)
    with pytest.raises(ContentError, match="a different length"):
        bench().blob(image, LAYER)
    assert registry.count("/blobs/") == 1


def test_a_length_beside_chunks_does_not_count(registry, bench, image):
    registry.always("/blobs/", Fault(chunked=True, headers=[("Transfer-Encoding", "chunked"), ("Content-Length", "7")]))
    assert bench().blob(image, LAYER) == LAYER


def test_a_length_that_stands_twice_is_one_length(registry, bench, image):
    registry.always("/blobs/", Fault(headers=[("Content-Length", str(len(LAYER)))] * 2))
    assert bench().blob(image, LAYER) == LAYER


def test_two_lengths_are_none(registry, bench, image):
    registry.always("/blobs/", Fault(headers=[("Content-Length", str(len(LAYER))), ("Content-Length", "7")]))
    with pytest.raises(NetworkError):
        bench().blob(image, LAYER)


def test_b76_an_endless_body_is_left_after_one_byte_too_many(registry, bench, image):
    registry.always("/blobs/", Fault(endless=True))
    with pytest.raises(ContentError, match="longer than the manifest says"):
        bench().blob(image, LAYER)


def test_b76_a_short_body_without_length_is_no_success(registry, bench, image):
    registry.always("/blobs/", Fault(body=LAYER[:-10], chunked=True, ignore_range=True))
    with pytest.raises(NetworkError, match="broke off") as caught:
        bench(retries=2).blob(image, LAYER)
    assert f"{SIZE - 10} of {SIZE} bytes" in caught.value.cause


@pytest.mark.parametrize(
    ("trouble", "eased"),
    [(Fault(status=503), True), (Fault(status=429), True), (Fault(cut_after=5000), True), (None, False)],
)
def test_a_server_that_fails_is_asked_for_less_at_a_time(registry, bench, image, trouble, eased):
    if trouble is not None:
        registry.script("/blobs/", trouble)
    here = bench()
    assert here.blob(image, LAYER) == LAYER
    assert here.job.eased.is_set() is eased


def test_b77_a_short_read_is_noticed_and_resumed(registry, bench, image):
    registry.script("/blobs/", Fault(end_after=1000))
    assert bench().blob(image, LAYER) == LAYER
    assert ranges(registry) == [None, "bytes=1000-"]


def test_b78_cut_at_twenty_random_offsets(registry, bench, image):
    """B78: the budget is one of progress, so five retries outlast twenty cuts."""
    chance = random.Random(3)
    cuts = [Fault(cut_after=chance.randrange(5000, 20_000)) for _ in range(20)]
    registry.script("/blobs/", *cuts)
    here = bench()
    assert here.blob(image, LAYER) == LAYER
    assert registry.count("/blobs/") == 21
    assert [(x.attempt, x.retries) for x in here.of(events.Retrying)] == [(1, 5)] * 20
    assert max(here.time.waits) < 0.3


def test_b78_without_progress_it_ends(registry, bench, image):
    registry.always("/blobs/", Fault(cut_after=0))
    here = bench(retries=3)
    with pytest.raises(NetworkError) as caught:
        here.blob(image, LAYER)
    assert registry.host in caught.value.message
    assert here.time.waits == sorted(here.time.waits)


def test_b78_resume_asks_the_registry_again_and_not_the_expired_address(registry, other, bench, image):
    digest = str(describe(LAYER).digest)
    other.files[f"/signed/{digest}"] = (LAYER, "application/octet-stream")
    registry.always("/blobs/", Fault(redirect=f"{other.url}/signed/{digest}?sig=secret"))
    other.script("/signed/", Fault(cut_after=100_000))
    assert bench().blob(image, LAYER) == LAYER
    assert registry.count("/blobs/") == 2
    assert [x.headers.get("range") for x in other.asked("/signed/")] == [None, "bytes=100000-"]


def test_b79_a_server_that_ignores_range_is_read_past_what_is_there(registry, bench, image):
    registry.script("/blobs/", Fault(cut_after=150_000), Fault(ignore_range=True))
    assert bench().blob(image, LAYER) == LAYER
    assert bench().blob(image, LAYER, 777) == LAYER[777:]


@pytest.mark.parametrize(
    "value",
    [
        f"bytes 999-{SIZE - 1}/{SIZE}",
        f"bytes 1000-{SIZE - 1}/{SIZE + 1}",
        f"bytes 1000-{SIZE - 2}/{SIZE}",
        "",
        "bytes",
        f"bytes 1000-{SIZE - 1}",
        f"octets 1000-{SIZE - 1}/{SIZE}",
        f"bytes -1000-{SIZE - 1}/{SIZE}",
    ],
)
def test_b80_a_wrong_content_range_starts_over_without_range(registry, bench, image, value):
    registry.script("/blobs/", Fault(content_range=value))
    assert bench().blob(image, LAYER, 1000) == LAYER[1000:]
    assert ranges(registry) == ["bytes=1000-", None]


def test_b80_two_content_ranges_are_none(registry, bench, image):
    good = ("Content-Range", f"bytes 1000-{SIZE - 1}/{SIZE}")
    registry.script("/blobs/", Fault(headers=[good, good]))
    assert bench().blob(image, LAYER, 1000) == LAYER[1000:]
    assert ranges(registry) == ["bytes=1000-", None]


def test_b80_an_unknown_total_is_fine(registry, bench, image):
    registry.script("/blobs/", Fault(content_range=f"bytes 1000-{SIZE - 1}/*"))
    assert bench().blob(image, LAYER, 1000) == LAYER[1000:]
    assert registry.count("/blobs/") == 1


def test_b81_416_starts_over_without_range(registry, bench, image):
    registry.script("/blobs/", Fault(status=416))
    assert bench().blob(image, LAYER, 1000) == LAYER[1000:]
    assert ranges(registry) == ["bytes=1000-", None]


def test_b81_416_for_ever_ends(registry, bench, image):
    registry.always("/blobs/", Fault(status=416))
    with pytest.raises(NetworkError):
        bench(retries=1).blob(image, LAYER, 1000)
    assert registry.count("/blobs/") < 6


def test_b82_a_wrong_part_is_found_by_the_reader(registry, bench, image, tmp_path):
    """B82: a part file of zeros is hashed with the rest; the digest refuses it."""
    part = tmp_path / "part"
    part.write_bytes(bytes(SIZE))
    source = bench().source(image)
    with part.open("r+b") as file:
        reader = BlobReader(
            describe(LAYER).digest, SIZE, lambda at: source.open_blob(describe(LAYER), at),
            keep=file.fileno(), progress=lambda n: None, cancel=Cancel(),
        )  # fmt: skip
        assert sum(len(x) for x in reader.chunks()) == SIZE
        with pytest.raises(DigestMismatch):
            reader.verify()


def test_b83_an_added_content_encoding_is_taken_off(registry, bench, image):
    registry.script("/blobs/", Fault(gzip=True))
    assert bench().blob(image, LAYER) == LAYER
    assert registry.asked("/blobs/")[0].headers["accept-encoding"] == "identity"


def test_b83_a_content_encoding_that_names_the_blob_itself_is_left_alone(registry, bench, image):
    registry.script("/blobs/", Fault(headers={"Content-Encoding": "gzip"}))
    assert bench().blob(image, LAYER) == LAYER


def test_b83_where_only_the_digest_can_tell_the_second_pass_decodes(registry, bench, image):
    registry.always("/blobs/", Fault(gzip=True, chunked=True))
    source = bench().source(image)
    with pytest.raises((DigestMismatch, NetworkError)):
        first = drain(source, describe(LAYER))
        if first != LAYER:
            raise DigestMismatch("as the reader above would say")
    assert drain(source, describe(LAYER)) == LAYER


def test_what_was_made_shorter_on_the_way_is_decoded_in_the_second_pass(registry, bench, image):
    # As proxies do it that compress whatever looks like text.
    text = b'{"some": "text"}' * 5000
    registry.add_blob(text)
    registry.always("/blobs/", Fault(gzip=True, chunked=True))
    source = bench().source(image)
    with pytest.raises(DigestMismatch, match="shorter"):
        drain(source, describe(text))
    assert drain(source, describe(text)) == text
    assert registry.count("/blobs/") == 2


def test_b83_an_encoded_blob_is_resumed_from_its_start(registry, bench, image):
    registry.script("/blobs/", Fault(gzip=True, cut_after=100_000), Fault(gzip=True))
    registry.always("/blobs/", Fault(gzip=True, ignore_range=True))
    assert bench().blob(image, LAYER) == LAYER


def test_b84_chunked_without_length(registry, bench, image):
    registry.always("/blobs/", Fault(chunked=True))
    here = bench()
    assert here.blob(image, LAYER) == LAYER
    assert here.blob(image, LAYER, 100) == LAYER[100:]
    assert len({x.connection for x in registry.asked("/blobs/")}) == 1


def test_b85_an_expired_address_counts_as_a_retry(registry, other, bench, image):
    digest = str(describe(LAYER).digest)
    other.files[f"/signed/{digest}"] = (LAYER, "application/octet-stream")
    registry.always("/blobs/", Fault(redirect=f"{other.url}/signed/{digest}"))
    other.script("/signed/", Fault(status=403, body=b"<Error>Request has expired</Error>"))
    here = bench()
    assert here.blob(image, LAYER) == LAYER
    assert registry.count("/blobs/") == 2
    assert len(here.of(events.Retrying)) == 1


def test_b88_inline_data_is_verified_and_used(registry, bench, image):
    assert bench().blob(image, b"tiny", data=b"tiny") == b"tiny"
    assert registry.count() == 0


def test_b88_wrong_inline_data_is_left_out(registry, bench, image):
    registry.add_blob(b"tiny")
    assert bench().blob(image, b"tiny", data=b"tony") == b"tiny"


def test_b45_a_stalled_body_is_resumed(registry, bench, image):
    registry.script("/blobs/", Fault(stall_after=100_000))
    here = bench(timeout=0.4)
    assert here.blob(image, LAYER) == LAYER
    assert ranges(registry) == [None, "bytes=100000-"]
    assert here.of(events.Retrying)[0].reason == "no answer for too long (0.4 seconds)"


def test_b45_a_trickle_is_as_good_as_broken(registry, bench, image):
    registry.script("/blobs/", Fault(rate=200))
    here = bench()
    here.time.step = 20
    assert here.blob(image, LAYER) == LAYER
    assert "less than 1024 bytes" in here.of(events.Retrying)[0].reason


def test_b46_a_cancel_is_heard_while_nothing_arrives(registry, bench, image):
    registry.script("/blobs/", Fault(stall_after=1000))
    here = bench()
    hears_a_cancel(here, lambda: here.blob(image, LAYER))


def test_b46_a_cancel_is_heard_before_the_first_byte_of_an_answer(registry, bench, image):
    registry.script("/blobs/", Fault(delay=30))
    here = bench()
    hears_a_cancel(here, lambda: here.blob(image, LAYER))


def test_b46_a_cancel_is_heard_while_waiting_for_another_try(registry, bench, image):
    registry.always("/blobs/", Fault(status=503))
    here = bench(real_time=True)
    hears_a_cancel(here, lambda: here.blob(image, LAYER))


def test_b87_slots_come_free_when_a_stream_is_left_early(registry, bench):
    """B87: 40 blobs, each abandoned halfway, and every one can still be read; no connection is held."""
    blobs = [random.Random(n).randbytes(30_000) for n in range(40)]
    registry.add_image("acme/app", "1", blobs)
    source = bench().source(name(registry))
    for data in blobs:
        with source.open_blob(describe(data), 0) as stream:
            stream.read(1000)
    assert [drain(source, describe(x)) for x in blobs] == blobs


def test_connections_are_used_again(registry, bench, image):
    here = bench()
    for _ in range(5):
        assert here.blob(image, LAYER) == LAYER
    assert len({x.connection for x in registry.requests}) == 1


def test_many_threads_read_at_once(registry, bench):
    blobs = [random.Random(n).randbytes(200_000) for n in range(16)]
    registry.add_image("acme/app", "1", blobs)
    registry.script("/blobs/", *[Fault(cut_after=50_000)] * 8)
    source, got = bench().source(name(registry)), {}

    def read(number: int) -> None:
        got[number] = drain(source, describe(blobs[number]))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [got[n] for n in range(16)] == blobs


def test_a_missing_blob_is_not_found(registry, bench, image):
    with pytest.raises(NotFoundError) as caught:
        bench().blob(image, b"never stored")
    assert "BLOB_UNKNOWN" in caught.value.cause


def test_limit_rate_holds_for_all_threads_together(registry, bench):
    blobs = [random.Random(n).randbytes(100_000) for n in range(4)]
    registry.add_image("acme/app", "1", blobs)
    here = bench(limit_rate=400_000)
    source = here.source(name(registry))
    threads = [threading.Thread(target=drain, args=(source, describe(x))) for x in blobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # A tenth of a second is free. Waits side by side count one by one here, so that there is no upper bound.
    assert here.time.passed > 0.899


def test_limit_rate_waits_no_longer_than_it_says(registry, bench, image):
    here = bench(limit_rate=SIZE * 2)
    for _ in range(4):
        here.blob(image, LAYER)
    assert 1.899 < here.time.passed < 2.001
