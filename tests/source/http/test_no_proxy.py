"""Who is asked past the proxy: the rules of Go's x/net/http/httpproxy, by which docker, podman and skopeo go."""

from __future__ import annotations

import pytest

from msb_pull.ground.errors import NetworkError, NotFoundError
from msb_pull.source.http.proxies import proxies_for
from msb_pull.source.login.credentials import CredentialStore
from tests.support.fault_auth import basic
from tests.support.registries import LAYER, name

PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def proxy(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("HTTP_PROXY", PROXY)


def direct(host, no_proxy, scheme="https"):
    return proxies_for(f"{scheme}://{host}/v2/", {"NO_PROXY": no_proxy}) == {}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:5000", "registry.localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000", "[::1]"],
)
def test_this_machine_is_always_asked_directly(host, scheme):
    assert direct(host, "", scheme)


@pytest.mark.parametrize(
    ("host", "no_proxy", "expected"),
    [
        # A name is itself and all below it; one that begins with a dot, or a star and a dot, is what lies below.
        ("example.com", "example.com", True), ("a.example.com", "example.com", True),
        ("badexample.com", "example.com", False),
        ("example.com", ".example.com", False), ("a.example.com", ".example.com", True),
        ("a.b.example.com", ".example.com", True),
        ("example.com", "*.example.com", False), ("a.example.com", "*.example.com", True),
        ("registry.test.example.com", "*.test.example.com", True),
        ("badtest.example.com", "*.test.example.com", False),
        ("a.example.com", "*example.com", False), ("a.example.com", "a.*.com", False),
        ("A.Example.com", "a.EXAMPLE.com", True), ("a.example.com", " x.org , a.example.com ", True),
        ("a.example.com", "x.org a.example.com", True), ("a.example.com", ",,", False), ("a.example.com", ".", False),
        # Ports, spelled out or those of the scheme.
        ("a.example.com:5000", "a.example.com:5000", True), ("a.example.com:5001", "a.example.com:5000", False),
        ("a.example.com", "example.com:443", True), ("a.example.com", "example.com:80", False),
        ("a.example.com", "*.example.com:443", True), ("a.example.com:5000", "*.example.com:443", False),
        ("a.example.com:5000", "a.example.com", True), ("a.example.com", ":443", False),
        # Addresses and networks.
        ("10.1.2.3", "10.0.0.0/8", True), ("11.1.2.3", "10.0.0.0/8", False), ("10.1.2.3:5000", "10.1.2.3", True),
        ("10.1.2.3:5000", "10.1.2.3:5000", True), ("10.1.2.3:5001", "10.1.2.3:5000", False),
        ("10.1.2.33", "10.1.2.3", False),
        ("[fd00::1]", "fd00::/8", True), ("[fd00::1]:5000", "fd00::1", True),
        ("[fd00::1]:5000", "[fd00::1]:5000", True),
        ("[fd00::1]:5001", "[fd00::1]:5000", False), ("[fd00::1]", "[fd00::1]", True),
        ("[fe80::1]", "fd00::/8", False),
        ("[fd00:0:0::1]", "fd00::1", True), ("10.1.2.3", "fd00::/8", False), ("a.example.com", "10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/99", False),
        # Everything.
        ("a.example.com", "*", True), ("10.1.2.3", "x.org,*", True), ("a.example.com", "", False),
    ],
)  # fmt: skip
def test_exceptions_of_a_proxy(host, no_proxy, expected):
    assert direct(host, no_proxy) is expected


def test_a_registry_on_this_machine_is_reached_past_a_proxy(registry, other, bench, monkeypatch):
    registry.add_image("acme/app", "1", [LAYER])
    monkeypatch.setenv("HTTP_PROXY", other.url)
    bench(CredentialStore.nobody({}), plain_http=frozenset({registry.host})).resolve(name(registry))
    assert other.count() == 0


@pytest.mark.parametrize(
    "proxy",
    ["http://", "http://u:p@", "http://[::1", "http://a:b:c", "ftp://a", "http://a:99999", "http://..:1", "a b:1"],
)
def test_a_proxy_whose_address_is_none_is_named(bench, monkeypatch, proxy):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(NetworkError) as caught:
        bench().resolve("registry.example/acme/app:1")
    assert caught.value.cause == "the address of the proxy cannot be used"
    assert "HTTPS_PROXY" in caught.value.hint


@pytest.mark.parametrize("proxy", ["a:1", "//a:1", "HTTP://a", "socks5h://u:p@[::1]:1080", "https://a.example"])
def test_every_spelling_of_a_proxy_is_taken(monkeypatch, proxy):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert proxies_for("https://registry.example/", {}) == {"https": proxy}


def test_the_login_at_a_proxy_is_sent_in_utf_8(other, bench, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://bob:gr%C3%BC%E2%82%AC@{other.host}")
    here = bench(CredentialStore.nobody({}), plain_http=frozenset({"registry.example"}))
    with pytest.raises(NotFoundError):
        here.resolve("registry.example/acme/app:1")
    assert other.asked()[0].headers["proxy-authorization"] == basic("bob", "grü€")


def test_all_others_go_to_the_proxy():
    assert proxies_for("https://a.example.com/", {"NO_PROXY": "x.org"})["https"] == PROXY
