"""Decompression: what comes out never depends on how the blob is cut, and is what other programs read.

Byte 0 says how; then either a compressed stream as it is, or a plan of which one is made, since mutations of checksums
and Huffman tables only ever find the same refusals.
"""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zlib
from itertools import cycle

from msb_pull.ground.errors import ContentError
from msb_pull.layer.compression import PIECE, detect, open_decompressor

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAN = 1
_ENOUGH = 1 << 22
# More than two pieces, so that ends of pieces and of parts meet.
_PLANNED = 3 * PIECE
# How many bytes at either end come in the smallest pieces, and the least of those between.
_CLOSELY, _STEP = 600, 4099
_SIZES = ((1,), (2, 1, 5), (7,), (64, 1), (509,), (4096, 3))


def gzips(data: bytes) -> None:
    """All members of a gzip file."""
    how, blob = arrange(data, gzip_part)
    found = same_in_pieces("gzip", blob, how)
    theirs = reference_gzip(blob)
    if isinstance(found, bytes):
        assert theirs is not None, "zlib refuses it"
        assert found[:_ENOUGH] == theirs[:_ENOUGH], "zlib reads something else"


def zstds(data: bytes) -> None:
    """All frames of a zstd file, skippable ones passed over."""
    how, blob = arrange(data, zstd_part)
    found = same_in_pieces("zstd", blob, how)
    theirs = reference_zstd(blob)
    if theirs is not None:
        assert found == theirs, "libzstd at once reads something else"


def plains(data: bytes) -> None:
    """No compression, and the choice among all three by what the blob begins with."""
    how, blob = (data[0], data[1:]) if data else (0, b"")
    try:
        kind = detect(blob[:6])
    except ContentError:
        return
    found = same_in_pieces(kind, blob, how)
    assert kind != "none" or found == blob


def same_in_pieces(kind: str, blob: bytes, how: int) -> bytes | None:
    """The content, None if it is refused."""
    whole = inflate(kind, blob, (max(len(blob), 1),))
    cut = inflate(kind, blob, _SIZES[(how >> 1) % len(_SIZES)])
    assert (whole is None) == (cut is None), "refused or not, as the blob is cut"
    assert whole == cut, "other content, as the blob is cut"
    return whole


def inflate(kind: str, blob: bytes, sizes: tuple[int, ...]) -> bytes | None:
    decompressor = _OPEN[kind]()
    out = bytearray()
    at = 0
    try:
        for size in cycle(sizes):
            if at >= len(blob):
                break
            if _CLOSELY < at < len(blob) - _CLOSELY:
                size = max(size, _STEP)
            for piece in decompressor.feed(blob[at : at + size]):
                assert len(piece) <= PIECE
                out += piece
                if len(out) > _ENOUGH:
                    return bytes(out[:_ENOUGH])
            at += size
        decompressor.finish()
    except ContentError as error:
        assert str(error).isprintable()
        return None
    return bytes(out)


def _open(head: bytes):
    return open_decompressor(head, "application/vnd.oci.image.layer.v1.tar+gzip")[0]


_OPEN = {
    "gzip": lambda: _open(b"\x1f\x8b\x08\0\0\0"),
    "zstd": lambda: _open(b"\x28\xb5\x2f\xfd\0\0"),
    "none": lambda: _open(b"abcdef"),
}


def arrange(data: bytes, part) -> tuple[int, bytes]:
    how = data[0] if data else 0
    return how, made(data[1:], part) if how & PLAN else data[1:]


def made(plan: bytes, part) -> bytes:
    """A stream of the parts that a plan names: one byte of kind, one of size, and so many of content."""
    out = bytearray()
    reader = io.BytesIO(plan)
    left = _PLANNED
    while len(head := reader.read(2)) == 2 and left > 0:
        kind, size = head
        content = (reader.read(size & 0x3F) * (1 << (size >> 6) * 5))[:left]
        left -= len(content)
        out += part(kind, content)
    return bytes(out)


def gzip_part(kind: int, content: bytes) -> bytes:
    if kind >= 0xF8:
        return content
    if kind >= 0xF0:
        return bytes(len(content))
    packer = zlib.compressobj(kind & 3 and 3 * (kind & 3), zlib.DEFLATED, -15 + (kind >> 2 & 1), 9, kind >> 6)
    body = packer.compress(content)
    if kind & 0x08:
        body += packer.flush(zlib.Z_FULL_FLUSH)
    body += packer.flush()
    flags = kind >> 3 & 0x1E if kind & 0x20 else 0
    head = struct.pack("<3sBIBB", b"\x1f\x8b\x08", flags, 0, 0, 255)
    head += struct.pack("<H", 3) + b"abc" if flags & 4 else b""
    head += b"name\0" if flags & 8 else b""
    head += b"comment\0" if flags & 16 else b""
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF) if flags & 2 else b""
    return head + body + struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


def zstd_part(kind: int, content: bytes) -> bytes:
    if kind >= 0xF8:
        return content
    if kind >= 0xE0:
        return struct.pack("<II", 0x184D2A50 + (kind & 15), len(content)) + content
    parameter = zstd.CompressionParameter
    packer = zstd.ZstdCompressor(
        options={
            parameter.compression_level: (kind & 3) - 1,
            parameter.checksum_flag: kind >> 2 & 1,
            parameter.content_size_flag: kind >> 3 & 1,
            parameter.window_log: 10 + (kind >> 4 & 1) * 2,
        }
    )
    middle = packer.FLUSH_BLOCK if kind & 0x20 else packer.CONTINUE
    return packer.compress(content[: len(content) // 2], middle) + packer.compress(
        content[len(content) // 2 :], packer.FLUSH_FRAME
    )


def reference_gzip(blob: bytes) -> bytes | None:
    """What Python's own reader makes of it."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(blob)) as file:
            return file.read(_ENOUGH)
    except (OSError, EOFError, zlib.error):
        return None


def reference_zstd(blob: bytes) -> bytes | None:
    """The frames one by one, each at once; None for what is refused, or too large to be compared."""
    out = bytearray()
    while blob:
        frame = zstd.ZstdDecompressor()
        try:
            out += frame.decompress(blob, _ENOUGH)
        except zstd.ZstdError:
            return None
        if not frame.eof or len(out) >= _ENOUGH:
            return None
        blob = frame.unused_data
    return bytes(out)
