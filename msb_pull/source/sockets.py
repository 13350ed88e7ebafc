"""Sockets that wait patiently but hear a cancel: every wait is cut into short slices.

A thread blocked in ``recv`` cannot be told to stop from outside, and a timeout in the middle of a buffered read would
lose what had arrived. So the slicing lies below all buffering, in the socket itself: for http.client and urllib3 these
are ordinary sockets with an ordinary timeout.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from msb_pull.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

# The longest that a cancel stays unheard, in seconds.
SLICE = 0.25


class Patience:
    """What a wait looks at between two slices."""

    def __init__(self, cancel: threading.Event) -> None:
        self.cancel = cancel

    def check(self) -> None:
        """Raises Cancelled once the flag is set."""
        if self.cancel.is_set():
            raise Cancelled("interrupted")

    def retry(self, action: Callable[[], Any], timeout: float | None) -> Any:
        """Repeats an action that ends in TimeoutError after a slice, until ``timeout`` seconds have gone by."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.check()
            try:
                return action()
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise


class PatientSocket(socket.socket):
    """A TCP socket whose reads look at the cancel flag; ``settimeout`` keeps its meaning for the caller."""

    patience: Patience
    total: float | None = None

    def settimeout(self, value: float | None) -> None:
        """Keeps the timeout of the whole wait, and gives the system the slice."""
        self.total = value
        super().settimeout(SLICE if value is None else min(value, SLICE))

    def gettimeout(self) -> float | None:
        """The timeout of the whole wait."""
        return self.total

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As ever, but Cancelled is raised when the flag is set."""
        receive = super().recv_into
        try:
            return receive(buffer, nbytes, flags)
        except TimeoutError:
            count: int = self.patience.retry(lambda: receive(buffer, nbytes, flags), _rest(self.total))
            return count


class PatientTLSSocket(ssl.SSLSocket):
    """The same for TLS: reads and the handshake."""

    patience: Patience
    total: float | None = None

    def settimeout(self, value: float | None) -> None:
        """Keeps the timeout of the whole wait, and gives the system the slice."""
        self.total = value
        super().settimeout(SLICE if value is None else min(value, SLICE))

    def gettimeout(self) -> float | None:
        """The timeout of the whole wait."""
        return self.total

    def do_handshake(self, block: bool = False) -> None:
        """As ever, but Cancelled is raised when the flag is set."""
        shake = super().do_handshake
        try:
            self.patience.retry(lambda: shake(block), self.total)
        except Cancelled:
            # ssl closes a half-made socket only for errors of the system.
            self.close()
            raise

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As ever, but Cancelled is raised when the flag is set."""
        receive = super().recv_into
        try:
            return receive(buffer, nbytes, flags)
        except TimeoutError:
            count: int = self.patience.retry(lambda: receive(buffer, nbytes, flags), _rest(self.total))
            return count


def _rest(total: float | None) -> float | None:
    return None if total is None else max(total - SLICE, 0.0)


def tls_socket_class(patience: Patience) -> type[ssl.SSLSocket]:
    """The class for ``SSLContext.sslsocket_class``; a context makes its sockets without arguments of ours."""
    return type("PatientTLSSocket", (PatientTLSSocket,), {"patience": patience})


def connect(host: str, port: int, timeout: float, patience: Patience, options: list[Any] | None) -> PatientSocket:
    """Opens a TCP connection to the first address that answers, ``timeout`` seconds for each.

    Raises OSError (gaierror, TimeoutError, …) of the last address tried, and Cancelled.
    """
    trouble: OSError = OSError(errno.EHOSTUNREACH, "the name has no address")
    for family, kind, protocol, _, address in _lookup(host.strip("[]"), port, patience):
        connection = PatientSocket(family, kind, protocol)
        connection.patience = patience
        try:
            for option in options or ():
                connection.setsockopt(*option)
            _connect_one(connection, address, timeout, patience)
            return connection
        except OSError as error:
            connection.close()
            trouble = error
        except BaseException:
            connection.close()
            raise
    raise trouble


def _connect_one(connection: PatientSocket, address: Any, timeout: float, patience: Patience) -> None:
    connection.setblocking(False)
    code = connection.connect_ex(address)
    deadline = time.monotonic() + timeout
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        while not poll.poll(SLICE * 1000):
            patience.check()
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"no connection within {timeout:g} seconds")
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    connection.settimeout(timeout)


def speaks_tls(host: str, port: int, timeout: float, patience: Patience) -> bool:
    """Whether a server answers a TLS hello in kind; no certificate is looked at and nothing is sent.

    Raises OSError when there is no server, Cancelled.
    """
    connection = connect(host, port, timeout, patience, None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = tls_socket_class(patience)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connection, context.wrap_socket(connection, server_hostname=host.strip("[]")):
            return True
    except ssl.SSLError as error:
        # An alert is TLS as well: the server refuses this hello, but it has understood it.
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _lookup(host: str, port: int, patience: Patience) -> list[Any]:
    """getaddrinfo cannot be interrupted and may take half a minute, so a name is looked up on a thread of its own."""
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look, name="lookup", daemon=True)
    thread.start()
    while thread.is_alive():
        patience.check()
        thread.join(SLICE)
    if isinstance(found[0], UnicodeError):
        raise socket.gaierror(socket.EAI_NONAME, "the name is not valid")
    if isinstance(found[0], OSError):
        raise found[0]
    addresses: list[Any] = found[0]
    return addresses
