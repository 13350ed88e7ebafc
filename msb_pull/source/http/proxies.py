"""Which proxy to use for an address, by the rules of docker, podman and skopeo: Go's x/net/http/httpproxy."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment

from requests.utils import get_environ_proxies, select_proxy

from msb_pull.image.host import literal
from msb_pull.source.http.addresses import DEFAULT_PORTS, is_loopback
from msb_pull.source.http.failures import bad_proxy

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS = frozenset({"http", "https", "socks4", "socks4a", "socks5", "socks5h"})


def proxies_for(url: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The proxy for a request by the scheme of its address, {} for none; raises Failure for an invalid one."""
    if _direct(url, environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
        return {}
    # Where the environment names none, a desktop's settings count, which have exceptions of their own.
    proxy = select_proxy(url, dict(getproxies() if getproxies_environment() else get_environ_proxies(url)))
    if proxy and not _usable(proxy):
        raise bad_proxy()
    return {urlsplit(url).scheme: proxy} if proxy else {}


def _usable(proxy: str) -> bool:
    """Whether this is an address, ``host:port`` at least; the layers below raise different errors for all others."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy.removeprefix('//')}")
        name, _ = parts.hostname or "", parts.port
        name.encode("idna")
    except ValueError:
        return False
    return parts.scheme in _KINDS and bool(name) and name.isprintable() and " " not in name


def _direct(url: str, no_proxy: str) -> bool:
    parts = urlsplit(url)
    name, port = parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme)
    if is_loopback(name):
        return True
    # Go takes commas only; curl and requests have taught people to write spaces.
    return any(_matches(item, name, port) for item in no_proxy.lower().replace(",", " ").split())


def _matches(item: str, name: str, port: int | None) -> bool:
    """Whether an item of NO_PROXY means the host: ``*``, an address, a network, a domain, the last three with a port.

    ``x.org`` is the host and all below it; ``.x.org`` and ``*.x.org`` are what lies below it.
    """
    if item == "*":
        return True
    address = literal(name)
    if (network := _network(item)) is not None:
        return address is not None and address in network
    host, digits = _split(item)
    if digits and digits != str(port):
        return False
    if (numbers := _network(host)) is not None:
        return address is not None and address in numbers
    host = host.removeprefix("*") if host.startswith("*.") else host
    return bool(host) and (name.endswith(host) if host.startswith(".") else f".{name}".endswith(f".{host}"))


def _split(item: str) -> tuple[str, str]:
    """Host and port as Go's net.SplitHostPort finds them; the port is empty where there is none."""
    host, _, port = item.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], port
    return (host, port) if host and ":" not in host else (item.strip("[]"), "")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
