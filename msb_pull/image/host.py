"""Hosts of registries: which spellings mean the same one."""

from __future__ import annotations

import ipaddress
import socket

# Where Docker Hub can be reached, besides docker.io.
_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")


def literal(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host name is, in any spelling that resolvers accept (``0x7f.1``, ``2130706433``)."""
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def canonical_host(host: str) -> str:
    """One spelling of ``host[:port]``, for comparisons: names in lower case, addresses in full, no port of https.

    Docker Hub is ``docker.io``. What is no host, as a glob, is left as it is but for its case and its port.
    """
    name, colon, port = host.lower().rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()):
        name, port = host.lower(), ""
    address = literal(name.removeprefix("[").removesuffix("]"))
    if address is not None:
        name = f"[{address}]" if address.version == 6 else str(address)
    # A port may have zeros in front of it.
    port = port.lstrip("0")
    name = "docker.io" if name in _DOCKER_HUB and port in ("", "443") else name
    return name if port in ("", "443") else f"{name}:{port}"
