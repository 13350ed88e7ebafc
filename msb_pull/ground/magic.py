"""How compressed content begins: told by magic numbers, since names and media types lie."""

from __future__ import annotations

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = {GZIP: "gzip", ZSTD: "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# So many bytes tell each of them.
LONGEST = 6


def compression_of(head: bytes) -> str | None:
    """``gzip``, ``zstd``, ``bzip2`` or ``xz`` by the first bytes of a stream (:data:`LONGEST`); None for any other."""
    if is_zstd_skippable(head):
        return "zstd"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def is_zstd_skippable(head: bytes) -> bool:
    """Whether these bytes begin a zstd frame that holds no content (RFC 8878, 3.1.2)."""
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
