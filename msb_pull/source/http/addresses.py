"""Addresses of the web and the hosts in them."""

from __future__ import annotations

from urllib.parse import urlsplit

from msb_pull.image.host import literal

DEFAULT_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)


def spellings(host: str) -> tuple[str, ...]:
    """``host[:port]`` as it stands, then with or without the port of https where that is the one meant."""
    if host.endswith(":443"):
        return host, host.removesuffix(":443")
    return (host,) if ":" in host.rpartition("]")[2] else (host, f"{host}:443")


def host_name(host: str) -> str:
    """``host[:port]`` without port and brackets."""
    return urlsplit(f"//{host}").hostname or host


def is_loopback(name: str) -> bool:
    """Whether a host name can only mean this machine: localhost, ``*.localhost`` (RFC 6761), 127.0.0.0/8, ``::1``."""
    address = literal(name)
    if address is not None:
        return address.is_loopback
    return name == "localhost" or name.endswith(".localhost")
