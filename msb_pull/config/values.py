"""From what was typed, or read from a file, to a checked value; each raises ValueError with a text that fits behind the
name of an option, variable or key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msb_pull.ground.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_JOBS = 64
# The largest window that libzstd takes, and that its own tool writes (`zstd --long=31`).
_LARGEST_WINDOW = 2 << 30


def to_path(value: Any) -> Path:
    """An absolute path; ``~`` is expanded, symlinks are kept."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else to_text(value)
    try:
        return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 - resolve() would follow symlinks
    except RuntimeError:
        raise ValueError(f"{text!r} names an unknown home directory") from None


def to_text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_shown(value)} is not text" if not isinstance(value, str) else "must not be empty")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def to_flag(value: Any) -> bool:
    """True or false, as TOML has them."""
    if not isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is neither true nor false")
    return value


def _integer(value: Any, low: int, high: int | None, what: str) -> int:
    text = str(value).strip()
    is_number = not isinstance(value, (bool, float)) and text.isascii() and text.isdecimal() and len(text) < 20
    if not is_number or int(text) < low or (high is not None and int(text) > high):
        raise ValueError(f"{_shown(value)} is not {what}")
    return int(text)


def to_jobs(value: Any) -> int:
    """How many layers at a time."""
    return _integer(value, 1, _MAX_JOBS, f"a number from 1 to {_MAX_JOBS}")


def to_count(value: Any) -> int:
    """How often to try again."""
    return _integer(value, 0, 1000, "a number from 0 to 1000")


def to_seconds(value: Any) -> float:
    """A time-out in seconds."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 < seconds <= 86400:
        raise ValueError(f"{_shown(value)} is not a number of seconds above 0")
    return seconds


def to_entries(value: Any) -> int:
    """A number above 0."""
    return _integer(value, 1, None, "a number above 0")


def to_size(value: Any) -> int:
    """Bytes, from a number or a size with a unit."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    size = parse_size(to_text(value))
    if size < 1:
        raise ValueError("must be above 0")
    return size


def to_window(value: Any) -> int:
    """Bytes of a window that zstd can have."""
    size = to_size(value)
    if size > _LARGEST_WINDOW:
        raise ValueError(f"{_shown(value)} is more than 2GiB, the largest window there is")
    return size


def to_mirrors(value: Any) -> tuple[str, ...]:
    """Addresses that start with http:// or https://."""
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise ValueError("must be a list of addresses")
    for address in value:
        if not address.isprintable() or " " in address:
            raise ValueError(f"{_shown(address)} is not an address")
        if not address.startswith(("https://", "http://")) or len(address.split("://", 1)[1]) == 0:
            raise ValueError(
                f"{address.rpartition('@')[2].partition('?')[0]!r} does not start with https:// or http://"
            )
    return tuple(value)


def one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    """A parser that takes one of ``choices``."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{_shown(value)} is not one of {', '.join(choices)}")
        return str(value)

    return convert


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return {"True": "true", "False": "false"}.get(text, text)
