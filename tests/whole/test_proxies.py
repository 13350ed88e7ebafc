"""The installed program behind proxies of every kind, and at registries whose names are not plain ASCII."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import socket
import ssl
import struct
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tests.conftest import REPOSITORY, program_environment
from tests.support.fault_registry import FaultRegistry
from tests.support.make_sample import BASE, layer_tar
from tests.support.program import run_program
from tests.support.raw import RawServer
from tests.whole.test_end_to_end import LINUX, free_port

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


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def context_for(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def add(registry: FaultRegistry) -> str:
    image = registry.add_image("acme/app", "1", [gzip.compress(layer_tar(BASE), 6, mtime=0)])
    return image.manifest_digest


def pull(place: Path, image: str, *arguments: str, path: str = "", **environment: str) -> subprocess.CompletedProcess:
    config = place / "config.toml"
    config.write_text("[pull]\nretries = 1\ntimeout = 5\n")
    words = ["pull", *LINUX, "--config", config, "--home", place / "store", *arguments, image]
    search = f"{path}:{REPOSITORY}" if path else str(REPOSITORY)
    run = run_program(words, env=program_environment(**environment) | {"PYTHONPATH": search})
    assert "Traceback" not in run.stderr and "mistake" not in run.stderr, run.stderr
    return run


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy", "ALL_PROXY"])
def test_plain_registry_through_a_plain_proxy(tmp_path, variable):
    with FaultRegistry() as registry, Proxy(registry.port) as proxy:
        digest = add(registry)
        run = pull(tmp_path, f"{NAME}/acme/app:1", "--plain-http", **{variable: f"http://{proxy.host}"})
        assert (run.returncode, run.stdout) == (0, f"{NAME}/acme/app:1@{digest}\n"), run.stderr
        assert set(proxy.asked) == {NAME}
        assert {x.headers["host"] for x in registry.asked("/v2/")} == {NAME}


@pytest.mark.parametrize("proxy_speaks_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("port", ["", ":5443"])
def test_tls_registry_through_a_proxy(tmp_path, authority, trusted, proxy_speaks_tls, port):
    """With a proxy that is itself reached by TLS this is TLS inside TLS."""
    scheme, tls = ("https", context_for(authority, "127.0.0.1")) if proxy_speaks_tls else ("http", None)
    with FaultRegistry(tls=context_for(authority, NAME)) as registry, Proxy(registry.port, tls=tls) as proxy:
        digest = add(registry)
        environment = {"HTTPS_PROXY": f"{scheme}://{proxy.host}", "SSL_CERT_FILE": trusted}
        run = pull(tmp_path, f"{NAME}{port}/acme/app:1", **environment)
        assert (run.returncode, run.stdout) == (0, f"{NAME}{port}/acme/app:1@{digest}\n"), run.stderr
        assert set(proxy.asked) == {f"{NAME}{port or ':443'}"}
        assert {x.headers["host"] for x in registry.asked("/v2/")} == {f"{NAME}{port}"}


def test_plain_registry_through_an_https_proxy(tmp_path, authority, trusted):
    with FaultRegistry() as registry, Proxy(registry.port, tls=context_for(authority, "127.0.0.1")) as proxy:
        digest = add(registry)
        environment = {"http_proxy": f"https://{proxy.host}", "SSL_CERT_FILE": trusted}
        run = pull(tmp_path, f"{NAME}/acme/app:1", "--plain-http", **environment)
        assert (run.returncode, run.stdout) == (0, f"{NAME}/acme/app:1@{digest}\n"), run.stderr


def test_an_https_proxy_that_nobody_vouches_for(tmp_path, authority):
    with FaultRegistry() as registry, Proxy(registry.port, tls=context_for(authority, "127.0.0.1")) as proxy:
        for variable, option in (("http_proxy", ["--plain-http"]), ("https_proxy", [])):
            run = pull(tmp_path, f"{NAME}/acme/app:1", *option, **{variable: f"https://{proxy.host}"})
            assert (run.returncode, run.stdout) == (5, ""), run.stderr
            assert "certificate" in run.stderr
        assert registry.count() == 0


def test_a_proxy_that_speaks_no_tls_though_its_address_says_so(tmp_path):
    with FaultRegistry() as registry, Proxy(registry.port) as proxy:
        run = pull(tmp_path, f"{NAME}/acme/app:1", https_proxy=f"https://{proxy.host}")
        assert (run.returncode, run.stdout) == (5, ""), run.stderr
        assert registry.count() == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_where_nobody_listens(tmp_path, scheme):
    run = pull(tmp_path, f"{NAME}/acme/app:1", HTTPS_PROXY=f"{scheme}://127.0.0.1:{free_port()}")
    assert (run.returncode, run.stdout) == (5, ""), run.stderr
    assert "proxy" in run.stderr


@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_socks_without_pysocks_says_so_at_once(tmp_path, scheme, variable):
    (tmp_path / "socks.py").write_text("raise ImportError('not installed')\n")
    proxy = f"{scheme}://127.0.0.1:{free_port()}"
    run = pull(tmp_path, f"{NAME}/acme/app:1", path=str(tmp_path), **{variable: proxy})
    assert (run.returncode, run.stdout) == (5, ""), run.stderr
    assert "cause: the proxy is a SOCKS one, for which PySocks is missing\n" in run.stderr
    assert "hint: install PySocks" in run.stderr
    assert "trying again" not in run.stderr.lower()


needs_pysocks = pytest.mark.skipif(not importlib.util.find_spec("socks"), reason="PySocks is not installed")


@needs_pysocks
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_socks_with_pysocks(tmp_path, authority, trusted, secure):
    tls = context_for(authority, NAME) if secure else None
    with FaultRegistry(tls=tls) as registry, Proxy(registry.port, socks=True) as proxy:
        digest = add(registry)
        environment = {"ALL_PROXY": f"socks5h://{proxy.host}", "SSL_CERT_FILE": trusted}
        path = str(Path(importlib.util.find_spec("socks").origin).parent)
        option = [] if secure else ["--plain-http"]
        run = pull(tmp_path, f"{NAME}/acme/app:1", *option, path=path, **environment)
        assert (run.returncode, run.stdout) == (0, f"{NAME}/acme/app:1@{digest}\n"), run.stderr
        assert set(proxy.asked) == {f"{NAME}:{443 if secure else 80}"}


# Names of registries


def test_an_international_name_in_its_ascii_form(tmp_path, authority, trusted):
    """What DNS, certificates and the Host header carry is the ASCII form, and that is what references hold."""
    name = "xn--bcher-kva.example"
    with FaultRegistry(tls=context_for(authority, name)) as registry, Proxy(registry.port) as proxy:
        digest = add(registry)
        environment = {"HTTPS_PROXY": f"http://{proxy.host}", "SSL_CERT_FILE": trusted}
        run = pull(tmp_path, f"{name}:5443/acme/app:1", **environment)
        assert (run.returncode, run.stdout) == (0, f"{name}:5443/acme/app:1@{digest}\n"), run.stderr
        assert proxy.asked[0] == f"{name}:5443"
        assert {x.headers["host"] for x in registry.asked("/v2/")} == {f"{name}:5443"}


@pytest.mark.parametrize(
    "name", ["b\u00fccher.example", "\u043f\u0440\u0438\u043c\u0435\u0440.example", "ex\u00e4mple"]
)
def test_an_international_name_as_it_is_spelled_is_refused_and_nobody_asked(tmp_path, name):
    """References are ASCII everywhere; look-alikes of another script must not lead to another registry."""
    with FaultRegistry() as registry, Proxy(registry.port) as proxy:
        run = pull(tmp_path, f"{name}:5000/acme/app:1", HTTPS_PROXY=f"http://{proxy.host}")
        assert (run.returncode, run.stdout) == (2, ""), run.stderr
        assert "no ASCII letter or digit" in run.stderr
        assert proxy.asked == []


def test_the_default_port_spelled_out_is_sent_once(tmp_path, authority, trusted):
    with FaultRegistry(tls=context_for(authority, NAME)) as registry, Proxy(registry.port) as proxy:
        digest = add(registry)
        environment = {"HTTPS_PROXY": f"http://{proxy.host}", "SSL_CERT_FILE": trusted}
        run = pull(tmp_path, f"{NAME}:443/acme/app:1", **environment)
        assert (run.returncode, run.stdout) == (0, f"{NAME}:443/acme/app:1@{digest}\n"), run.stderr
        assert set(proxy.asked) == {f"{NAME}:443"}
        assert {x.headers["host"] for x in registry.asked("/v2/")} <= {NAME, f"{NAME}:443"}
