"""Sockets that wait patiently but hear a cancel: every wait is cut into short slices.

A thread blocked in ``recv`` cannot be told to stop from outside, and a timeout in the middle of a buffered read would
lose what had arrived. So the slicing lies below all buffering, in the socket itself: for http.client and urllib3 these
are ordinary sockets with an ordinary timeout.
"""

from __future__ import annotations

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
        self._cancel = cancel
        self._own = threading.local()

    def also(self, stop: threading.Event) -> None:
        """Makes the calling thread hear this flag as well."""
        self._own.stop = stop

    def check(self) -> None:
        """Raises Cancelled once a flag is set."""
        stop: threading.Event | None = getattr(self._own, "stop", None)
        if self._cancel.is_set() or (stop is not None and stop.is_set()):
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
