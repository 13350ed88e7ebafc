"""Shared memory between two processes, here between two threads."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msb_pull.ground.errors import LocalError
from msb_pull.layer.unpack import ring
from msb_pull.layer.unpack.ring import MORE_SLOTS, SLOT, SLOTS, RingReader, RingWriter

pytestmark = pytest.mark.timeout(60)


def pair(slots: int = SLOTS) -> tuple[RingWriter, RingReader]:
    writer = RingWriter(slots)
    reader = RingReader(os.dup(writer.memory), os.dup(writer.socket), slots)
    writer.started()
    return writer, reader


def everything(reader: RingReader) -> bytes:
    pieces = []
    while piece := reader.read(1):
        pieces.append(bytes(piece))
    return b"".join(pieces)


def passed(pieces: list[bytes], slots: int = SLOTS) -> bytes:
    writer, reader = pair(slots)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(everything(reader)))
    thread.start()
    for piece in pieces:
        writer.write(piece)
    writer.end()
    thread.join(30)
    writer.close()
    os.close(reader._socket)
    return found[0]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3 * SLOT // 2), st.integers(0, 255)), max_size=8))
def test_bytes_arrive_as_they_were_written(sizes):
    pieces = [bytes([value]) * size for size, value in sizes]
    assert passed(pieces) == b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, SLOT - 1, SLOT, SLOT + 1, SLOT * SLOTS, 3 * SLOT * MORE_SLOTS + 7])
@pytest.mark.parametrize("slots", [SLOTS, MORE_SLOTS])
def test_sizes_around_the_slots(size, slots):
    data = os.urandom(size)
    assert passed([data], slots) == data


@pytest.mark.parametrize("most", [SLOTS * 512, 100_000, SLOT * SLOTS - 1, SLOT * SLOTS + 1])
def test_the_memory_is_no_larger_than_files_may_be(monkeypatch, most):
    monkeypatch.setattr(ring, "file_size_limit", lambda: most)
    data = os.urandom(200_001)
    assert passed([data, data]) == data + data
    writer, reader = pair()
    assert most - SLOTS * 512 < writer._map.size() <= most or writer._map.size() == SLOT * SLOTS
    writer.close()
    os.close(reader._socket)


def test_no_room_for_any_memory(monkeypatch):
    monkeypatch.setattr(ring, "file_size_limit", lambda: SLOTS * 512 - 1)
    with pytest.raises(LocalError, match="shared with the unpacking process"):
        RingWriter()


def test_every_piece_but_the_last_is_a_whole_slot():
    """So that no header of a tar stream lies in two of them."""
    writer, reader = pair()
    writer.write(bytes(SLOT - 1))
    writer.write(bytes(2))
    assert len(reader.read(1)) == SLOT
    writer.end()
    assert len(reader.read(1)) == 1
    assert not reader.read(1)
    writer.close()


def test_a_writer_waits_for_room():
    writer, reader = pair()
    writing = threading.Thread(target=writer.write, args=(bytes(SLOT * (SLOTS + 2)),))
    writing.start()
    writing.join(0.2)
    assert writing.is_alive()
    for _ in range(4):
        reader.read(1)
    writing.join(20)
    assert not writing.is_alive()
    writer.close()


@pytest.mark.parametrize("slots", [1, SLOTS + 1])
def test_a_child_that_went_is_noticed(slots):
    writer, reader = pair()
    os.close(reader._socket)
    with pytest.raises(ConnectionError):
        writer.write(bytes(slots * SLOT))
    writer.close()
    writer.close()


def test_a_child_that_goes_while_the_writer_waits_is_noticed():
    writer, reader = pair()
    writer.write(bytes(SLOT * SLOTS))
    threading.Timer(0.1, os.close, (reader._socket,)).start()
    with pytest.raises(ConnectionError):
        writer.write(bytes(1))
    writer.close()


def test_a_system_without_nameless_memory(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert passed([b"x" * (SLOT + 1)]) == b"x" * (SLOT + 1)


def test_the_reader_cannot_write():
    writer, reader = pair()
    writer.write(b"x")
    writer.end()
    with pytest.raises(TypeError):
        reader.read(1)[0] = 1
    writer.close()
