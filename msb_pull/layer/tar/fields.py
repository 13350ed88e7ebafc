"""Numbers and texts as they stand in the fixed fields of tar headers."""

from __future__ import annotations


class BadField(ValueError):
    """A header field holds neither an octal nor a base-256 number."""


def number(field: bytes) -> int:
    """The value of a numeric field: octal digits padded by spaces or NULs, or base-256 (GNU, star), which may be
    negative. An empty field is 0. Raises BadField."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        # The first bit only marks the form; the next one is the sign (two's complement).
        value &= (1 << (bits - 1)) - 1
        return value - (1 << (bits - 1)) if field[0] & 0x40 else value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    digits = digits.partition(b"\0")[0]
    if not digits.isdigit():
        raise BadField("a number in its header is malformed")
    try:
        return int(digits, 8)
    except ValueError:
        raise BadField("a number in its header is malformed") from None


def text(field: bytes) -> bytes:
    """The bytes of a text field up to its first NUL."""
    end = field.find(0)
    return field if end < 0 else field[:end]
