"""requests' sessions with our sockets and our TLS contexts below them.

``tests/source/http/test_libraries.py`` lists the parts of the libraries that this relies on without a promise.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
from collections import deque
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_auth_from_url
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from msb_pull.ground.version import __version__
from msb_pull.source.http.connecting import connect
from msb_pull.source.http.sockets import SLICE, PatientSocket, PatientTLSSocket
from msb_pull.source.http.tls import SHARED

if TYPE_CHECKING:
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.http.tls import TrustStore

CONNECT_TIMEOUT = 10.0
# More interim answers than any server has a reason to send before the one that counts.
_MAX_INTERIM = 16


class _Response(http.client.HTTPResponse):
    """Skips interim answers (RFC 9110 15.2): 100, 102 and 103 say nothing that a pull could use."""

    # http.client knows 100 alone, and takes any number of them. This is also what reads the answer to CONNECT.
    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MAX_INTERIM + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == http.HTTPStatus.SWITCHING_PROTOCOLS or not 100 <= status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {_MAX_INTERIM} interim answers")


class _PatientConnect:
    """Opens connections that hear a cancel; everything else is urllib3's own."""

    patience: Patience
    connected: threading.Event
    response_class: Any = _Response

    def _new_conn(self: Any) -> PatientSocket:
        made: PatientSocket = self._connect()
        self.connected.set()
        return made

    def _connect(self: Any) -> PatientSocket:
        # The pool above expects urllib3's own errors.
        timeout = min(self.timeout, CONNECT_TIMEOUT) if isinstance(self.timeout, int | float) else CONNECT_TIMEOUT
        try:
            # This has a limit of its own; what follows on the connection ends at the deadline of what is asked for.
            with self.patience.until(None):
                return connect(self._dns_host, self.port, timeout, self.patience, self.socket_options or ())
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, str(error)) from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error


class _PatientSocks:
    """Turns what PySocks has connected into a socket that hears a cancel."""

    patience: Patience
    response_class: Any = _Response

    def _new_conn(self) -> PatientSocket:
        made = super()._new_conn()  # type: ignore[misc]
        timeout = made.gettimeout()
        connection = PatientSocket(fileno=made.detach())
        connection.patience = self.patience
        connection.settimeout(timeout)
        return connection


class _TLSConnection(_PatientConnect, HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        """Also where TLS itself has said something since (RFC 8446 4.6.1: tickets, just behind the handshake)."""
        return super().is_connected or (isinstance(self.sock, PatientTLSSocket) and self.sock.is_idle())

    def connect(self) -> None:
        super().connect()
        # Where checking is off, the user has asked for it and was told once; urllib3 would warn for every request.
        self.is_verified = True


class _Connection(_PatientConnect, HTTPConnection):
    pass


def _socks_pools(patience: Patience) -> dict[str, Any]:
    # Imported late, as PySocks may be missing; then requests has refused the proxy before.
    from urllib3.contrib.socks import (
        SOCKSConnection,
        SOCKSHTTPConnectionPool,
        SOCKSHTTPSConnection,
        SOCKSHTTPSConnectionPool,
    )

    plain = type("Connection", (_PatientSocks, SOCKSConnection), {"patience": patience})
    secure = type("TLSConnection", (_PatientSocks, SOCKSHTTPSConnection), {"patience": patience})
    return {
        "http": type("Pool", (SOCKSHTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("TLSPool", (SOCKSHTTPSConnectionPool,), {"ConnectionCls": secure}),
    }


class PatientAdapter(HTTPAdapter):
    """Gives every pool patient connections, and each host the TLS context of its own."""

    def __init__(self, trust: TrustStore, patience: Patience, connected: threading.Event) -> None:
        self._trust = trust
        self._patience = patience
        # The classes are made here since urllib3 passes no arguments of ours to connections.
        ours = {"patience": patience, "connected": connected}
        plain = type("Connection", (_Connection,), ours)
        secure = type("TLSConnection", (_TLSConnection,), ours)
        self._pools = {
            "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("TLSPool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }
        super().__init__(pool_connections=16, pool_maxsize=4)

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """Called by requests to make the pools of direct connections."""
        super().init_poolmanager(*arguments, **keywords)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: Any, **keywords: Any) -> Any:
        """Called by requests to make the pools behind a proxy."""
        if proxy.lower().startswith("https"):
            keywords["proxy_ssl_context"] = self._trust.context(SHARED)
        manager = super().proxy_manager_for(proxy, **keywords)
        socks = proxy.lower().startswith("socks")
        manager.pool_classes_by_scheme = _socks_pools(self._patience) if socks else self._pools
        return manager

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        """Called by requests for what only a proxy sees: its login, in UTF-8 as Go and curl send it, not latin-1."""
        username, password = get_auth_from_url(proxy)
        pair = f"{username}:{password}".encode("utf-8", "replace")
        return {"Proxy-Authorization": "Basic " + base64.b64encode(pair).decode("ascii")} if username else {}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: bool | str, cert: Any = None
    ) -> tuple[Any, Any]:
        """Called by requests for each request: which pool, with which context (``verify`` is the context's key)."""
        place, keywords = super().build_connection_pool_key_attributes(request, True)
        if place["scheme"] == "https":
            context = keywords["ssl_context"] = self._trust.context(str(verify))
            keywords["cert_reqs"] = "CERT_REQUIRED" if context.verify_mode else "CERT_NONE"
        return place, keywords

    @property
    def is_open(self) -> bool:
        """Whether a connection waits for the next request."""
        managers = (self.poolmanager, *self.proxy_manager.values())
        pools = [x.pools.get(key) for x in managers for key in list(x.pools.keys())]
        waiting = [x for pool in pools if pool and pool.pool for x in list(pool.pool.queue)]
        return any(x is not None and x.is_connected for x in waiting)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing: the context knows what to trust, and requests would load its whole bundle for every connection."""


class Sessions:
    """Lends sessions, each to one thread at a time, and keeps them since they keep connections."""

    def __init__(self, trust: TrustStore, patience: Patience) -> None:
        self._trust = trust
        self._patience = patience
        self._idle: deque[requests.Session] = deque()
        self._prepared: deque[requests.Session] = deque()
        # Those whose connection has not outlived its answer.
        self._spent: deque[requests.Session] = deque()
        self._connected = threading.Event()
        self._own = threading.local()
        self._all: list[requests.Session] = []
        self._lock = threading.Lock()

    def borrow(self) -> requests.Session:
        """A session that no other thread has; give it back."""
        reserved: requests.Session | None = self._own.__dict__.pop("session", None)
        if reserved is not None:
            return reserved
        # The last one first: its connections are the least likely to have been closed meanwhile. One that is open is
        # taken before one is made: a server that takes up one connection after the other waits for a request on that.
        for waiting in (self._idle, self._prepared, self._spent):
            with contextlib.suppress(IndexError):
                return waiting.pop()
        return self._new()

    def reserve(self) -> None:
        """Keeps a session for the next time that this thread borrows one."""
        self._own.session = self.borrow()

    def prepare(self, url: str, verify: str, timeout: float) -> None:
        """Adds a session with an open connection to the host of ``url``; raises what a request does.

        Not before the first request has one of its own, beside which others are of use, and which comes first at a
        server that takes up one after the other.
        """
        while not self._connected.wait(SLICE):
            self._patience.check()
        session = self._new()
        try:
            adapter: Any = session.get_adapter(url)
            pool = adapter.get_connection_with_tls_context(requests.Request("GET", url).prepare(), verify)
            connection = pool._get_conn()
            connection.timeout = timeout
            try:
                connection.connect()
            finally:
                pool._put_conn(connection)
        finally:
            self._prepared.append(session)

    def _new(self) -> requests.Session:
        session = _new_session(PatientAdapter(self._trust, self._patience, self._connected))
        with self._lock:
            self._all.append(session)
        return session

    def give_back(self, session: requests.Session) -> None:
        """Makes a session available again."""
        adapter: Any = session.get_adapter("https://")
        (self._idle if adapter.is_open else self._spent).append(session)

    def close(self) -> None:
        """Ends all of them, those that are lent as well."""
        with self._lock:
            sessions, self._all = self._all, []
            self._idle.clear()
            self._prepared.clear()
            self._spent.clear()
        for session in sessions:
            session.close()


def _new_session(adapter: PatientAdapter) -> requests.Session:
    session = _Session()
    # ~/.netrc would replace our Authorization, and an environment bundle our certificates.
    session.trust_env = False
    session.headers.clear()
    session.headers.update({"User-Agent": f"msb-pull/{__version__}", "Accept-Encoding": "identity"})
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: Any) -> None:
        """None: requests would read the whole body of every redirect to prepare a request that is not wanted."""
