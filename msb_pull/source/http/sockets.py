"""Sockets that wait patiently but hear a cancel: every wait is cut into short slices.

A thread blocked in ``recv`` cannot be told to stop from outside, and a timeout in the middle of a buffered read would
lose what had arrived. So the slicing lies below all buffering, in the socket itself: for http.client and urllib3 these
are ordinary sockets with an ordinary timeout.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msb_pull.ground.running import Cancel

# The longest that a cancel stays unheard, in seconds.
SLICE = 0.25


class OutOfTime(TimeoutError):
    """A wait that took too long; its text says for what, and how many seconds were allowed."""


def nothing_came(seconds: float) -> OutOfTime:
    """The error for a side that has said nothing for so many seconds."""
    return OutOfTime(f"no answer for too long ({seconds:g} seconds)")


class Deadline:
    """The moment by which an answer must be complete, whatever trickles in until then; ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        self.heard = False
        self.seconds = seconds
        self.at = time.monotonic() + seconds

    def check(self) -> None:
        """Raises OutOfTime once it has passed."""
        if time.monotonic() < self.at:
            return
        if not self.heard:
            raise nothing_came(self.seconds)
        raise OutOfTime(f"the answer was not complete within {self.seconds:g} seconds")


class Patience:
    """What a wait looks at between two slices."""

    def __init__(self, cancel: Cancel) -> None:
        self.cancel = cancel
        self._own = threading.local()

    def hear(self, cancel: Cancel) -> None:
        """Makes the calling thread obey this cancel, which includes that of all the others."""
        self._own.cancel = cancel

    @contextlib.contextmanager
    def until(self, deadline: Deadline | None) -> Iterator[None]:
        """Lets whatever the calling thread reads in this block end at the deadline, or at an earlier one of a block
        around it; None: at none.
        """
        before = self._deadline
        self._own.deadline = before if before and deadline and before.at < deadline.at else deadline
        try:
            yield
        finally:
            self._own.deadline = before

    @contextlib.contextmanager
    def obeying(self, cancel: Cancel) -> Iterator[None]:
        """The same for as long as the block lasts."""
        before = self.heard
        self.hear(cancel)
        try:
            yield
        finally:
            self.hear(before)

    @property
    def heard(self) -> Cancel:
        """The cancel that the calling thread obeys."""
        cancel: Cancel = getattr(self._own, "cancel", self.cancel)
        return cancel

    def check(self) -> None:
        """Raises Cancelled once work is to end, OutOfTime once the thread's deadline has passed."""
        self.heard.check()
        if (deadline := self._deadline) is not None:
            deadline.check()

    def receive(self, action: Callable[[], Any], timeout: float | None) -> Any:
        """As :meth:`retry`, for an action that brings something of an answer."""
        result = self.retry(action, timeout)
        if (deadline := self._deadline) is not None:
            deadline.heard = True
        return result

    def retry(self, action: Callable[[], Any], timeout: float | None) -> Any:
        """Repeats an action that ends in TimeoutError after a slice; after ``timeout`` seconds raises OutOfTime."""
        end = time.monotonic() + (timeout or 0.0)
        while True:
            # Before each attempt: while bytes trickle in, none of them times out.
            self.check()
            try:
                return action()
            except TimeoutError:
                if timeout is not None and time.monotonic() >= end:
                    raise nothing_came(timeout) from None

    @property
    def _deadline(self) -> Deadline | None:
        deadline: Deadline | None = getattr(self._own, "deadline", None)
        return deadline


class _Patient:
    """What plain and TLS sockets have in common; ``settimeout`` keeps its meaning for the caller."""

    patience: Patience
    total: float | None = None

    def settimeout(self: Any, value: float | None) -> None:
        """Keeps the timeout of the whole wait, and gives the system the slice."""
        self.total = value
        super().settimeout(SLICE if value is None else min(value, SLICE))  # type: ignore[misc]

    def gettimeout(self) -> float | None:
        """The timeout of the whole wait."""
        return self.total

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As usual, but raises what :meth:`Patience.retry` does; TLS inside TLS reads through this one."""
        receive = super().recv  # type: ignore[misc]
        data: bytes = self.patience.receive(lambda: receive(buflen, flags), self.total)
        return data

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As usual, but raises what :meth:`Patience.retry` does."""
        receive = super().recv_into  # type: ignore[misc]
        # Left out, it means as much as fits for the plain and for the TLS socket; spelled out, they differ.
        sizes = () if nbytes is None else (nbytes, flags)
        count: int = self.patience.receive(lambda: receive(buffer, *sizes), self.total)
        return count


class PatientSocket(_Patient, socket.socket):
    """A TCP socket whose reads hear a cancel and end at the deadline."""


class PatientTLSSocket(_Patient, ssl.SSLSocket):
    """The same for TLS: reads and the handshake."""

    def do_handshake(self, block: bool = False) -> None:
        """As usual, but raises what :meth:`Patience.retry` does."""
        shake = super().do_handshake
        try:
            self.patience.retry(lambda: shake(block), self.total)
        except (Cancelled, OutOfTime):
            # ssl closes a half-made socket only for errors of the system.
            self.close()
            raise

    def is_idle(self) -> bool:
        """Whether the connection is open and the other side has sent nothing, its TLS messages apart."""
        total = self.total
        super().settimeout(0)
        try:
            ssl.SSLSocket.recv(self, 1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        finally:
            self.settimeout(total)
        return False


def tls_socket_class(patience: Patience) -> type[ssl.SSLSocket]:
    """The class for ``SSLContext.sslsocket_class``; a context passes no arguments of ours to its sockets."""
    return type("PatientTLSSocket", (PatientTLSSocket,), {"patience": patience})
