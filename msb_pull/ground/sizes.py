"""Sizes as a person reads and writes them: decimal units, one spelling everywhere."""

from __future__ import annotations

from dataclasses import dataclass

_STEPS = ("B", "kB", "MB", "GB", "TB", "PB")
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True, slots=True)
class Percent:
    """A part of something whose size is not known yet; ``value`` lies between 0 and 100."""

    value: float

    def of(self, whole: int) -> int:
        """The part of ``whole``, rounded up."""
        return -int(-whole * self.value // 100)

    def __str__(self) -> str:
        return f"{self.value:g}%"


def format_size(size: float) -> str:
    """``0 B``, ``999 B``, ``1.5 kB``, ``77.8 MB``: decimal units, one digit after the point above bytes."""
    value, unit = scale(size)
    return f"{size:.0f} B" if unit == "B" else f"{size / value:.1f} {unit}"


def scale(size: float) -> tuple[int, str]:
    """The divisor and the unit that ``size`` is shown in; 999,950 bytes are already ``1.0 MB``."""
    divisor = 1
    for unit in _STEPS:
        shown = round(size / divisor, 0 if divisor == 1 else 1)
        if shown < 1000 or unit == _STEPS[-1]:
            return divisor, unit
        divisor *= 1000
    raise AssertionError("unreachable")


def counted(count: int, noun: str) -> str:
    """``1 layer``, ``3 layers``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def parse_size(text: str) -> int:
    """Bytes of ``1500``, ``50M``, ``1.5GB``, ``64GiB``; a lone letter is decimal.

    Raises ValueError with a text that fits behind the name of an option or key.
    """
    word = text.strip().lower()
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = word[len(number) :].strip().removesuffix("b")
    if unit not in _FACTORS or not number or not number.replace(".", "", 1).isdecimal() or not number.isascii():
        raise ValueError(f"{text!r} is not a size; write bytes or something like 50M, 1.5G or 64GiB")
    whole, _, fraction = number.partition(".")
    # Exact for any count of digits, which a float is not.
    digits = int((whole or "0") + fraction)
    result: int = digits * _FACTORS[unit] // 10 ** len(fraction)
    return result


def parse_rate(text: str) -> int:
    """Bytes a second, as a size with or without ``/s`` behind it; raises ValueError as :func:`parse_size` does."""
    word = text.strip()
    return parse_size(word[:-2].rstrip() if word.lower().endswith("/s") else word)


def parse_part(text: str) -> int | Percent:
    """Bytes as :func:`parse_size` reads them, or ``10%``; raises ValueError with a text that fits behind a name."""
    number, sign, rest = text.strip().partition("%")
    if not sign:
        return parse_size(text)
    number = number.strip()
    plain = number.replace(".", "", 1)
    if rest or not plain.isdecimal() or not plain.isascii() or not 0 < float(number) < 100:
        raise ValueError(f"{text!r} is not a percentage above 0 and below 100")
    return Percent(float(number))
