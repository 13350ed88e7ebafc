"""Which proxy to use for an address: requests' rules, and what they lack in NO_PROXY."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from msb_pull.source.endpoint import literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_PORTS = {"http": 80, "https": 443}


def proxies_for(url: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Proxies by scheme for one request, {} for a direct one.

    requests knows suffixes, ``*`` and IPv4 networks; Go programs, whose registries these are, also take IPv6 networks
    and ``address:port``.
    """
    if _direct(url, environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
        return {}
    return dict(get_environ_proxies(url))


def _direct(url: str, no_proxy: str) -> bool:
    parts = urlsplit(url)
    name, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    address = literal(name)
    for item in no_proxy.replace(",", " ").split():
        try:
            place = urlsplit(f"//{item}") if "/" not in item else None
            if place is not None and place.port is not None and place.port != port:
                continue
            if place is not None and place.hostname == name:
                return True
            if address is not None and address in ipaddress.ip_network(item.strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False
