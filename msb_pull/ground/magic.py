"""How compressed content begins: magic numbers, since media types lie, and the headers of gzip and zstd."""

from __future__ import annotations

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = {GZIP: "gzip", ZSTD: "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# So many bytes tell each of them.
LONGEST = 6
_GZIP_FIXED = 10
_GZIP_CHECKED, _GZIP_EXTRA, _GZIP_NAME, _GZIP_COMMENT, _GZIP_RESERVED = 0x02, 0x04, 0x08, 0x10, 0xE0
_MAX_GZIP_HEADER = 1 << 17
_ZSTD_FIXED, _ZSTD_SINGLE_SEGMENT = 5, 0x20


def compression_of(head: bytes) -> str | None:
    """``gzip``, ``zstd``, ``bzip2`` or ``xz`` by the first bytes of a stream (:data:`LONGEST`); None for any other."""
    if is_zstd_skippable(head):
        return "zstd"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def gzip_header_is_whole(data: bytes) -> bool:
    """Whether ``data`` begins with the whole header of a gzip member (RFC 1952); raises ValueError with a reason.

    ISA-L wants it whole: it forgets the flags of a header that comes in pieces, and then takes a name in it for
    compressed data (intel/isa-l, issue 224).
    """
    if data[:3] != GZIP[: len(data)]:
        raise ValueError("there is no gzip header")
    if len(data) < _GZIP_FIXED:
        return False
    flags = data[3]
    if flags & _GZIP_RESERVED:
        raise ValueError("the gzip header has flags that are not defined")
    end = _GZIP_FIXED
    if flags & _GZIP_EXTRA:
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for text in (_GZIP_NAME, _GZIP_COMMENT):
        if flags & text and end <= len(data):
            end = data.find(0, end) + 1 or len(data) + 1
    if flags & _GZIP_CHECKED:
        end += 2
    if end > _MAX_GZIP_HEADER:
        raise ValueError(f"the gzip header is larger than {_MAX_GZIP_HEADER} bytes")
    return end <= len(data)


def zstd_window(data: bytes) -> int | None:
    """Bytes of window that the zstd frame at the start of ``data`` wants (RFC 8878, 3.1.1.1), 0 for a skippable one.

    None when more of its header is needed (18 bytes at most); raises ValueError when there is no such frame.
    """
    if len(data) < _ZSTD_FIXED:
        return None
    if is_zstd_skippable(data):
        return 0
    if not data.startswith(ZSTD):
        raise ValueError("there is no zstd frame")
    flags, at = data[_ZSTD_FIXED - 1], _ZSTD_FIXED
    if not flags & _ZSTD_SINGLE_SEGMENT:
        if len(data) == at:
            return None
        base = 1 << (10 + (data[at] >> 3))
        return base + base // 8 * (data[at] & 7)
    # The content is the window: its size follows the dictionary's id.
    at += (0, 1, 2, 4)[flags & 3]
    end = at + (1, 2, 4, 8)[flags >> 6]
    if len(data) < end:
        return None
    return int.from_bytes(data[at:end], "little") + (256 if end - at == 2 else 0)


def is_zstd_skippable(head: bytes) -> bool:
    """Whether these bytes begin a zstd frame that holds no content (RFC 8878, 3.1.2)."""
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
