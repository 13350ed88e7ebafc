"""What broke below HTTP, in one line for a person and in flags for the decision whether to retry."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import ssl
from dataclasses import KW_ONLY, dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import requests
import urllib3

from msb_pull.ground.errors import MsbPullError
from msb_pull.ground.text import clipped
from msb_pull.source.http.redact import MESSAGE_LIMIT
from msb_pull.source.http.retry import RETRY_STATUS
from msb_pull.source.http.sockets import OutOfTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What the layers below raise when a connection or an answer breaks.
# UnicodeError: an address with a name or a password that they cannot encode.
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, UnicodeError)
# What proxies say to requests in the clear and to CONNECT alike.
PROXY_LOGIN = "the proxy requires a user name and password (407 Proxy Authentication Required)"
PROXY_LOGIN_HINT = "put them into HTTPS_PROXY or HTTP_PROXY, like http://user:password@proxy.example.com:3128"
# TLS alerts that another attempt would get as well; others (internal_error) may come from a server in trouble.
_LASTING_ALERTS = (
    *("HANDSHAKE_FAILURE", "PROTOCOL_VERSION", "INSUFFICIENT_SECURITY", "UNRECOGNIZED_NAME", "ACCESS_DENIED"),
    *("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_REQUIRED", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN"),
)
_NOT_TLS = frozenset(
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
)
# http.client says only in its text what a proxy has answered to CONNECT.
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})", re.ASCII)


class RangeIgnored(Exception):
    """A part was asked for and not given; the next request asks for the whole blob."""


@dataclass(eq=False, repr=False)
class Failure(Exception):
    """No usable answer. ``reason`` is one line without secrets.

    ``retry``: it may pass. ``unreached``: nothing listens there, or no such name. ``dropped``: an open connection
    ended before an answer, as kept-alive ones do. ``not_tls``: the other side does not seem to speak TLS.
    ``answered``: there was an answer, but a useless one. ``retry_after``: seconds that it asked us to wait.
    ``limited``: it said that we ask too often. ``final``: the error that this is where no other try is made.
    """

    reason: str
    _: KW_ONLY
    retry: bool = True
    unreached: bool = False
    dropped: bool = False
    not_tls: bool = False
    retry_after: float | None = None
    limited: bool = False
    answered: bool = False
    hint: str | None = None
    final: MsbPullError | None = None


def failure_of(error: Exception, hide: Callable[[str], str]) -> Failure | MsbPullError:
    """The Failure behind one of :data:`BROKEN`, or our own error where that is what they wrap.

    Some of them quote what a server has sent; ``hide`` takes the secrets out.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, MsbPullError | Failure):
            return cause
    for look in (partial(_proxy, hide=hide), _certificate, _name, _waiting, _reading):
        for cause in chain:
            if (found := look(cause)) is not None:
                return found
    return Failure(_short(chain[-1], hide))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it wraps: requests wraps urllib3, which wraps the system's own."""
    seen: set[int] = set()
    queue: list[object] = [error]
    while queue:
        item = queue.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        queue += [getattr(item, "reason", None), item.__cause__, *item.args]
        if not item.__suppress_context__:
            queue.append(item.__context__)


def _proxy(cause: BaseException, hide: Callable[[str], str]) -> Failure | None:
    if isinstance(cause, requests.exceptions.InvalidProxyURL | urllib3.exceptions.ProxySchemeUnknown):
        return bad_proxy()
    if isinstance(cause, requests.exceptions.InvalidSchema) and "SOCKS" in str(cause):
        hint = "install PySocks (`pip install pysocks`)"
        return Failure("the proxy is a SOCKS proxy, which needs PySocks", retry=False, hint=hint)
    if isinstance(cause, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema | UnicodeError):
        return Failure("the address cannot be used", retry=False)
    if isinstance(cause, urllib3.exceptions.ProxyError):
        inner = [
            x for x in _causes(cause) if isinstance(x, OSError) and not isinstance(x, urllib3.exceptions.HTTPError)
        ]
        reason = _short(inner[-1] if inner else cause, hide)
        if (refused := _TUNNEL.match(reason)) is not None:
            return _tunnel_refused(int(refused[1]), reason.removeprefix(refused[0]).strip())
        return Failure(f"the proxy failed: {reason}", unreached=True)
    if type(cause).__name__ == "SOCKS5AuthError":
        # PySocks need not be installed, so its classes cannot be named.
        return Failure("the proxy does not accept the user name and password", retry=False, hint=PROXY_LOGIN_HINT)
    return None


def bad_proxy() -> Failure:
    """The failure for a proxy whose address is invalid."""
    return Failure("the address of the proxy cannot be used", retry=False, hint="check HTTPS_PROXY and HTTP_PROXY")


def _tunnel_refused(status: int, phrase: str) -> Failure:
    """What a proxy's answer to CONNECT means, which stands for every later one unless the status says otherwise."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return Failure(PROXY_LOGIN, retry=False, hint=PROXY_LOGIN_HINT)
    retry = status in RETRY_STATUS
    hint = None if retry else "ask whoever runs the proxy, or name the registry in NO_PROXY if it is reached directly"
    return Failure(f"the proxy refused the connection: {status} {phrase}".rstrip(), retry=retry, hint=hint)


def _certificate(cause: BaseException) -> Failure | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Failure(
            f"the certificate is not accepted: {clipped(cause.verify_message, MESSAGE_LIMIT)}",
            retry=False,
            hint="give the authority's certificate with --ca-cert, or --tls-no-verify if you accept the risk",
        )
    if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Failure("the other side closed the connection in the middle of TLS", dropped=True)
    if isinstance(cause, ssl.SSLError):
        reason = clipped(cause.reason or str(cause), MESSAGE_LIMIT).replace("_", " ").lower()
        not_tls = cause.reason in _NOT_TLS
        lasting = "ALERT" in (cause.reason or "") and (cause.reason or "").endswith(_LASTING_ALERTS)
        hint = "it may want a client certificate (`certs.d` of docker or podman) or another version of TLS"
        retry = not (not_tls or lasting)
        return Failure(f"TLS failed: {reason}", retry=retry, not_tls=not_tls, hint=hint if lasting else None)
    return None


def _name(cause: BaseException) -> Failure | None:
    if not isinstance(cause, socket.gaierror):
        return None
    temporary = cause.errno == socket.EAI_AGAIN
    return Failure(f"the name cannot be resolved: {cause.strerror or cause}", retry=temporary, unreached=True)


def _waiting(cause: BaseException) -> Failure | None:
    if isinstance(cause, urllib3.exceptions.ConnectTimeoutError) and not isinstance(
        cause, urllib3.exceptions.NewConnectionError
    ):
        # Our own sockets say how long they have waited; those of a SOCKS proxy do not, nor does the system.
        return Failure(_told(cause, "timed out while connecting"), unreached=True)
    if isinstance(cause, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError | TimeoutError):
        return Failure(_told(cause, "no answer for too long"))
    return None


def _told(error: BaseException, otherwise: str) -> str:
    return next((str(x) for x in _causes(error) if isinstance(x, OutOfTime)), otherwise)


def _reading(cause: BaseException) -> Failure | None:
    if isinstance(cause, http.client.BadStatusLine | http.client.UnknownProtocol) and not isinstance(
        cause, http.client.RemoteDisconnected
    ):
        return Failure("what it answers is not HTTP/1")
    if isinstance(cause, urllib3.exceptions.IncompleteRead):
        return Failure("the connection ended before the end of the answer", dropped=True)
    if isinstance(cause, OSError) and cause.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH):
        return Failure(_system(cause), unreached=True)
    if isinstance(cause, ConnectionError) and not isinstance(cause, requests.RequestException):
        return Failure(_system(cause), dropped=True)
    return None


def _system(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "the connection was closed without an answer"


def _short(error: BaseException, hide: Callable[[str], str]) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return clipped(hide(text) or type(error).__name__, MESSAGE_LIMIT)
