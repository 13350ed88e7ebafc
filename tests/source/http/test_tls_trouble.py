"""Handshakes that end too soon, and servers that speak no TLS: only the latter are a reason to give up encryption."""

from __future__ import annotations

import socket
import ssl

import pytest
import trustme

from msb_pull.ground import events
from msb_pull.ground.errors import NetworkError
from msb_pull.ground.running import Cancel
from msb_pull.source.http import connecting
from msb_pull.source.http.sockets import Patience
from msb_pull.source.registry import endpoint
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.proxies import both_ways
from tests.support.raw import RawServer, answer, read_head
from tests.support.registries import LAYER, Tunnel, name, server_context


@pytest.fixture
def secure(tmp_path):
    """A registry that speaks TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with FaultRegistry(tls=server_context(authority)) as server:
        server.add_image("acme/app", "1", [LAYER])
        server.ca_file = str(tmp_path / "ca.pem")
        yield server


@pytest.fixture
def elsewhere(monkeypatch):
    """Servers on this machine count as any other: nobody asks them first whether they speak TLS."""
    monkeypatch.setattr(endpoint, "is_loopback", lambda name: False)


def hanging_up(secure, times, *, after_hello=True):
    """Passes connections on to the registry, all but the first ``times``, which end in the handshake."""

    def talk(connection, number):
        if number >= times:
            with socket.create_connection(("127.0.0.1", secure.port)) as onward:
                both_ways(connection, onward)
        elif after_hello:
            connection.recv(65536)

    return RawServer(talk)


@pytest.mark.parametrize("after_hello", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_a_handshake_ended_by_a_plain_close_is_tried_again(elsewhere, secure, bench, times, after_hello):
    with hanging_up(secure, times, after_hello=after_hello) as server:
        here = bench(ca_certs={server.host: secure.ca_file})
        here.resolve(f"{server.host}/acme/app:1")
    # Like a connection that is reset: once at once, then after a pause.
    assert len(here.of(events.Retrying)) == times - 1


def test_a_handshake_that_always_ends_by_a_plain_close_is_no_reason_for_plain_http(elsewhere, secure, bench):
    with hanging_up(secure, 1000) as server:
        with pytest.raises(NetworkError) as caught:
            bench(retries=2).resolve(f"{server.host}/acme/app:1")
        assert server.count == 4
    assert caught.value.cause == "the other side closed the connection in the middle of TLS"
    assert "plain" not in caught.value.hint


def test_a_registry_on_this_machine_that_hangs_up_once_is_not_taken_for_plain_http(secure, bench):
    with hanging_up(secure, 1) as server:
        here = bench(ca_certs={server.host: secure.ca_file})
        here.resolve(f"{server.host}/acme/app:1")
    assert "does not speak TLS" not in here.texts()


def test_a_server_that_speaks_http_is_named_with_the_option(elsewhere, registry, bench):
    registry.add_image("acme/app", "1", [LAYER])
    here = bench()
    with pytest.raises(NetworkError) as caught:
        here.resolve(name(registry))
    assert caught.value.cause == f"{registry.host} speaks plain HTTP, not TLS"
    assert caught.value.hint == "use --plain-http if that is intended"
    assert here.time.waits == []


@pytest.mark.parametrize("junk", [b"220 mail.example ESMTP\r\n" * 20, bytes(range(256)) * 2, b"\x00" * 600])
def test_a_server_that_speaks_something_else_is_no_reason_for_plain_http(elsewhere, bench, junk):
    def talk(connection, number):
        connection.sendall(junk)
        connection.recv(65536)

    with RawServer(talk) as server, pytest.raises(NetworkError) as caught:
        bench(retries=1).resolve(f"{server.host}/acme/app:1")
    assert "plain" not in f"{caught.value.cause} {caught.value.hint}".lower()


def test_another_host_that_speaks_http_is_no_reason_for_the_option(secure, registry, bench):
    """The registry itself is fine; the option would take its encryption away and change nothing else."""
    secure.always("/blobs/", Fault(redirect=f"https://{registry.host}/x"))
    with pytest.raises(NetworkError) as caught:
        bench(ca_certs={secure.host: secure.ca_file}, retries=0).blob(name(secure), LAYER)
    assert caught.value.cause == f"{registry.host} speaks plain HTTP, not TLS"
    assert "--plain-http" not in str(caught.value.hint)


def test_what_is_asked_in_the_clear_names_nothing_but_the_server():
    heads = []

    def talk(connection, number):
        heads.append(read_head(connection))
        connection.sendall(answer("200 OK"))

    with RawServer(talk) as server:
        assert connecting.speaks_http("127.0.0.1", server.port, 2, Patience(Cancel()))
    assert heads == [f"GET /v2/ HTTP/1.1\r\nHost: {server.host}\r\nConnection: close\r\n\r\n"]


def test_nothing_is_asked_in_the_clear_past_a_proxy(bench, monkeypatch):
    """Who must use a proxy may not even look up the registry's name."""

    def answer(connection, number):
        # What was sent and never read would end the connection with a reset, which may come before the answer.
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with RawServer(answer) as plain, Tunnel(to=plain.port) as tunnel:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{tunnel.port}")
        with pytest.raises(NetworkError) as caught:
            bench(retries=0).resolve("registry.example/a/b:1")
        assert plain.count == 1
    assert "TLS failed" in caught.value.cause


def test_an_alert_that_every_hello_would_get_ends_the_pull_at_once(elsewhere, tmp_path, bench):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = server_context(authority)
    # Since TLS 1.3 the alert comes after the handshake, and may be lost with the connection.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    with FaultRegistry(tls=context) as server:
        here = bench(ca_certs={server.host: str(tmp_path / "ca.pem")})
        with pytest.raises(NetworkError) as caught:
            here.resolve(name(server))
    assert "alert handshake failure" in caught.value.cause
    assert "client certificate" in caught.value.hint
    assert here.of(events.Retrying) == []


def test_what_is_no_http_is_named_so(bench):
    def talk(connection, number):
        read_head(connection)
        connection.sendall(b"SSH-2.0-Server\r\n")

    with RawServer(talk) as server, pytest.raises(NetworkError) as caught:
        bench(plain_http=frozenset({server.host})).resolve(f"{server.host}/acme/app:1")
    assert "not HTTP/1" in caught.value.cause
