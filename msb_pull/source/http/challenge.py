"""WWW-Authenticate: a real tokenizer, since servers put several challenges into one header (RFC 9110 11.6.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SPACE = re.compile(r"[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|$)")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^",\s=][^",\s]*)?(?=[ \t,]|$))', re.DOTALL)
# token68, as Negotiate and NTLM send it: one word that may end in "="
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_LIMIT = 16 * 1024


class Challenge(NamedTuple):
    """One challenge; scheme and the names of its parameters in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """All challenges of one or more headers, each possibly several joined by commas; what cannot be read is skipped."""
    return [challenge for header in headers for challenge in _parse(header[:_LIMIT])]


def choose_challenge(challenges: Sequence[Challenge]) -> Challenge | None:
    """Bearer, else Basic, else None."""
    return next((found for scheme in ("bearer", "basic") for found in challenges if found.scheme == scheme), None)


def _parse(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = _skip(_SEPARATORS, text, 0)
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        scheme = _SCHEME.match(text, position)
        if parameter and found:
            name, quoted, plain = parameter.groups()
            value = re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) if quoted is not None else plain or ""
            found[-1].parameters.setdefault(name.lower(), value)  # type: ignore[attr-defined]
            position = parameter.end()
        elif scheme:
            found.append(Challenge(scheme[1].lower(), {}))
            position = _skip(_SPACE, text, scheme.end())
            if not _PARAMETER.match(text, position) and (word := _TOKEN68.match(text, position)):
                position = word.end()
        else:
            position = _next_comma(text, position)
        position = _skip(_SEPARATORS, text, position)
    return found


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    matched = pattern.match(text, position)
    return matched.end() if matched else position


def _next_comma(text: str, position: int) -> int:
    comma = text.find(",", position)
    return len(text) if comma < 0 else comma + 1
