"""What may be shown of requests and answers: no secrets, no control characters, no pages of text."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

# Query values that are known to carry no secret; everything else may be part of a signed address (the rule of
# go-containerregistry's internal/redact).
_HARMLESS = frozenset({"service", "scope", "ns", "client_id", "n", "last"})
MESSAGE_LIMIT = 200


def url(text: str) -> str:
    """An address without user, password and query values that could be secret."""
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return "(an address that cannot be read)"
    host = parts.netloc.rpartition("@")[2]
    shown = "&".join(f"{name}={value if name in _HARMLESS else 'REDACTED'}" for name, value in pairs)
    return printable(f"{parts.scheme}://{host}{parts.path}{'?' + shown if shown else ''}", limit=500)


def printable(text: str, *, limit: int = MESSAGE_LIMIT) -> str:
    """Text from a server on one line: control and invisible characters escaped, at most ``limit`` characters."""
    cut = text[: limit + 1]
    escaped = "".join(x if x.isprintable() else x.encode("unicode_escape", "replace").decode("ascii") for x in cut)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def host_of(address: str) -> str:
    """``host[:port]`` of an address, for messages; "" where it has none."""
    try:
        return printable(urlsplit(address).netloc.rpartition("@")[2])
    except ValueError:
        return ""
