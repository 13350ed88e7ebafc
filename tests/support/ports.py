"""Ports of this machine on which nobody listens."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """One that stays free until it is used.

    Systems give those from 32768 on to whoever asks for any, as all servers and clients of other tests do: such a one
    may be theirs by then.
    """
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, 32_768)
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port
