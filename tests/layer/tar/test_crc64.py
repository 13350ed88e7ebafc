"""CRC-64 of ISO 3309: with ISA-L, and without."""

from __future__ import annotations

import random

import pytest

from msb_pull.layer.tar import crc64 as module
from msb_pull.layer.tar.crc64 import crc64, folded


def bit_by_bit(data: bytes) -> int:
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ (1 << 64) - 1


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 16, b"123456789", b"\xff" * 65])
def test_known(data):
    assert folded(data) == crc64(memoryview(data)) == bit_by_bit(data)
    assert folded(b"123456789") == 0xB90956C775A41001


@pytest.mark.parametrize("length", [*range(40), 63, 64, 65, 511, 512, 513, 4096, 5000])
def test_any_length_in_any_pieces(length):
    data = random.Random(length).randbytes(length)
    for cut in {0, length // 3, length}:
        assert folded(data[cut:], folded(data[:cut])) == bit_by_bit(data)
        lent = memoryview(bytearray(data))
        assert crc64(lent[cut:], crc64(lent[:cut])) == bit_by_bit(data)


@pytest.mark.parametrize("library", ["/nowhere/at-all.so", None, __file__])
def test_without_the_library_it_is_folded(monkeypatch, library):
    monkeypatch.setattr(module.isal_zlib, "__file__", library)
    module._function.cache_clear()
    try:
        assert module._function() is folded
    finally:
        module._function.cache_clear()
