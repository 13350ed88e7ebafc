"""Where to ask for a repository: the registry itself or one of its mirrors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from msb_pull.ground.errors import UsageError
from msb_pull.image.host import literal
from msb_pull.image.reference import DEFAULT_REGISTRY
from msb_pull.source.http.addresses import host_name, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Registries that are not at the host of their name (containerd and containers/image use the same one).
HOSTS = {DEFAULT_REGISTRY: "registry-1.docker.io"}


class Endpoint(NamedTuple):
    """One host that may serve a registry's content.

    ``host`` is ``host[:port]``. ``scheme`` None means: https, and http where a loopback host does not speak TLS.
    ``namespace`` is the registry that a mirror stands in for, "" for the registry itself.
    """

    host: str
    scheme: str | None = "https"
    prefix: str = ""
    namespace: str = ""

    def url(self, scheme: str, repository: str, kind: str, name: str) -> str:
        """The address of a manifest or blob; mirrors are told the registry as containerd tells them (``?ns=``)."""
        return self.api(scheme, f"{repository}/{kind}/{name}")

    def api(self, scheme: str, path: str = "") -> str:
        """An address below ``/v2/``, by default that itself, where registries say how to log in."""
        sign = "&" if "?" in path else "?"
        query = f"{sign}ns={quote(self.namespace, safe=':')}" if self.namespace else ""
        return f"{scheme}://{self.host}{self.prefix}/v2/{path}{query}"


class Target(NamedTuple):
    """What is being asked for: a repository at an endpoint; ``what`` names the image in messages."""

    endpoint: Endpoint
    repository: str
    registry: str
    what: str

    @property
    def key(self) -> tuple[str, str]:
        """What a token is good for."""
        return self.endpoint.host, self.repository


def endpoints(registry: str, mirrors: Mapping[str, Sequence[str]], plain_http: frozenset[str]) -> tuple[Endpoint, ...]:
    """The mirrors of a registry in order, then itself. Raises UsageError for a mirror whose address is invalid."""
    found = [_mirror(text, registry, plain_http) for text in mirrors.get(registry, ())]
    host = HOSTS.get(registry, registry)
    return (*found, Endpoint(host, "http" if registry in plain_http else _scheme(host)))


def _mirror(text: str, registry: str, plain_http: frozenset[str]) -> Endpoint:
    bad = UsageError(f"mirror of {registry}: not an address", hint="write it like https://mirror.example.com")
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        _ = parts.port
    except ValueError:
        raise bad from None
    if parts.scheme not in ("", "http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in text:
        raise bad
    scheme = parts.scheme or ("http" if parts.netloc in plain_http else _scheme(parts.netloc))
    prefix = parts.path.rstrip("/").removesuffix("/v2")
    return Endpoint(parts.netloc, scheme, prefix, registry)


def _scheme(host: str) -> str | None:
    return None if is_loopback(host_name(host)) else "https"


def forbidden(address: str, base: str) -> str | None:
    """Why an address that ``base`` names must not be asked, None when it may.

    A hostile registry must not make us send anything in the clear, or ask services of the user's own network or
    machine (go-containerregistry's validateRealmURL); its own host is fine, and this machine for a registry on it.
    """
    here = urlsplit(base)
    try:
        there = urlsplit(address)
        name, _ = there.hostname or "", there.port
    except ValueError:
        return "no usable address"
    if there.scheme not in ("http", "https") or not name or "@" in there.netloc:
        return "no usable address"
    if there.scheme == "http" and here.scheme != "http":
        return "an address that is not encrypted"
    own = here.hostname or ""
    if name == own or (is_loopback(name) and is_loopback(own)):
        return None
    numbers = literal(name)
    if is_loopback(name) or (numbers is not None and not numbers.is_global):
        return "an address inside a private network"
    return None
