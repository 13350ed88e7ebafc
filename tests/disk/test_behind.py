"""Writing behind: what was taken arrives whole and in order, and errors arrive where they can be told."""

from __future__ import annotations

import random
import threading

import pytest

from msb_pull.disk.behind import BUFFER, Behind

ASIDE = pytest.mark.parametrize("aside", [False, True])


class Sink:
    """Keeps what it is given; fails once ``room`` is spent."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.data = bytearray()
        self.calls = 0
        self.threads: set[str] = set()
        self._room = room

    def write(self, data: memoryview) -> None:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        if len(self.data) + len(data) > self._room:
            raise OSError(28, "No space left on device")
        self.data += data


@ASIDE
def test_all_arrives_in_order(aside):
    chance, sink, wanted = random.Random(7), Sink(), bytearray()
    with Behind(sink.write, aside=aside) as behind:
        for size in (0, 1, 511, BUFFER - 512, BUFFER, 1, 3 * BUFFER + 5, 100_000, *range(700, 730)):
            piece = chance.randbytes(size)
            behind.put(piece)
            behind.zeros(size % 1000)
            wanted += piece + bytes(size % 1000)
            assert behind.size == len(wanted)
    assert sink.data == wanted
    assert sink.calls <= len(wanted) // BUFFER + 2
    assert sink.threads == ({"writing"} if aside else {threading.current_thread().name})


@ASIDE
def test_what_is_read_into_its_room(aside):
    sink, wanted = Sink(), bytearray()
    with Behind(sink.write, aside=aside) as behind:
        for size in (10, BUFFER - 100, 400_000, 400_000, 400_000, BUFFER + 7):
            room = behind.room(size)
            assert len(room) == min(size, BUFFER)
            # A reader may find less than it hoped for.
            count = len(room) - 3
            room[:count] = bytes([size % 251]) * count
            behind.took(count)
            behind.put(b"after")
            wanted += bytes([size % 251]) * count + b"after"
    assert sink.data == wanted


@ASIDE
def test_an_error_of_the_sink_is_raised_and_nothing_is_written_after_it(aside):
    sink = Sink(room=3 * BUFFER)
    with pytest.raises(OSError, match="No space left"), Behind(sink.write, aside=aside) as behind:
        for _ in range(50):
            behind.put(bytes(BUFFER))
    assert len(sink.data) == 3 * BUFFER
    assert sink.calls == 4


@ASIDE
def test_an_error_of_the_last_buffer_is_raised(aside):
    sink = Sink(room=BUFFER)
    with pytest.raises(OSError, match="No space left"), Behind(sink.write, aside=aside) as behind:
        behind.put(bytes(BUFFER + 1))


@ASIDE
def test_an_error_elsewhere_ends_the_writing(aside):
    sink = Sink()
    with pytest.raises(ValueError, match="damaged"), Behind(sink.write, aside=aside) as behind:
        behind.put(bytes(2 * BUFFER + 1))
        raise ValueError("damaged")
    assert len(sink.data) <= 2 * BUFFER
    assert "writing" not in [thread.name for thread in threading.enumerate()]


def test_what_fits_into_a_buffer_needs_no_thread():
    sink = Sink()
    with Behind(sink.write, aside=True) as behind:
        behind.put(b"little")
    assert (bytes(sink.data), sink.threads) == (b"little", {threading.current_thread().name})
