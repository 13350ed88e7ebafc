"""Proxies that refuse: at once and by name where another try changes nothing."""

from __future__ import annotations

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import NetworkError
from tests.support.fault_registry import Fault
from tests.support.raw import RawServer, answer, read_head, trickle
from tests.support.registries import too_slow

LOGIN = "the proxy requires a user name and password (407 Proxy Authentication Required)"


def through(bench, monkeypatch, *statuses, **options):
    """Pulls through a proxy that answers to CONNECT with these, and then with the last of them for ever."""

    def talk(connection, number):
        read_head(connection)
        connection.sendall(answer(statuses[min(number, len(statuses) - 1)], b"<html>no</html>"))

    with RawServer(talk) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://someone:proxy-secret@{proxy.host}")
        here = bench(**options)
        with pytest.raises(NetworkError) as caught:
            here.resolve("registry.example/acme/app:1")
        here.asked = proxy.count
    assert "secret" not in str(vars(caught.value))
    return here, caught.value


def test_a_proxy_that_wants_a_login_ends_the_pull_at_once(bench, monkeypatch):
    here, error = through(bench, monkeypatch, "407 Proxy Authentication Required")
    assert error.cause == LOGIN
    assert "HTTPS_PROXY" in error.hint
    assert "user:password@" in error.hint
    assert (here.asked, here.of(events.Retrying)) == (1, [])


def test_so_does_one_for_requests_in_the_clear(other, bench, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", other.url)
    other.always("/v2/", Fault(status=407))
    with pytest.raises(NetworkError) as caught:
        bench(plain_http=frozenset({"registry.example"})).resolve("registry.example/acme/app:1")
    assert caught.value.cause == LOGIN
    assert "HTTP_PROXY" in caught.value.hint
    assert other.count() == 1


@pytest.mark.parametrize("status", ["403 Forbidden", "400 Bad Request", "405 Method Not Allowed", "501 No"])
def test_a_proxy_that_forbids_the_registry_ends_the_pull_at_once(bench, monkeypatch, status):
    here, error = through(bench, monkeypatch, status)
    assert error.cause == f"the proxy refused the connection: {status}"
    assert "NO_PROXY" in error.hint
    assert here.asked == 1


@pytest.mark.parametrize("status", ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "429 Slow"])
def test_a_proxy_in_trouble_is_asked_again(bench, monkeypatch, status):
    here, error = through(bench, monkeypatch, status, retries=2)
    assert error.cause == f"the proxy refused the connection: {status}"
    assert here.asked == 3


def test_a_socks_proxy_that_refuses_the_password_ends_the_pull_at_once(bench, monkeypatch):
    def talk(connection, number):
        connection.recv(100)
        connection.sendall(b"\x05\x02")
        connection.recv(100)
        connection.sendall(b"\x01\x01")

    with RawServer(talk) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"socks5h://someone:proxy-secret@{proxy.host}")
        here = bench()
        with pytest.raises(NetworkError) as caught:
            here.resolve("registry.example/acme/app:1")
        assert proxy.count == 1
    assert caught.value.cause == "the proxy does not accept the user name and password"
    assert "secret" not in str(vars(caught.value))


def test_an_answer_that_trickles_through_a_socks_proxy_ends_at_the_deadline(bench, monkeypatch):
    def talk(connection, number):
        connection.recv(100)
        connection.sendall(b"\x05\x00")
        connection.recv(100)
        connection.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        read_head(connection)
        trickle(connection, answer("404 Not Found"))

    with RawServer(talk) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"socks5h://{proxy.host}")
        with pytest.raises(NetworkError) as caught:
            bench(plain_http=frozenset({"r.example"}), timeout=0.5, retries=0).resolve("r.example/acme/app:1")
    assert too_slow(caught.value)
