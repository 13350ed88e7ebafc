"""JSON documents of images, read strictly: what two programs could read differently is refused."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import clipped
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

# distribution-spec asks registries to accept manifests of at least this size; larger ones are not made.
DOCUMENT_LIMIT = 4 << 20
_MAX_DEPTH = 64
_MAX_SIZE = (1 << 63) - 1
# Inline content larger than this is not what the field is for, and is fetched like any blob.
_MAX_DATA = 1 << 20
_MAX_SHOWN = 200


def load_json(data: bytes, what: str, part: str) -> dict[str, Any]:
    """The JSON object in ``data``: no key twice, no NaN, no half surrogates, at most 4 MiB and 64 levels deep.

    ``what`` names the image and ``part`` the document in the ContentError that anything else raises.
    """
    loaded = load_any_json(data, what, part)
    if not isinstance(loaded, dict):
        raise ContentError(f"{what}: its {part} is not a JSON object")
    return loaded


def load_any_json(data: bytes, what: str, part: str) -> Any:
    """As :func:`load_json`, for documents whose top need not be an object."""
    if len(data) > DOCUMENT_LIMIT:
        raise ContentError(f"{what}: its {part} is larger than {DOCUMENT_LIMIT} bytes")
    try:
        text = data.decode("utf-8")
        loaded = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
        )
        if _is_deep(loaded):
            raise ValueError("it is nested too deeply")
        if "\\u" in text:
            # Half of a surrogate pair is a text that cannot be written anywhere, neither to a terminal nor a database.
            json.dumps(loaded, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ContentError(f"{what}: its {part} is not valid JSON", cause="it is nested too deeply") from None
    except ValueError as error:
        raise ContentError(f"{what}: its {part} is not valid JSON", cause=str(error)) from None
    return loaded


class Fields:
    """The fields of one JSON object, read with the types that the specification gives them.

    ``where`` names the object in errors: "its manifest, layers[2]".
    """

    def __init__(self, value: Any, what: str, where: str) -> None:
        self._what = what
        self._where = where
        if not isinstance(value, dict):
            self.refuse("is not an object")
        self._value: dict[str, Any] = value

    def refuse(self, why: str) -> NoReturn:
        """Raises ContentError."""
        raise ContentError(f"{self._what}: {self._where} {why}")

    def get(self, key: str) -> Any:
        """A field as it stands there, None where it is missing."""
        return self._value.get(key)

    def has(self, key: str) -> bool:
        """Whether a field has a value. Programs in Go write ``null`` for what is empty."""
        return self._value.get(key) is not None

    def text(self, key: str) -> str:
        """A string, empty where it is missing or of another type."""
        return text(self._value, key)

    def objects(self, key: str) -> list[Fields]:
        """A list of objects that must be there, empty where it is ``null``."""
        value = self._value.get(key, "")
        if value is None:
            return []
        if not isinstance(value, list):
            self.refuse(f"has no list of {key}")
        return [Fields(item, self._what, f"{self._where}, {key}[{number}]") for number, item in enumerate(value)]

    def object(self, key: str) -> Fields:
        """An object that must be there."""
        return Fields(self._value.get(key), self._what, f"{self._where}, {key}")

    def digest(self, key: str) -> Digest:
        """A digest that must be there."""
        return self.as_digest(self._value.get(key), key)

    def as_digest(self, value: Any, name: str) -> Digest:
        """``value`` as a digest; ``name`` says what it is."""
        if not isinstance(value, str):
            self.refuse(f"has no {name}")
        try:
            return Digest.parse(value)
        except InvalidDigest as error:
            self.refuse(f"has a bad {name}: {error}")

    def size(self, key: str) -> int:
        """A number of bytes that must be there."""
        value = self._value.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SIZE:
            self.refuse(f"has a bad {key}: {str(value)[:40]!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty where it is missing."""
        value = self._value.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(f"has no list of strings in {key}")
        return tuple(value)

    def annotations(self) -> dict[str, str]:
        """The annotations; values that are not strings are left out."""
        value = self._value.get("annotations")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse("has annotations that are not an object")
        return {key: item for key, item in value.items() if isinstance(item, str)}

    def data(self) -> bytes | None:
        """Inline content, None where it is missing or far too long."""
        value = self._value.get("data")
        if not isinstance(value, str) or len(value) > 2 * _MAX_DATA:
            return None
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            self.refuse("has inline data that is not base64")

    def platform(self) -> Platform | None:
        """The platform as it is written, None where it does not say both system and architecture."""
        value = self._value.get("platform")
        if not isinstance(value, dict) or not text(value, "architecture") or not text(value, "os"):
            return None
        return Platform(text(value, "os"), text(value, "architecture"), text(value, "variant") or None)


def text(document: Mapping[str, Any], key: str) -> str:
    """A string, empty where it is missing or of another type."""
    value = document.get(key)
    return value if isinstance(value, str) else ""


def shown(value: str) -> str:
    """A value as errors quote it: registries may send megabytes."""
    return clipped(value, _MAX_SHOWN) or "unknown"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    loaded = dict(pairs)
    if len(loaded) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} appears twice in one object")
    return loaded


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _integer(digits: str) -> int:
    # Python takes quadratic time for very long ones, and refuses them only above 4,300 digits.
    if len(digits) > 40:
        raise ValueError(f"the number {digits[:40]} is too large")
    return int(digits)


def _is_deep(value: Any) -> bool:
    """Whether objects and lists are nested more than _MAX_DEPTH levels; brackets inside texts do not count."""
    level: list[Any] = [[value]]
    for _ in range(_MAX_DEPTH + 2):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True
