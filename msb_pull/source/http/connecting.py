"""New connections: names looked up and addresses tried so that a cancel is heard and a dead address costs little."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

from msb_pull.ground.running import start_thread
from msb_pull.source.http.sockets import SLICE, Deadline, OutOfTime, PatientSocket, tls_socket_class

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.source.http.sockets import Patience

# An address that has not answered after this many seconds is joined by the next one (RFC 8305; Go waits 0.3).
_HEAD_START = 0.3
_HTTP = b"HTTP/"
_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR)


def connect(host: str, port: int, timeout: float, patience: Patience, options: Iterable[Any] = ()) -> PatientSocket:
    """Opens a TCP connection to the first address that answers, ``timeout`` seconds for each.

    Raises OSError (gaierror, TimeoutError, …) of the last address tried, and Cancelled.
    """
    race = _Race(timeout, patience, tuple(options))
    return race.run(_interleaved(_lookup(host.strip("[]"), port, patience)))


class _Race:
    """Several connections being made at once, of which the first to be ready wins."""

    def __init__(self, timeout: float, patience: Patience, options: tuple[Any, ...]) -> None:
        self._timeout = timeout
        self._patience = patience
        self._options = options
        self._poll = select.poll()
        self._open: dict[int, tuple[PatientSocket, float]] = {}
        self._trouble: OSError = OSError(errno.EHOSTUNREACH, "the name has no address")

    def run(self, addresses: list[Any]) -> PatientSocket:
        try:
            while addresses or self._open:
                self._patience.check()
                if addresses:
                    self._start(addresses.pop(0))
                winner = self._wait(_HEAD_START if addresses else SLICE)
                if winner is not None:
                    winner.settimeout(self._timeout)
                    return winner
        finally:
            for connection, _ in self._open.values():
                connection.close()
        raise self._trouble

    def _start(self, address: Any) -> None:
        family, kind, protocol, _, place = address
        try:
            connection = PatientSocket(family, kind, protocol)
        except OSError as error:
            # A machine without IPv6 may still get such addresses from its resolver.
            self._trouble = error
            return
        connection.patience = self._patience
        self._open[connection.fileno()] = connection, time.monotonic() + self._timeout
        for option in self._options:
            connection.setsockopt(*option)
        connection.setblocking(False)
        code = connection.connect_ex(place)
        if code and code not in _PENDING:
            self._drop(connection, OSError(code, os.strerror(code)))
            return
        self._poll.register(connection, select.POLLOUT)

    def _wait(self, seconds: float) -> PatientSocket | None:
        """The connection that is ready; None after ``seconds``, or as soon as one has failed."""
        for number, _ in self._poll.poll(seconds * 1000) if self._open else ():
            connection, _ = self._open[number]
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                self._poll.unregister(connection)
                del self._open[number]
                return connection
            self._poll.unregister(connection)
            self._drop(connection, OSError(code, os.strerror(code)))
        now = time.monotonic()
        for connection, deadline in list(self._open.values()):
            if now >= deadline:
                self._poll.unregister(connection)
                self._drop(connection, OutOfTime(f"no connection within {self._timeout:g} seconds"))
        return None

    def _drop(self, connection: PatientSocket, trouble: OSError) -> None:
        del self._open[connection.fileno()]
        connection.close()
        self._trouble = trouble


def _interleaved(addresses: list[Any]) -> list[Any]:
    """The families in turn, the resolver's first choice first (RFC 8305, section 4)."""
    first = [x for x in addresses if x[0] == addresses[0][0]]
    others = [x for x in addresses if x[0] != addresses[0][0]]
    return [x for pair in itertools.zip_longest(first, others) for x in pair if x is not None]


def speaks_tls(host: str, port: int, timeout: float, patience: Patience) -> bool:
    """Whether a server answers a TLS hello in kind; no certificate is looked at and nothing is sent.

    One that hangs up gets a second hello, since a busy one may do so. Raises OSError when there is no server,
    Cancelled.
    """
    found = _greet(host, port, timeout, patience)
    return bool(_greet(host, port, timeout, patience) if found is None else found)


def speaks_http(host: str, port: int, timeout: float, patience: Patience) -> bool:
    """Whether a server answers in plain HTTP, given nothing but its own name.

    Raises OSError when there is no server, Cancelled.
    """
    name = f"[{host}]" if ":" in host else host
    with connect(host, port, timeout, patience) as connection, patience.until(Deadline(timeout)):
        connection.sendall(f"GET /v2/ HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n".encode())
        start = b""
        while len(start) < len(_HTTP) and (piece := connection.recv(len(_HTTP) - len(start))):
            start += piece
    return start == _HTTP


def _greet(host: str, port: int, timeout: float, patience: Patience) -> bool | None:
    """None: the server hung up without a word."""
    connection = connect(host, port, timeout, patience)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = tls_socket_class(patience)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connection, context.wrap_socket(connection, server_hostname=host.strip("[]")):
            return True
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        return None
    except ssl.SSLError as error:
        # An alert is TLS as well: the server refuses this hello, but it has understood it.
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _lookup(host: str, port: int, patience: Patience) -> list[Any]:
    """getaddrinfo cannot be interrupted and may take half a minute, so a name is looked up on a thread of its own."""
    with contextlib.suppress(OSError, ValueError):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError, MemoryError) as error:
            found.append(error)

    thread = start_thread(look, "lookup")
    while thread.is_alive():
        patience.check()
        thread.join(SLICE)
    if isinstance(found[0], ValueError):
        raise socket.gaierror(socket.EAI_NONAME, "the name is not valid")
    if isinstance(found[0], (OSError, MemoryError)):
        raise found[0]
    addresses: list[Any] = found[0]
    return addresses
