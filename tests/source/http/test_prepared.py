"""Connections that are opened before there is a request for them."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from msb_pull.ground import events
from msb_pull.source.http.sessions import Sessions
from tests.support.counting import wait_for
from tests.support.fault_registry import FaultRegistry
from tests.support.registries import LAYER, describe, hears_a_cancel, name


@pytest.fixture
def image(registry):
    registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


@pytest.fixture
def ca_file(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def prepare(here, text: str) -> None:
    source = here.source(text)
    here.client.requester.prepare(source._repository.own)


def connections_of(server, match: str = "/v2/") -> list[int]:
    return [x.connection for x in server.asked(match)]


def test_what_is_prepared_is_for_the_second_request_at_a_time(registry, bench, image):
    """The first one makes its own, or there would be one for two requests; those in turn share it.

    That comes first at a server that takes up one connection after the other.
    """
    here = bench(plain_http=frozenset({registry.host}))
    preparing = threading.Thread(target=lambda: prepare(here, image))
    preparing.start()
    here.resolve(image)
    preparing.join()
    wait_for(lambda: len(registry.connections) == 2)
    (own,) = set(connections_of(registry))
    assert own == 1
    streams = [here.source(image).open_blob(describe(LAYER), 0) for _ in range(3)]
    for stream in streams:
        stream.read(10)
    assert connections_of(registry, describe(LAYER).digest.hex) == [1, 2, 3]
    for stream in streams:
        stream.close()


def test_what_is_prepared_speaks_tls_and_knows_certificates(secure, bench, ca_file):
    secure.add_image("acme/app", "1", [LAYER])
    here = bench(ca_certs={secure.host: str(ca_file)})
    image = name(secure)
    here.resolve(image)
    prepare(here, image)
    # That which asks whether a loopback host speaks TLS at all comes before.
    wait_for(lambda: len(secure.connections) == 3)
    streams = [here.source(image).open_blob(describe(LAYER), 0) for _ in range(2)]
    for stream in streams:
        stream.read(10)
    assert connections_of(secure, describe(LAYER).digest.hex) == [2, 3]
    for stream in streams:
        stream.close()


def test_a_thread_that_has_reserved_a_connection_gets_it(registry, bench, image):
    here = bench()
    here.resolve(image)
    here.client.requester.reserve()
    another = threading.Thread(target=lambda: here.blob(image, LAYER))
    another.start()
    another.join()
    here.blob(image, LAYER)
    first, *_, other, own = connections_of(registry)
    assert own == first != other


@pytest.mark.parametrize("trouble", ["nobody", "certificate", "hangs up"])
def test_what_cannot_be_prepared_is_told_by_nobody(secure, bench, image, trouble):
    here = bench()
    here.resolve(image)
    if trouble == "nobody":
        prepare(here, "127.0.0.1:1/a/b:1")
    elif trouble == "certificate":
        prepare(here, f"{secure.host}/acme/app:1")
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=lambda: [server.accept()[0].close() for _ in range(3)], daemon=True)
            thread.start()
            prepare(here, f"127.0.0.1:{server.getsockname()[1]}/a/b:1")
    assert not here.warnings and not secure.asked()


def test_behind_a_proxy_nothing_is_prepared(bench, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    asked = []
    monkeypatch.setattr(Sessions, "prepare", lambda *arguments: asked.append(arguments))
    here = bench(plain_http=frozenset({"r.example", "127.0.0.1:1"}))
    prepare(here, "r.example/a/b:1")
    assert not asked
    prepare(here, "127.0.0.1:1/a/b:1")
    assert asked


def test_where_no_connection_is_kept_the_next_request_takes_what_is_prepared(bench):
    """A server that takes up one connection after the other waits for a request on that."""
    with FaultRegistry(keep_alive=False) as registry:
        registry.add_image("acme/app", "1", [LAYER])
        here = bench(plain_http=frozenset({registry.host}))
        here.resolve(name(registry))
        before = len(registry.connections)
        prepare(here, name(registry))
        wait_for(lambda: len(registry.connections) == before + 1)
        here.client.requester.reserve()
        here.blob(name(registry), LAYER)
        assert len(registry.connections) == before + 1


def test_preparing_that_waits_for_the_first_connection_hears_a_cancel(bench):
    here = bench(plain_http=frozenset({"127.0.0.1:1"}))

    def prepared() -> None:
        prepare(here, "127.0.0.1:1/a/b:1")
        here.cancel.check()

    hears_a_cancel(here, prepared)


def test_a_name_that_takes_for_ever_ends_preparing_too(bench, image, monkeypatch):
    real = socket.getaddrinfo

    def lookup(host, *arguments, **named):
        if not named.get("flags"):
            time.sleep(60)
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    here = bench(plain_http=frozenset({"slow.localhost:1"}))
    here.resolve(image)

    def prepared() -> None:
        prepare(here, "slow.localhost:1/a/b:1")
        here.cancel.check()

    hears_a_cancel(here, prepared)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_what_was_closed_meanwhile_is_not_used(registry, secure, bench, ca_file, tls):
    server = secure if tls else registry
    server.add_image("acme/app", "1", [LAYER])
    here = bench(ca_certs={secure.host: str(ca_file)})
    here.resolve(name(server))
    prepare(here, name(server))
    here.client.requester.reserve()
    wait_for(lambda: len(server.connections) == 3)
    server.connections[-1].shutdown(socket.SHUT_RDWR)
    asked = threading.Thread(target=lambda: here.blob(name(server), LAYER))
    asked.start()
    asked.join()
    assert connections_of(server)[-1] == 4 and not here.of(events.Retrying)
