"""Text from images, registries and archives as it may be shown: the one place where it is escaped."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text from outside, with everything escaped that could move the cursor, hide or reorder what is shown."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def visible_bytes(name: bytes) -> str:
    """A file name of an image; bytes that are not UTF-8 are shown as ``\\xNN``."""
    return visible(name.decode("utf-8", "surrogateescape"))


def clipped(text: str, limit: int) -> str:
    """As :func:`visible`, with at most ``limit`` characters, since a text from outside may have megabytes."""
    shown = visible(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def in_ascii(text: str, limit: int) -> str:
    """Text that was to be ASCII, where letters that look alike must be told apart, in about ``limit`` characters."""
    escaped = text[: 2 * limit].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= limit else f"{escaped[:limit]}…"


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii") if not 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"
