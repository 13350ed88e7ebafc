"""One deadline for each small document, whatever trickles in; and errors that say how long was really waited.

What trickles comes to its end in time enough for a program without a deadline to take it for a success.
"""

from __future__ import annotations

import json
import time

import pytest
import trustme

from msb_pull.ground import events
from msb_pull.ground.errors import MsbPullError, NetworkError
from msb_pull.source.http import connecting
from msb_pull.source.http.sessions import CONNECT_TIMEOUT
from msb_pull.source.login.credentials import CredentialStore
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.proxies import NAME, Proxy, context_for
from tests.support.raw import RawServer, answer, read_head, trickle
from tests.support.registries import LAYER, hears_a_cancel, name, too_slow
from tests.support.silence import silent_server

SLOW = {"timeout": 0.5, "retries": 0}
PAUSE = 0.05


@pytest.fixture
def image(registry):
    registry.image = registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


def refused(bench, host, image, **options):
    with pytest.raises(MsbPullError) as caught:
        bench(plain_http=frozenset({host}), **{**SLOW, **options}).resolve(image)
    return caught.value


def slow_server(registry, part, *, status=b"200 OK", slow=None):
    """Answers as the registry would, the part that is asked for byte by byte: its head, its body, or all of it."""

    def talk(connection, number):
        while head := read_head(connection):
            path = head.split()[1]
            if "/manifests/" in path:
                body, kind = registry.image.manifest_bytes, "manifests"
            else:
                body, kind = registry.blobs[path.rpartition("/")[2]], "blobs"
            top = b"HTTP/1.1 " + status + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            if part != kind:
                connection.sendall(top + body)
            elif slow == "head":
                trickle(connection, top, PAUSE)
                connection.sendall(body)
            else:
                connection.sendall(top)
                trickle(connection, body, PAUSE)

    return RawServer(talk)


@pytest.mark.parametrize("slow", ["head", "body"])
@pytest.mark.parametrize("part", ["manifests", "blobs"])
def test_a_manifest_or_config_that_trickles_ends_at_the_deadline(registry, bench, image, part, slow):
    with slow_server(registry, part, slow=slow) as server:
        error = refused(bench, server.host, f"{server.host}/acme/app:1")
    assert isinstance(error, NetworkError)
    assert too_slow(error)


def test_a_document_that_trickles_is_not_kept_alive_by_its_progress(registry, bench, image):
    """A few bytes of a config earn no further tries: each try is one of those that are allowed."""
    with slow_server(registry, "blobs", slow="body") as server:
        here = bench(plain_http=frozenset({server.host}), timeout=0.3, retries=2)
        with pytest.raises(NetworkError):
            here.resolve(f"{server.host}/acme/app:1")
    assert len(here.of(events.Retrying)) == 2


@pytest.mark.parametrize("slow", ["head", "body"])
def test_an_error_that_trickles_ends_at_the_deadline(bench, slow):
    body = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "x" * 100}]}).encode()
    whole = answer("404 Not Found", body)
    cut = 1 if slow == "head" else whole.index(b"\r\n\r\n") + 4

    def talk(connection, number):
        read_head(connection)
        connection.sendall(whole[:cut])
        trickle(connection, whole[cut:], PAUSE)

    with RawServer(talk) as server:
        error = refused(bench, server.host, f"{server.host}/acme/app:1")
    # What the status says counts, also without the words that belong to it.
    assert error.exit_code == (5 if slow == "head" else 3)
    assert "x" * 100 not in str(error.cause)


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_token_that_trickles_ends_at_the_deadline(bench, slow):
    whole = answer("200 OK", json.dumps({"token": "t" * 100}).encode())
    cut = 0 if slow == "head" else whole.index(b"\r\n\r\n") + 4

    def talk(connection, number):
        head = read_head(connection)
        if "/token" in head:
            connection.sendall(whole[:cut])
            trickle(connection, whole[cut:], PAUSE)
        else:
            realm = f'WWW-Authenticate: Bearer realm="http://{server.host}/token",service="s"'
            connection.sendall(answer("401 Unauthorized", b"", realm))

    with RawServer(talk) as server:
        error = refused(bench, server.host, f"{server.host}/acme/app:1")
    assert too_slow(error)


def test_redirects_share_one_deadline(bench):
    """Ten of them that each take nearly as long as is allowed are not waited for."""

    def talk(connection, number):
        while read_head(connection):
            time.sleep(0.3)
            connection.sendall(answer("307 Temporary Redirect", b"", f"Location: /again/{number}"))

    with RawServer(talk) as server:
        error = refused(bench, server.host, f"{server.host}/acme/app:1")
        assert too_slow(error)


def test_the_head_of_a_blob_that_trickles_ends_at_the_deadline(registry, bench, image):
    with slow_server(registry, "blobs", slow="head") as server:
        here = bench(plain_http=frozenset({server.host}), **SLOW)
        with pytest.raises(NetworkError) as caught:
            here.blob(f"{server.host}/acme/app:1", LAYER)
    assert too_slow(caught.value)


def test_the_body_of_a_blob_may_take_longer_than_a_document(registry, bench, image):
    registry.script("/blobs/", Fault(rate=len(LAYER) / 1.5))
    here = bench(**SLOW)
    assert here.blob(image, LAYER) == LAYER
    assert here.of(events.Retrying) == []


def test_the_length_of_a_chunk_that_trickles_is_no_progress(bench):
    def talk(connection, number):
        read_head(connection)
        connection.sendall(answer("200 OK", b"", "Transfer-Encoding: chunked", length=False))
        trickle(connection, b"000000000000000000000000000000000000001\r\nx", PAUSE)

    with RawServer(talk) as server:
        here = bench(plain_http=frozenset({server.host}), **SLOW)
        with pytest.raises(NetworkError) as caught:
            here.blob(f"{server.host}/acme/app:1", b"x" * 2)
    assert "0.5 seconds" in caught.value.cause


def test_a_slow_rate_for_downloads_leaves_documents_alone(registry, bench, image):
    here = bench(limit_rate=100)
    here.resolve(image)
    assert here.time.waits == []


# How long was waited


def test_the_time_for_a_connection_is_the_real_one(bench):
    with silent_server() as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        error = refused(bench, host, f"{host}/a/b:1")
    assert error.cause == "no connection within 0.5 seconds"


def test_the_time_for_a_connection_to_a_proxy_is_the_real_one(bench, monkeypatch):
    with silent_server() as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.getsockname()[1]}")
        error = refused(bench, "", "registry.example/a/b:1")
    assert error.cause == "the proxy failed: no connection within 0.5 seconds"


def test_asking_whether_a_registry_speaks_tls_takes_no_longer_than_a_connection_may(bench, monkeypatch):
    limits = []
    monkeypatch.setattr(connecting, "speaks_tls", lambda host, port, timeout, patience: limits.append(timeout))
    for timeout in (2.0, 60.0):
        here = bench(timeout=timeout, retries=0)
        with pytest.raises(NetworkError):
            here.resolve("127.0.0.1:9/a/b:1")
    assert limits == [2.0, CONNECT_TIMEOUT]


def test_the_time_without_an_answer_is_the_real_one(bench):
    with RawServer(lambda connection, number: time.sleep(3)) as server:
        error = refused(bench, server.host, f"{server.host}/a/b:1")
    assert too_slow(error)


@pytest.mark.parametrize("after", [0, 1000])
def test_the_time_without_a_byte_of_a_blob_is_the_real_one(registry, bench, image, after):
    registry.always("/blobs/", Fault(stall_after=after))
    with pytest.raises(NetworkError) as caught:
        bench(**SLOW).blob(image, LAYER)
    assert caught.value.cause == "no answer for too long (0.5 seconds)"


def test_the_time_for_a_hello_is_the_real_one(bench):
    """Only registries on this machine are asked first whether they speak TLS; this one has to."""
    with RawServer(lambda connection, number: time.sleep(3)) as server:
        here = bench(**SLOW, mirrors={"r.example": (f"https://{server.host}",)})
        with pytest.raises(NetworkError):
            here.resolve("r.example/a/b:1")
    assert any("no answer for too long (0.5 seconds)" in x for x in here.warnings)


@pytest.mark.parametrize("in_time", [True, False])
def test_an_answer_through_a_proxy_in_tls_has_the_same_time_as_any_other(bench, monkeypatch, tmp_path, in_time):
    """TLS inside TLS reads in a way of its own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with (
        FaultRegistry(tls=context_for(authority, NAME)) as server,
        Proxy(server.port, tls=context_for(authority, "127.0.0.1")) as proxy,
    ):
        server.add_blob(LAYER)
        server.script("/blobs/", Fault(delay=0.6 if in_time else 3))
        monkeypatch.setenv("HTTPS_PROXY", f"https://{proxy.host}")
        here = bench(CredentialStore.nobody({"SSL_CERT_FILE": str(tmp_path / "ca.pem")}), retries=0, timeout=1.5)
        if in_time:
            assert here.blob(f"{NAME}/acme/app:1", LAYER) == LAYER
        else:
            with pytest.raises(NetworkError) as caught:
                here.blob(f"{NAME}/acme/app:1", LAYER)
            assert too_slow(caught.value, 1.5)


def test_a_cancel_is_heard_through_a_proxy_in_tls(bench, monkeypatch, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with (
        FaultRegistry(tls=context_for(authority, NAME)) as server,
        Proxy(server.port, tls=context_for(authority, "127.0.0.1")) as proxy,
    ):
        server.always("/blobs/", Fault(delay=30))
        monkeypatch.setenv("HTTPS_PROXY", f"https://{proxy.host}")
        here = bench(CredentialStore.nobody({"SSL_CERT_FILE": str(tmp_path / "ca.pem")}))
        hears_a_cancel(here, lambda: here.blob(f"{NAME}/acme/app:1", LAYER), after=1.0)
