"""A hash that a thread of its own works on is the same, and no thread stays behind."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from msb_pull.layer.hashing import Hashing

PIECES = [os.urandom(size) for size in (0, 1, 63, 64, 5000, 1 << 18) * 20]
RIGHT = hashlib.sha256(b"".join(PIECES)).hexdigest()


def hashed(*, beside: bool = True) -> str:
    with Hashing(hashlib.sha256(), beside=beside) as hashing:
        for piece in PIECES:
            hashing.update(piece)
        return hashing.hexdigest()


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_the_digest_is_that_of_all_pieces_in_order():
    assert hashed() == hashed(beside=False) == RIGHT
    assert "hashing" not in names()


def test_a_buffer_may_be_filled_anew_at_once():
    buffer = bytearray(1 << 18)
    with Hashing(hashlib.sha256(), beside=True) as hashing:
        for number in range(50):
            buffer[:] = bytes([number]) * len(buffer)
            hashing.update(memoryview(buffer))
        found = hashing.hexdigest()
    assert found == hashlib.sha256(b"".join(bytes([n]) * len(buffer) for n in range(50))).hexdigest()


def test_without_a_thread_more_it_hashes_all_the_same(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert hashed() == RIGHT


def test_the_thread_ends_with_an_error_of_the_block():
    with pytest.raises(ZeroDivisionError), Hashing(hashlib.sha256(), beside=True) as hashing:
        for piece in PIECES:
            hashing.update(piece)
        assert "hashing" in names()
        raise ZeroDivisionError
    assert "hashing" not in names()


def test_the_thread_ends_with_a_reader_that_stops():
    def pieces():
        with Hashing(hashlib.sha256(), beside=True) as hashing:
            for piece in PIECES:
                hashing.update(piece)
                yield piece

    reading = pieces()
    next(reading)
    assert "hashing" in names()
    reading.close()
    assert "hashing" not in names()
