"""Connections, redirects, certificates, proxies, retries (rows B19 to B23 and B32 to B47)."""

from __future__ import annotations

import datetime
import email.utils
import socket
import ssl
import threading
import time
import warnings
from pathlib import Path

import pytest
import requests

from msb_pull import __version__
from msb_pull.ground import events
from msb_pull.ground.errors import AccessError, ExitCode, LocalError, NetworkError, NotFoundError, UsageError
from msb_pull.ground.text import clipped
from msb_pull.source.http import connecting, redact
from msb_pull.source.http.addresses import is_loopback
from msb_pull.source.http.proxies import proxies_for
from msb_pull.source.http.retry import retry_after
from msb_pull.source.http.tls import SHARED, TrustStore
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.endpoint import endpoints
from tests.support.fault_auth import TokenService, basic, errors, require_basic
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.ports import free_port
from tests.support.registries import LAYER, Tunnel, describe, hears_a_cancel, name, server_context
from tests.support.silence import silent_server


@pytest.fixture
def image(registry):
    registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


@pytest.fixture
def ca_file(authority, tmp_path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def retries_of(bench):
    return [(x.attempt, x.delay) for x in bench.of(events.Retrying)]


# netrc, redirects, what is sent


def test_b19_netrc_is_not_looked_at(registry, other, bench, image, clean_environment):
    (clean_environment / ".netrc").write_text("machine 127.0.0.1 login eve password evil\n")
    (clean_environment / ".netrc").chmod(0o600)
    digest = str(describe(LAYER).digest)
    other.files[f"/x/{digest}"] = (LAYER, "application/octet-stream")
    require_basic(registry, {"bob": "sesame"})
    registry.always("/blobs/", Fault(redirect=f"{other.url}/x/{digest}"))
    assert bench(CredentialStore.from_text("bob:sesame", {})).blob(image, LAYER) == LAYER
    assert {x.headers.get("authorization") for x in registry.requests} <= {None, basic("bob", "sesame")}
    assert [x.headers.get("authorization") for x in other.requests] == [None]


def test_b20_a_redirect_to_another_host_carries_range_but_no_authorization(registry, other, bench, image):
    digest = str(describe(LAYER).digest)
    other.files[f"/x/{digest}"] = (LAYER, "application/octet-stream")
    TokenService(registry)
    here = bench()
    here.resolve(image)
    registry.always("/blobs/", Fault(redirect=f"{other.url}/x/{digest}"))
    assert here.blob(image, LAYER, 1000) == LAYER[1000:]
    assert registry.asked("/blobs/")[-1].headers["authorization"].startswith("Bearer ")
    (asked,) = other.requests
    assert "authorization" not in asked.headers
    assert asked.headers["range"] == "bytes=1000-"
    assert asked.headers["user-agent"] == f"msb-pull/{__version__}"


def test_b20_a_redirect_on_the_same_host_keeps_it(registry, bench, image):
    require_basic(registry, {"bob": "sesame"})
    digest = str(describe(LAYER).digest)
    registry.files[f"/moved/{digest}"] = (LAYER, "application/octet-stream")
    here = bench(CredentialStore.from_text("bob:sesame", {}))
    here.resolve(image)
    registry.always("/blobs/", Fault(redirect=f"/moved/{digest}"))
    assert here.blob(image, LAYER) == LAYER
    assert registry.asked("/moved/")[0].headers["authorization"] == basic("bob", "sesame")


def test_b20_https_never_leads_to_http(secure, other, bench, ca_file):
    secure.always("/blobs/", Fault(redirect=f"{other.url}/x"))
    here = bench(ca_certs={secure.host: str(ca_file)})
    with pytest.raises(NetworkError, match="no answer") as caught:
        here.blob(name(secure), LAYER)
    assert "not encrypted" in caught.value.cause
    assert other.count() == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_b86_every_kind_of_redirect(registry, bench, image, status):
    registry.script("/manifests/1", Fault(redirect="/v2/acme/app/manifests/1", redirect_status=status))
    bench().resolve(image)


@pytest.mark.parametrize("location", ["1?x=y", "../manifests/1", "//{host}/v2/acme/app/manifests/1"])
def test_b86_relative_addresses(registry, bench, image, location):
    registry.script("/manifests/1", Fault(redirect=location.replace("{host}", registry.host)))
    bench().resolve(image)
    assert registry.count("/manifests/") == 2


def test_addresses_in_utf_8(registry, bench, image):
    # http.server writes headers byte by byte, http.client reads them so: as latin-1.
    location = "/files/blöb".encode().decode("latin-1")
    registry.files["/files/blöb"] = (LAYER, "application/octet-stream")
    registry.always("/blobs/", Fault(redirect=location))
    assert bench().blob(image, LAYER) == LAYER


def test_b86_ten_redirects_and_no_more(registry, bench, image):
    registry.script("/manifests/1", Fault(redirect="{path}"), times=10)
    bench().resolve(image)
    registry.always("/manifests/1", Fault(redirect="{path}"))
    before = registry.count()
    with pytest.raises(NetworkError) as caught:
        bench().resolve(image)
    assert "more than 10 redirects" in caught.value.cause
    assert registry.count() - before == 11


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd", "ftp://x/y", "mailto:x", "http://:80/", "https://[bad", "//h:99999/",
        "http://u:%E2%82%AC@127.0.0.1/", f"http://{'a' * 70}.localhost/", "http://a..localhost/",
    ],
)  # fmt: skip
def test_b86_addresses_that_are_none(registry, bench, image, location):
    registry.always("/manifests/1", Fault(redirect=location))
    with pytest.raises(NetworkError):
        bench().resolve(image)
    assert registry.count() == 1


def test_b86_the_body_of_a_redirect_is_not_read(registry, bench, image):
    registry.script("/manifests/1", Fault(status=307, headers={"Location": "/v2/acme/app/manifests/1"}, endless=True))
    bench().resolve(image)


def test_b91_user_agent_and_accept(registry, bench, image):
    bench().resolve(image)
    sent = registry.requests[0].headers
    assert sent["user-agent"] == f"msb-pull/{__version__}"
    assert sent["accept-encoding"] == "identity"
    assert "cookie" not in sent


def test_cookies_are_not_kept(registry, bench, image):
    registry.always("/v2/", Fault(headers={"Set-Cookie": "a=b; Path=/"}))
    here = bench()
    here.resolve(image)
    here.resolve(image)
    assert not any("cookie" in x.headers for x in registry.requests)


# Which host, which scheme


def test_b32_docker_io_is_a_name_for_another_host():
    (endpoint,) = endpoints("docker.io", {}, frozenset())
    assert endpoint.url("https", "library/x", "manifests", "1") == (
        "https://registry-1.docker.io/v2/library/x/manifests/1"
    )


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("a.localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
        ("10.0.0.1", False), ("192.168.1.1", False), ("notlocalhost", False), ("localhost.example", False),
    ],
)  # fmt: skip
def test_b33_what_is_this_machine(host, loopback):
    assert is_loopback(host) is loopback
    shown = f"[{host}]:5000" if ":" in host else f"{host}:5000"
    (endpoint,) = endpoints(shown, {}, frozenset())
    assert endpoint.scheme == (None if loopback else "https")


def test_b33_loopback_falls_back_to_http_once(registry, bench, image):
    here = bench()
    here.resolve(image)
    here.blob(image, LAYER)
    assert sum("plain http" in x.text for x in here.of(events.Logged)) == 1


def test_b33_loopback_with_tls_stays_with_tls(secure, bench, ca_file):
    here = bench(ca_certs={secure.host: str(ca_file)})
    here.resolve(name(secure))
    assert secure.count() == 2


def test_b33_nobody_there_is_told_at_once(bench):
    port = free_port()
    here = bench()
    with pytest.raises(NetworkError, match=f"no answer from 127.0.0.1:{port}") as caught:
        here.resolve(f"127.0.0.1:{port}/a/b:1")
    assert caught.value.cause == "connection refused"
    assert here.time.waits == []


def test_b34_plain_http_asks_nothing_else(registry, bench, image):
    here = bench(plain_http=frozenset({registry.host}))
    here.resolve(image)
    assert not any("https://" in x.text for x in here.of(events.Logged))


def test_b34_plain_http_never_shows_through_tls(secure, bench):
    """B34: the two switches are two: --plain-http does not accept a bad certificate."""
    with pytest.raises((NetworkError, NotFoundError, AccessError)):
        bench(plain_http=frozenset({secure.host}), retries=0).resolve(name(secure))


def test_b34_no_verify_warns_nobody_twice(secure, bench):
    here = bench(tls_no_verify=frozenset({secure.host}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here.resolve(name(secure))
    assert secure.count() == 2


def test_b38_ipv6(bench):
    try:
        server = FaultRegistry(host="::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with server:
        server.add_image("acme/app", "1", [LAYER])
        here = bench()
        here.resolve(name(server))
        assert server.requests[0].headers["host"] == server.host
        assert here.blob(name(server), LAYER) == LAYER


# Certificates


def test_b35_ca_cert(secure, bench, ca_file):
    bench(ca_certs={secure.host: str(ca_file)}).resolve(name(secure))


def test_b35_token_services_and_redirects_are_believed_as_the_registry_is(authority, secure, bench, ca_file):
    with FaultRegistry(tls=server_context(authority)) as second:
        tokens = TokenService(secure, server=second)
        digest = str(describe(LAYER).digest)
        second.files[f"/x/{digest}"] = (LAYER, "application/octet-stream")
        here = bench(ca_certs={secure.host: str(ca_file)})
        here.resolve(name(secure))
        assert tokens.made == 1
        secure.always("/blobs/", Fault(redirect=f"{second.url}/x/{digest}"))
        assert here.blob(name(secure), LAYER) == LAYER
        with pytest.raises(NetworkError, match=second.host):
            here.resolve(name(second))


def test_b35_what_is_said_of_docker_io_counts_for_its_host():
    store = TrustStore(
        ca_certs={},
        no_verify=frozenset({"docker.io"}),
        environment={},
        patience=None,
        aliases={"registry-1.docker.io": "docker.io"},
    )
    assert store.choose("registry-1.docker.io", "") == "registry-1.docker.io"
    assert store.choose("auth.docker.io", "registry-1.docker.io") == "registry-1.docker.io"
    assert store.choose("auth.docker.io", "") == SHARED


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_b35_bundles_of_the_environment(secure, bench, ca_file, variable):
    bench(CredentialStore.nobody({variable: str(ca_file)})).resolve(name(secure))


@pytest.mark.parametrize("folder", [".config/containers/certs.d", ".docker/certs.d"])
def test_b35_certs_d(secure, bench, authority, tmp_path, folder):
    place = tmp_path / folder / secure.host
    place.mkdir(parents=True)
    authority.cert_pem.write_to_path(place / "ca.crt")
    bench(CredentialStore.nobody({"HOME": str(tmp_path)})).resolve(name(secure))


def test_b35_client_certificate(authority, bench, tmp_path):
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    place = tmp_path / ".docker/certs.d"
    with FaultRegistry(tls=context) as server:
        server.add_image("acme/app", "1", [LAYER])
        place = place / server.host
        place.mkdir(parents=True)
        authority.cert_pem.write_to_path(place / "ca.crt")
        with pytest.raises(NetworkError):
            bench(CredentialStore.nobody({"HOME": str(tmp_path)}), retries=0).resolve(name(server))
        client = authority.issue_cert("client@example.com")
        client.cert_chain_pems[0].write_to_path(place / "client.cert")
        client.private_key_pem.write_to_path(place / "client.key")
        bench(CredentialStore.nobody({"HOME": str(tmp_path)})).resolve(name(server))


def test_b35_a_client_certificate_that_cannot_be_used(secure, bench, tmp_path):
    place = tmp_path / ".docker/certs.d" / secure.host
    place.mkdir(parents=True)
    (place / "client.cert").write_text("nonsense")
    with pytest.raises(LocalError, match=r"client\.cert"):
        bench(CredentialStore.nobody({"HOME": str(tmp_path)})).resolve(name(secure))


@pytest.mark.parametrize("content", [None, "nonsense"])
def test_b35_a_ca_cert_that_cannot_be_used(secure, bench, tmp_path, content):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"ca\.pem"):
        bench(ca_certs={secure.host: str(path)}).resolve(name(secure))


def test_b36_an_unknown_authority(secure, bench):
    here = bench()
    with pytest.raises(NetworkError) as caught:
        here.resolve(name(secure))
    assert secure.host in caught.value.message
    assert "certificate is not accepted" in caught.value.cause
    assert "--ca-cert" in caught.value.hint
    assert secure.count() == 0
    assert here.time.waits == []


@pytest.mark.parametrize("kind", ["expired", "mismatched"])
def test_b36_a_bad_certificate(authority, bench, ca_file, kind):
    how = {} if kind == "mismatched" else {"not_after": datetime.datetime(2020, 1, 1)}
    names = ("other.example",) if kind == "mismatched" else ()
    with FaultRegistry(tls=server_context(authority, *names, **how)) as server, pytest.raises(NetworkError) as caught:
        bench(ca_certs={server.host: str(ca_file)}).resolve(name(server))
    assert ("expired" if kind == "expired" else "not valid for '127.0.0.1'") in caught.value.cause
    assert "\n" not in str(vars(caught.value))


# Proxies


def test_b37_http_proxy(other, bench, monkeypatch):
    """B37: the proxy is asked in place of the host, whose name need not even be known here."""
    monkeypatch.setenv("http_proxy", other.url)
    for path in ("/v2/acme/app/blobs/", "http://registry.example/v2/acme/app/blobs/"):
        other.files[path + str(describe(LAYER).digest)] = (LAYER, "application/octet-stream")
    here = bench(plain_http=frozenset({"registry.example"}))
    assert here.blob("registry.example/acme/app:1", LAYER) == LAYER
    assert other.requests[0].headers["host"] == "registry.example"


@pytest.mark.parametrize("no_proxy", ["127.0.0.0/8", "127.0.0.1", "*", "127.0.0.1:{port}", "a, 127.0.0.1"])
def test_b37_no_proxy(registry, other, bench, image, monkeypatch, no_proxy):
    monkeypatch.setenv("http_proxy", other.url)
    no_proxy = no_proxy.replace("{port}", str(registry.port))
    monkeypatch.setenv("NO_PROXY", no_proxy)
    bench(CredentialStore.nobody({"NO_PROXY": no_proxy}), plain_http=frozenset({registry.host})).resolve(image)
    assert other.count() == 0


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        ("https://[fd00::1]/", "fd00::/8", True), ("https://[2001:db8::1]:5000/", "[2001:db8::1]:5000", True),
        ("https://[2001:db8::1]:5000/", "[2001:db8::1]:5001", False), ("https://[2001:db8::1]/", "2001:db8::1", True),
        ("https://a.example/", ".example", True), ("https://a.example/", "example", True),
        ("https://a.example/", "other.example", False), ("https://a.example:5000/", "a.example:5000", True),
        ("https://a.example/", "a.example:443", True), ("https://a.example/", "a.example:444", False),
        ("https://10.1.2.3/", "10.0.0.0/8", True), ("https://11.1.2.3/", "10.0.0.0/8,nonsense/99", False),
        ("https://a.example/", "", False), ("https://a.example/", "*", True),
    ],
)  # fmt: skip
def test_b37_who_is_asked_directly(monkeypatch, url, no_proxy, direct):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (proxies_for(url, {"no_proxy": no_proxy}) == {}) is direct


def test_b37_https_goes_through_connect_and_keeps_its_certificate(authority, bench, ca_file, monkeypatch):
    host = "registry.example:5000"
    with FaultRegistry(tls=server_context(authority, "registry.example")) as server, Tunnel(to=server.port) as tunnel:
        server.add_image("acme/app", "1", [LAYER])
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:proxy-secret@127.0.0.1:{tunnel.port}")
        here = bench(ca_certs={host: str(ca_file)})
        here.resolve(f"{host}/acme/app:1")
    assert tunnel.heads[0].startswith(f"CONNECT {host} ")
    assert "Proxy-Authorization: Basic" in tunnel.heads[0]
    assert "proxy-secret" not in here.texts()


def test_b37_a_dead_proxy_is_named(bench, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:proxy-secret@127.0.0.1:9")
    with pytest.raises(NetworkError) as caught:
        bench(retries=0).resolve("registry.example/a/b:1")
    assert "proxy" in caught.value.cause
    assert "secret" not in str(vars(caught.value))


def test_b37_socks_without_pysocks_says_so(bench, monkeypatch):
    def missing(*arguments, **named):
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    # What requests itself puts there where PySocks is not installed.
    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", missing)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    here = bench()
    with pytest.raises(NetworkError) as caught:
        here.resolve("registry.example/a/b:1")
    assert "SOCKS" in caught.value.cause
    assert "PySocks" in caught.value.hint
    assert here.time.waits == []


# Names, connections


def test_an_address_that_does_not_answer_is_joined_by_the_next(registry, bench, image, monkeypatch):
    """Broken IPv6 is common: the first address says nothing, which must not cost the time a connection may take."""
    real = socket.getaddrinfo

    def lookup(host, port, *arguments, **named):
        if host != "two.localhost":
            return real(host, port, *arguments, **named)
        if named.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        return real("127.0.0.2", silent.getsockname()[1], type=socket.SOCK_STREAM) + real(
            "127.0.0.1", registry.port, type=socket.SOCK_STREAM
        )

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    begun, start = [], connecting._Race._start
    monkeypatch.setattr(connecting._Race, "_start", lambda race, to: begun.append(to[4][0]) or start(race, to))
    with silent_server("127.0.0.2") as silent:
        host = f"two.localhost:{registry.port}"
        bench(plain_http=frozenset({host}), timeout=600.0).resolve(f"{host}/acme/app:1")
    assert begun == ["127.0.0.2", "127.0.0.1"]


@pytest.mark.parametrize("host", ["no-such-host.example", f"{'a' * 70}.example", f"{'a' * 70}.localhost"])
def test_an_unknown_name_is_told_at_once(bench, host):
    here = bench()
    with pytest.raises(NetworkError) as caught:
        here.resolve(f"{host}/a/b:1")
    assert host in caught.value.message
    assert "cannot be resolved" in caught.value.cause
    assert here.time.waits == []


def test_b39_a_connection_closed_between_requests(bench):
    with FaultRegistry(keep_alive=False) as server:
        server.add_image("acme/app", "1", [LAYER])
        here = bench()
        for _ in range(3):
            here.resolve(name(server))
        assert here.of(events.Retrying) == []


def test_b39_a_connection_dropped_instead_of_an_answer(registry, bench, image):
    registry.script("/manifests/", Fault(drop=True))
    here = bench()
    here.resolve(image)
    assert here.of(events.Retrying) == []


def test_a_server_that_always_drops(registry, bench, image):
    registry.always("/manifests/", Fault(drop=True))
    with pytest.raises(NetworkError, match=registry.host):
        bench(retries=2, plain_http=frozenset({registry.host})).resolve(image)
    assert registry.count() == 4


def test_b45_no_answer_at_all(registry, bench, image):
    registry.always("/manifests/", Fault(stall_after=0, delay=0.6))
    with pytest.raises(NetworkError) as caught:
        bench(timeout=0.3, retries=1).resolve(image)
    assert "no answer for too long" in caught.value.cause


def test_b45_a_connect_that_hangs_hears_a_cancel(bench):
    """B45, B46."""
    with silent_server() as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        here = bench(plain_http=frozenset({host}))
        hears_a_cancel(here, lambda: here.resolve(f"{host}/a/b:1"))


def test_b46_a_tls_hello_that_is_never_answered_hears_a_cancel(bench):
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = bench()
        hears_a_cancel(here, lambda: here.resolve(f"127.0.0.1:{server.getsockname()[1]}/a/b:1"))


def test_b46_a_name_that_takes_for_ever_hears_a_cancel(bench, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", slow_lookup(socket.getaddrinfo))
    here = bench()
    hears_a_cancel(here, lambda: here.resolve("slow.localhost:1/a/b:1"))


def slow_lookup(real):
    def lookup(host, *arguments, **named):
        if named.get("flags"):
            return real(host, *arguments, **named)
        time.sleep(60)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    return lookup


def test_b47_no_session_is_used_by_two_threads_at_once(registry, bench, image):
    here = bench()
    streams = [here.source(image).open_blob(describe(LAYER), 0) for _ in range(5)]
    for stream in streams:
        stream.read(10)
    assert len({x.connection for x in registry.asked("/blobs/")}) == 5
    for stream in streams:
        stream.close()


# Retries


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("0", 0), ("7", 7), (" 7 ", 7), ("86400", 86400), ("9" * 400, 1e12), ("-1", None), ("1.5", None),
        ("soon", None), ("", None), (email.utils.formatdate(NOW + 30, usegmt=True), 30),
        (email.utils.formatdate(NOW - 3000, usegmt=True), 0), ("Wed, 99 Nov 2026 99:99:99 GMT", None), ("٣", None),
    ],
)  # fmt: skip
def test_b40_retry_after(value, seconds):
    found = retry_after(value, NOW)
    assert found == pytest.approx(seconds) if seconds is not None else found is None


@pytest.mark.parametrize(
    ("header", "waited"),
    [("7", 7.0), ("date+7", 7.0), ("0", 0.75), ("past", 0.75), ("nonsense", 0.75), (None, 0.75), ("60", 60.0)],
)
def test_b40_429_is_waited_for(registry, bench, image, header, waited):
    here = bench()
    base = here.time.clock().now()
    value = {
        "date+7": email.utils.formatdate(base + 7, usegmt=True),
        "past": email.utils.formatdate(base - 99, usegmt=True),
    }.get(header, header)
    registry.script("/manifests/", Fault(status=429, headers={"Retry-After": value} if value else {}))
    here.resolve(image)
    assert sum(here.time.waits) == pytest.approx(waited)


def test_b40_a_day_is_not_waited_for(registry, bench, image):
    registry.always(
        "/manifests/", Fault(status=429, headers={"Retry-After": "86400"}, body=errors("TOOMANYREQUESTS", "slow down"))
    )
    here = bench()
    with pytest.raises(NetworkError) as caught:
        here.resolve(image)
    assert "2027-01-16 08:00:00 UTC" in caught.value.cause
    assert "429 TOOMANYREQUESTS: slow down" in caught.value.cause
    assert here.time.waits == []
    assert caught.value.exit_code == ExitCode.NETWORK


def test_b40_eight_threads_share_one_pause(registry, bench, image):
    """B40: all eight meet a 429; none asks again before the pause of the first is over."""
    here = bench(real_time=True)
    here.resolve(image)
    registry.script("/blobs/", *[Fault(status=429, headers={"Retry-After": "1"})] * 8)
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        here.blob(image, LAYER)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    times = sorted(x.time for x in registry.asked("/blobs/") if str(describe(LAYER).digest) in x.path)
    assert len(times) <= 16
    assert not [x for x in times if 0.2 < x - times[0] < 0.9]


@pytest.mark.parametrize("status", [408, 499, 500, 502, 503, 504, 522])
def test_b41_flaky_answers_are_tried_again(registry, bench, image, status):
    registry.script("/manifests/", *[Fault(status=status)] * 3)
    here = bench()
    here.resolve(image)
    assert retries_of(here) == [(1, 0.75), (2, 1.5), (3, 3.0)]
    assert {x.retries for x in here.of(events.Retrying)} == {5}


def test_b41_five_tries_and_then_the_end(registry, bench, image):
    registry.always("/manifests/", Fault(status=503, body=b"<html>busy</html>"))
    here = bench(retries=5)
    with pytest.raises(NetworkError, match=f"{registry.host} reports a server error") as caught:
        here.resolve(image)
    assert caught.value.cause == "registry answered 503 Service Unavailable"
    assert registry.count() == 6


@pytest.mark.parametrize("status", [501, 505, 400, 405, 418, 451])
def test_b41_b42_others_are_not(registry, bench, image, status):
    registry.always("/manifests/", Fault(status=status))
    with pytest.raises(NetworkError) as caught:
        bench().resolve(image)
    assert str(status) in caught.value.cause
    assert registry.count() == 1


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (errors("NAME_INVALID", "bad name"), "registry answered 400 NAME_INVALID: bad name"),
        (b"<html><h1>400</h1></html>", "registry answered 400 Bad Request"),
        (b'{"errors": null}', "registry answered 400 Bad Request"),
        (b'{"errors": [{}]}', "registry answered 400 Bad Request"),
        (b'{"errors": [null, 5, {"message": "only words"}]}', "registry answered 400 Bad Request: only words"),
        (b'{"errors": [{"code": 5, "message": []}]}', "registry answered 400 Bad Request"),
        (b"[" * 50_000, "registry answered 400 Bad Request"),
        (b'{"errors": [{"code": "X", "message": "' + b"a" * 10_000_000 + b'"}]}', "registry answered 400 Bad Request"),
        (b'{"errors": [{"code": "X", "message": "a\\u001b[31m\\nb\\u202e"}]}',
         r"registry answered 400 X: a\x1b[31m\nb\u202e"),
    ],
)  # fmt: skip
def test_b42_error_bodies(registry, bench, image, body, cause):
    registry.always("/manifests/", Fault(status=400, body=body))
    with pytest.raises(NetworkError) as caught:
        bench().resolve(image)
    assert caught.value.cause == cause


def test_b42_long_messages_are_cut():
    assert len(clipped("x" * 1000, redact.MESSAGE_LIMIT)) == redact.MESSAGE_LIMIT
    assert len(clipped("\x01" * 1000, redact.MESSAGE_LIMIT)) == redact.MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (404, "MANIFEST_UNKNOWN", 3), (404, "NAME_UNKNOWN", 3), (404, "", 3), (401, "UNAUTHORIZED", 4),
        (403, "DENIED", 4), (400, "TOOMANYREQUESTS", 5), (400, "", 5),
    ],
)  # fmt: skip
def test_b43_codes_become_exit_codes(registry, bench, image, status, code, exit_code):
    registry.always("/manifests/", Fault(status=status, body=errors(code) if code else b""))
    with pytest.raises((NotFoundError, AccessError, NetworkError)) as caught:
        bench().resolve(image)
    assert caught.value.exit_code == exit_code
    assert caught.value.message.startswith(f"{image}: ")


def test_b44_warnings_of_the_registry_are_shown_once(registry, bench, image):
    registry.always("/v2/", Fault(headers=[
        ("Warning", '299 - "this image is \\"old\\""'), ("Warning", '299 - "another\x07"'),
        ("Warning", '199 - "not for us"'), ("Warning", "nonsense"), ("Warning", '299 - ""'),
    ]))  # fmt: skip
    here = bench()
    here.resolve(image)
    here.resolve(image)
    assert here.warnings == [f'{registry.host} says: this image is "old"', f"{registry.host} says: another\\x07"]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://u:p@h.example/a?X-Amz-Signature=1&ns=docker.io", "https://h.example/a?X-Amz-Signature=REDACTED&ns=docker.io"),
        ("https://h/a?sig=abc&se=2026", "https://h/a?sig=REDACTED&se=REDACTED"),
        ("https://h/token?service=s&scope=repository:a:pull&token=x", "https://h/token?service=s&scope=repository:a:pull&token=REDACTED"),
        ("https://[bad/x", "(an address that cannot be read)"),
        ("https://h/a\x1b[31m", r"https://h/a\x1b[31m"),
    ],
)  # fmt: skip
def test_b23_redacted_addresses(address, shown):
    assert redact.url(address) == shown


def test_b40_docker_hub_without_a_name_is_told_to_log_in(bench, other, monkeypatch):
    """B40: reached through a proxy, since the tests stay on this machine."""
    monkeypatch.setenv("http_proxy", other.url)
    other.always("", Fault(status=429, headers={"Retry-After": "21600"}, body=errors("TOOMANYREQUESTS")))
    with pytest.raises(NetworkError) as caught:
        bench(plain_http=frozenset({"docker.io"})).resolve("ubuntu:22.04")
    assert other.requests[0].headers["host"] == "registry-1.docker.io"
    assert "docker login" in caught.value.hint
