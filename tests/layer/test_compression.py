"""Decompression by magic: every member and frame, bounded pieces, nothing cut or appended."""

from __future__ import annotations

import gzip
import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msb_pull.ground.errors import ContentError
from msb_pull.layer.compression import PIECE, detect, open_decompressor, zstd

DATA = random.Random(3).randbytes(40_000) + bytes(3_000_000) + b"end of the layer"
SKIPPABLE = struct.pack("<II", 0x184D2A53, 7) + b"skipped"
GZIP = gzip.compress(DATA, 6)
ZSTD = zstd.compress(DATA)
TYPES = {"none": "application/vnd.oci.image.layer.v1.tar", "gzip": "x.tar+gzip", "zstd": "x.tar+zstd"}


def inflate(blob: bytes, step: int = 1 << 16, media_type: str = "x.tar+gzip") -> bytes:
    decompressor, _ = open_decompressor(blob[:6], media_type)
    found = []
    for at in range(0, len(blob), step):
        for piece in decompressor.feed(blob[at : at + step]):
            assert 0 < len(piece) <= max(PIECE, step)
            found.append(piece)
    decompressor.finish()
    return b"".join(found)


def refused(blob: bytes, match: str) -> None:
    with pytest.raises(ContentError, match=match):
        inflate(blob)


@pytest.mark.parametrize("step", [97, 4096, 1 << 20])
@pytest.mark.parametrize("blob", [GZIP, ZSTD, DATA], ids=["gzip", "zstd", "plain"])
def test_whole_streams_in_pieces_of_any_size(blob, step):
    assert inflate(blob, step) == DATA


def test_a70_every_frame_and_none_of_the_skippable_ones():
    half = len(DATA) // 2
    frames = [zstd.compress(DATA[:half]), zstd.compress(DATA[half:])]
    for blob in (b"".join(frames), SKIPPABLE + b"".join(frames), SKIPPABLE.join(frames) + SKIPPABLE):
        for step in (1, 1000, 1 << 20):
            if step > 1 or len(blob) < 60_000:
                assert inflate(blob, step) == DATA


def test_a70_a_cut_last_frame_is_refused():
    for cut in (1, 2, 5, len(ZSTD) // 2):
        refused(ZSTD[:-cut], "truncated|damaged")
    refused(zstd.compress(b"a") + ZSTD[:-2], "truncated")
    refused(SKIPPABLE + SKIPPABLE[:-1], "truncated")


def windowed(descriptor: int) -> bytes:
    """A frame with this window descriptor (RFC 8878) and one last block: a zero that is repeated."""
    block = (1 | 1 << 1 | 100_000 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\0" + bytes([descriptor]) + block


def window(log: int, eighths: int = 0) -> int:
    return (log - 10) << 3 | eighths


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_zstd_windows_up_to_the_limit_are_taken(step):
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
    assert inflate(zstd.compress(DATA, options=options)) == DATA
    assert inflate(windowed(window(27)), step) == bytes(100_000)


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize("before", [b"", SKIPPABLE, zstd.compress(b"first")], ids=["first", "skipped", "second"])
def test_zstd_windows_beyond_the_limit_are_refused_and_the_option_named(before, step):
    for descriptor, size in ((window(27, 1), 150_994_944), (window(31), 2 << 30), (0xFF, 15 << 38)):
        with pytest.raises(ContentError, match=f"wants a window of {size} bytes, more than 134217728") as refusal:
            inflate(before + windowed(descriptor), step)
        assert "--max-window" in (refusal.value.hint or "")


def test_a_frame_whose_window_is_its_content_counts_too():
    content = (200 << 20).to_bytes(4, "little")
    refused(b"\x28\xb5\x2f\xfd\xa0" + content + bytes(20), "wants a window of 209715200 bytes")
    dictionary = b"\x28\xb5\x2f\xfd\xa1\x07" + content + bytes(20)
    refused(dictionary, "wants a window of 209715200 bytes")
    assert inflate(zstd.compress(bytes(300))) == bytes(300)


def test_the_limit_of_windows_is_any_number_of_bytes():
    for limit, taken in ((150_994_944, True), (150_994_943, False), (2 << 30, True)):
        blob = windowed(window(27, 1))
        decompressor, _ = open_decompressor(blob[:6], TYPES["zstd"], limit)
        if taken:
            assert b"".join(decompressor.feed(blob)) == bytes(100_000)
        else:
            with pytest.raises(ContentError, match="more than 150994943"):
                list(decompressor.feed(blob))


def test_what_follows_the_last_frame_is_a_frame():
    refused(ZSTD + b"garbage", "damaged")
    refused(ZSTD + b"\x28\xb5", "truncated")


def test_a71_every_member_wherever_they_are_cut():
    for at in (0, 1, 511, 40_001, len(DATA)):
        blob = gzip.compress(DATA[:at]) + gzip.compress(DATA[at:])
        for step in (1, 3, 1 << 20):
            if step > 1 or len(blob) < 60_000:
                assert inflate(blob, step) == DATA


def test_a71_zero_padding_may_follow_and_nothing_else():
    assert inflate(GZIP + bytes(1000)) == DATA
    assert inflate(GZIP + bytes(1000), 7) == DATA
    refused(GZIP + b"garbage", "not gzip follow")
    refused(GZIP + bytes(10) + GZIP, "not gzip follow")


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 1000, len(GZIP) - 12])
def test_a71_a_cut_member_is_refused(cut):
    refused(GZIP[:-cut], "truncated")
    refused(GZIP + GZIP[:-cut], "truncated")


def test_a71_wrong_checksum_and_length_are_refused():
    refused(GZIP[:-8] + bytes([GZIP[-8] ^ 1]) + GZIP[-7:], "damaged")
    refused(GZIP[:-1] + bytes([GZIP[-1] ^ 1]), "damaged")
    refused(GZIP[:5000] + bytes(16) + GZIP[5016:], "damaged|cut")


def test_a72_an_empty_member_with_an_extra_field_is_read_through():
    extra = b"SG\x16\x00" + b"0" * 16 + b"STARGZ"
    footer = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra
    footer += zlib.compressobj(0, zlib.DEFLATED, -15).flush() + bytes(8)
    members = [gzip.compress(DATA[at : at + 100_000]) for at in range(0, len(DATA), 100_000)]
    assert inflate(b"".join(members) + footer) == DATA


@pytest.mark.parametrize("claimed", TYPES)
@pytest.mark.parametrize(("real", "blob"), [("none", DATA), ("gzip", GZIP), ("zstd", ZSTD)])
def test_a73_the_magic_decides_and_a_wrong_media_type_is_said(real, blob, claimed):
    decompressor, warning = open_decompressor(blob[:6], TYPES[claimed])
    assert b"".join(decompressor.feed(blob)) == DATA
    decompressor.finish()
    assert (warning is None) == (real == claimed)
    assert warning is None or TYPES[claimed] in warning


@pytest.mark.parametrize(("head", "name"), [(b"BZh91A", "bzip2"), (b"\xfd7zXZ\x00", "xz")])
def test_a74_other_formats_are_refused_by_name(head, name):
    with pytest.raises(ContentError, match=name):
        detect(head)


def test_a68_an_empty_blob_is_an_empty_stream():
    decompressor, _ = open_decompressor(b"", TYPES["none"])
    decompressor.finish()


def test_a75_a_bomb_comes_in_bounded_pieces():
    bomb = gzip.compress(bytes(64 << 20), 9)
    decompressor, _ = open_decompressor(bomb[:6], TYPES["gzip"])
    assert sum(len(piece) for piece in decompressor.feed(bomb) if len(piece) <= PIECE) == 64 << 20


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=3000),
    st.integers(1, 500),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=3),
)
def test_damaged_blobs_give_their_bytes_or_a_content_error(data, step, changes):
    for packed in (gzip.compress(data), zstd.compress(data)):
        blob = bytearray(packed)
        for at, value in changes:
            blob[at % len(blob)] = value
        try:
            found = inflate(bytes(blob), step)
        except ContentError:
            continue
        if bytes(blob) == packed:
            assert found == data


def with_header(flags: int, *, content: bytes = b"content") -> bytes:
    """A member whose header has the optional fields that ``flags`` ask for (RFC 1952)."""
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\0\xff"
    head += b"\x03\0abc" if flags & 4 else b""
    head += b"file name\0" if flags & 8 else b""
    head += b"a comment\0" if flags & 16 else b""
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF) if flags & 2 else b""
    body = zlib.compress(content, wbits=-15)
    return head + body + struct.pack("<II", zlib.crc32(content), len(content))


@pytest.mark.parametrize("flags", range(0, 32, 2))
def test_a70_headers_of_members_may_come_in_pieces(flags):
    """ISA-L forgets the flags of a header that it gets in pieces, and refuses or misreads what follows."""
    blob = with_header(flags) + with_header(flags, content=b" and more")
    for step in (1, 2, 3, 11, 13, 1000):
        assert inflate(blob, step) == b"content and more"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a70_broken_headers_are_refused_however_they_come(step):
    name = b"\x1f\x8b\x08\x08" + bytes(6)
    for blob, why in (
        (GZIP[:9], "truncated"),
        (with_header(30)[:25], "truncated"),
        (with_header(0) + with_header(8)[:14], "truncated"),
        (with_header(0) + b"\x1f", "truncated"),
        (with_header(0) + b"\x1f\x8b\x07" + bytes(20), "not gzip"),
        (with_header(0x20), "damaged"),
        (name + b"n" * 140_000 + b"\0", "damaged"),
        (name + b"n" * 140_000, "damaged"),
    ):
        with pytest.raises(ContentError, match=why):
            inflate(blob, step)


def test_a71_a_frame_that_lies_about_its_size_is_the_same_however_it_comes():
    """Found by fuzzing: libzstd refused it when it came whole, and took it in pieces."""
    lying = b"\x28\xb5\x2f\xfd\x20\x2d\x01\x00\x00"
    found = [inflate(lying + zstd.compress(b"content"), step) for step in (1, 4, 1000)]
    assert found == [b"content"] * 3
