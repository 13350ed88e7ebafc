"""Proxies that count what passes through them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from urllib.parse import urlsplit

import trustme

from tests.support.raw import RawServer

NAME = "registry.example"  # only the proxy knows where it is


class Proxy(RawServer):
    """A proxy: CONNECT, requests with whole addresses, and SOCKS 5. ``tls``: it is itself spoken to in TLS.

    Every host that is not an address leads to ``port`` on this machine.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, socks: bool = False) -> None:
        super().__init__(self._pass_on)
        self.asked: list[str] = []
        self.heads: list[str] = []
        self._to, self._tls, self._socks = port, tls, socks

    def _pass_on(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection.makefile("rb") as reading:
                (self._serve_socks if self._socks else self._serve_http)(connection, reading)

    def _serve_http(self, connection: socket.socket, reading) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reading.readline()
            if not line:
                return
            head += line
        self.heads.append(head.decode())
        method, target, _ = head.decode().split(" ", 2)
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        self.asked.append(parts.netloc)
        with self._onward(parts.hostname) as onward:
            if method == "CONNECT":
                connection.sendall(b"HTTP/1.1 200 Go ahead\r\n\r\n")
            else:
                # One request for each connection is enough here, so that no second one needs to be taken apart.
                path = target[target.index(parts.netloc) + len(parts.netloc) :]
                lines = head.decode().split("\r\n")[1:-2]
                kept = [x for x in lines if not x.lower().startswith(("connection:", "proxy-"))]
                onward.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode())
            both_ways(connection, onward)

    def _serve_socks(self, connection: socket.socket, reading) -> None:
        _, count = reading.read(2)
        reading.read(count)
        connection.sendall(b"\x05\x00")
        _, _, _, kind = reading.read(4)
        address = reading.read(4 if kind == 1 else reading.read(1)[0])
        (port,) = struct.unpack(">H", reading.read(2))
        host = socket.inet_ntoa(address) if kind == 1 else address.decode()
        self.asked.append(f"{host}:{port}")
        with self._onward(host) as onward:
            connection.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
            both_ways(connection, onward)

    def _onward(self, host: str | None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._to))


def both_ways(one: socket.socket, other: socket.socket) -> None:
    """Passes bytes on until one side ends."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=copy, args=(other, one), daemon=True)
    back.start()
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    back.join(10)


def context_for(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context
