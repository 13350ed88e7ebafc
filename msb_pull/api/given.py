"""What programs hand over: values of the wrong kind are refused in the words of the call."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, TypeVar

from msb_pull.config.table import to_path
from msb_pull.ground.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_Kind = TypeVar("_Kind")


def given_path(name: str, given: object) -> Path | None:
    """A path from a caller, None where none is given; raises TypeError, UsageError."""
    if given is None:
        return None
    check_type(name, given, (str, PathLike), "a path")
    try:
        return to_path(given)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def given_several(names: str, given: object, kind: type[_Kind], what: str) -> list[_Kind]:
    """Several values from a caller, each looked at once, as a generator gives them; raises TypeError.

    A text is one value, though Python takes it for a sequence of its letters.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(f"{names} must be a list or the like, not {type(given).__name__}")
    found = list(given)
    for one in found:
        check_type(names.removesuffix("s"), one, kind, what)
    return found


def check_type(name: str, given: object, wanted: type | tuple[type, ...], what: str) -> None:
    """Raises TypeError, in the words of the call, for a value of another type."""
    if not isinstance(given, wanted):
        raise TypeError(f"{name} must be {what}, not {type(given).__name__}")
