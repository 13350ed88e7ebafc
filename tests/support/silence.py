"""A server that accepts and says nothing."""

from __future__ import annotations

import contextlib
import socket


@contextlib.contextmanager
def silent_server(host="127.0.0.1"):
    """A full backlog: the SYN of one more client is not answered."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind((host, 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server
