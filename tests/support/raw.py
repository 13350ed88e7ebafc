"""A server that says exactly the bytes a test wants: below HTTP, where no well-behaved library would go."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

Talk = Callable[[socket.socket, int], None]


class RawServer:
    """Hands every connection, with its number from 0, to ``talk`` on a thread of its own, and closes it afterwards."""

    def __init__(self, talk: Talk) -> None:
        self.count = 0
        self._talk = talk
        self._open: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for item in [self._socket, *self._open]:
            # A thread that waits for it does not notice that it is closed.
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            number = self.count
            # Before anything is answered: a client may be done with the answer before this thread goes on.
            self.count += 1
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            self._talk(connection, number)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def read_head(connection: socket.socket) -> str:
    """One request without a body, "" where the client hung up."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            return ""
        head += piece
    return head.decode()


def answer(status: str, body: bytes = b"", *headers: str, length: bool = True) -> bytes:
    """The bytes of one answer; without ``length`` only the end of the connection ends it."""
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else ["Connection: close"])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def trickle(connection: socket.socket, data: bytes, pause: float = 0.1) -> None:
    """Sends byte by byte."""
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(pause)


def pass_on(port: int, before: bytes = b"", *, from_request: int = 0) -> Talk:
    """Passes requests on to a server on this machine, with ``before`` ahead of every answer."""

    def talk(connection: socket.socket, number: int) -> None:
        while head := read_head(connection):
            lines = [x for x in head.split("\r\n")[:-2] if not x.lower().startswith("connection:")]
            with socket.create_connection(("127.0.0.1", port)) as onward:
                onward.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
                whole = b"".join(iter(lambda: onward.recv(65536), b""))
            connection.sendall(before + whole)

    return talk
