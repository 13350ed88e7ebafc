"""What the fixed fields of a tar header say, for the readers of layers and of archives.

Formats: v7, ustar (POSIX.1-1988), GNU and star. Where they are ambiguous this decides as Go's archive/tar does.
"""

from __future__ import annotations

from isal.isal_zlib import adler32

BLOCK = 512
ZEROS = bytes(BLOCK)


class BadField(ValueError):
    """A header field holds neither an octal nor a base-256 number."""


def number(field: bytes) -> int:
    """The value of a numeric field: octal digits padded by spaces or NULs, or base-256 (GNU, star), which may be
    negative. An empty field is 0. Raises BadField."""
    # As nearly all writers have it.
    if field[-1] in b" \0" and (digits := field[:-1]) and not digits.strip(b"01234567"):
        return int(digits, 8)
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        # The first bit only marks the form; the next one is the sign (two's complement).
        value &= (1 << (bits - 1)) - 1
        return value - (1 << (bits - 1)) if field[0] & 0x40 else value
    digits = field.strip(b" \0").partition(b"\0")[0]
    if digits.strip(b"01234567"):
        raise BadField("a number in its header is malformed")
    return int(digits or b"0", 8)


def text(field: bytes) -> bytes:
    """The bytes of a text field up to its first NUL."""
    end = field.find(0)
    return field if end < 0 else field[:end]


def header_name(block: bytes) -> bytes:
    """The name of an entry as its header has it, with the prefix before it where there is one."""
    # As text() of the field, in one step: there is one for each entry.
    end = block.find(0, 0, 100)
    name = block[:end] if end >= 0 else block[:100]
    if block[345]:
        prefix = _prefix(block)
        if prefix:
            name = prefix + b"/" + name
    return name


def byte_sum(block: bytes) -> int:
    """The sum of the bytes of a block."""
    # That of 512 ASCII bytes stays below Adler's modulus, so that its low half is the sum itself, plus one.
    return (adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)


def checksum_fits(block: bytes) -> bool:
    """Whether the sum in a header is that of its bytes, the field itself taken for spaces; some summed signed bytes."""
    field = block[148:156]
    total = byte_sum(block) + 256 - sum(field)
    try:
        stored = number(field)
    except BadField:
        return False
    if stored == total:
        return True
    return stored == total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _prefix(block: bytes) -> bytes:
    """The first part of a name, where the header has one: POSIX has it, star ends it earlier, GNU keeps times there.

    Go before 1.8, and with it Docker up to 1.12, wrote a prefix over the times of GNU headers. As today's Go does, it
    is taken for one when the times are not numbers and it is ASCII (archive/tar, ``Reader.readHeader``).
    """
    if block[257:263] == b"ustar\0":
        return text(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
    if block[257:265] != b"ustar  \0":
        return b""
    try:
        number(block[345:357])
        # Go looks at the second time only where there is one.
        number(block[357:369] if block[357] else b"\0")
    except BadField:
        prefix = text(block[345:500])
        return prefix if prefix.isascii() else b""
    return b""
