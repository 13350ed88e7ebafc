"""A step of the pipeline in a thread of its own."""

from __future__ import annotations

import threading

import pytest

from msb_pull.ground.pools import DEPTH, Handoff

pytestmark = pytest.mark.timeout(30)


def test_pieces_are_worked_off_in_order():
    seen: list[bytes] = []
    with Handoff(seen.append) as handoff:
        for number in range(500):
            handoff.put(b"%d" % number)
        handoff.finish()
    assert seen == [b"%d" % number for number in range(500)]


def test_no_more_than_a_few_pieces_wait():
    started, go_on = threading.Semaphore(0), threading.Event()

    def work(piece: bytes) -> None:
        started.release()
        assert go_on.wait(20)

    with Handoff(work) as handoff:
        given: list[int] = []

        def give() -> None:
            for number in range(3 * DEPTH):
                handoff.put(bytes(1))
                given.append(number)

        giving = threading.Thread(target=give)
        giving.start()
        assert started.acquire(timeout=20)
        giving.join(0.3)
        assert giving.is_alive()
        assert len(given) <= DEPTH + 1
        go_on.set()
        giving.join(20)
        handoff.finish()
    assert len(given) == 3 * DEPTH


def test_what_the_work_raises_reaches_the_giver():
    def work(piece: bytes) -> None:
        if piece == b"bad":
            raise ValueError("bad piece")

    with Handoff(work) as handoff:
        handoff.put(b"good")
        with pytest.raises(ValueError, match="bad piece"):
            for _ in range(2 * DEPTH):
                handoff.put(b"bad")
    with Handoff(work) as handoff, pytest.raises(ValueError, match="bad piece"):
        handoff.put(b"bad")
        handoff.finish()


def test_leaving_drops_what_waits():
    held, go_on, seen = threading.Event(), threading.Event(), []

    def work(piece: bytes) -> None:
        held.set()
        assert go_on.wait(20)
        seen.append(piece)

    def leave() -> None:
        with Handoff(work) as handoff:
            for number in range(DEPTH):
                handoff.put(b"%d" % number)
            assert held.wait(20)
            threading.Timer(0.1, go_on.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert seen == [b"0"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("handoff")]
