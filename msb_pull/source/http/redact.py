"""What may be shown of requests and answers: no secrets, no control characters, no pages of text."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from msb_pull.ground.text import clipped

if TYPE_CHECKING:
    from collections.abc import Mapping

# Query values that are known to carry no secret; everything else may be part of a signed address (the rule of
# go-containerregistry's internal/redact).
_HARMLESS = frozenset({"service", "scope", "ns", "client_id", "n", "last"})
MESSAGE_LIMIT = 200
# Hiding every "a" because it is a password would make messages unreadable, and give the password away.
_SHORTEST_SECRET = 4


class Secrets:
    """What one run has sent as a secret. Servers may repeat it in their answers, which are quoted."""

    def __init__(self) -> None:
        self._sent: set[str] = set()

    def note(self, address: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None) -> None:
        """Remembers the secrets of a request that is about to be sent."""
        for pair in address.partition("?")[2].split("&"):
            name, _, value = pair.partition("=")
            if name not in _HARMLESS:
                self._add(value)
                self._add(unquote(value))
        scheme, _, value = headers.get("Authorization", "").partition(" ")
        self._add(value)
        if scheme == "Basic":
            self._note_pair(base64.b64decode(value).decode("utf-8", "surrogateescape"))
        self._add((form or {}).get("refresh_token", ""))

    def note_proxy(self, address: str) -> None:
        """Remembers the password of a proxy, in both forms that it is sent in."""
        pair = unquote(address.partition("://")[2].rpartition("@")[0])
        self._note_pair(pair)
        self._add(base64.b64encode(pair.encode("utf-8", "replace")).decode("ascii"))

    def hide(self, text: str) -> str:
        """``text`` without any of them; to be used before it is cut, or a part of one would remain."""
        for secret in sorted(self._sent, key=len, reverse=True):
            text = text.replace(secret, "REDACTED")
        return text

    def _note_pair(self, pair: str) -> None:
        self._add(pair)
        self._add(pair.partition(":")[2])

    def _add(self, secret: str) -> None:
        # Padding of base64 is left off, since it is not everywhere repeated.
        secret = secret.rstrip("=")
        if len(secret) >= _SHORTEST_SECRET:
            coded = (f(secret, safe=safe, errors="surrogateescape") for f in (quote, quote_plus) for safe in ("", "/"))
            self._sent |= {secret, *coded}


def url(text: str) -> str:
    """An address without user, password and query values that could be secret."""
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return "(an address that cannot be read)"
    host = parts.netloc.rpartition("@")[2]
    shown = "&".join(f"{name}={value if name in _HARMLESS else 'REDACTED'}" for name, value in pairs)
    return clipped(f"{parts.scheme}://{host}{parts.path}{'?' + shown if shown else ''}", 500)


def host_of(address: str) -> str:
    """``host[:port]`` of an address, for messages; "" where it has none."""
    try:
        return clipped(urlsplit(address).netloc.rpartition("@")[2], MESSAGE_LIMIT)
    except ValueError:
        return ""
