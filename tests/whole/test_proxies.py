"""The installed program behind proxies of every kind, and at registries whose names are not plain ASCII."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
from pathlib import Path

import pytest
import trustme

from tests.conftest import REPOSITORY, program_environment
from tests.support.fault_registry import FaultRegistry
from tests.support.home import LINUX
from tests.support.make_sample import BASE, layer_tar
from tests.support.ports import free_port
from tests.support.program import run_program
from tests.support.proxies import NAME, Proxy, context_for


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def add(registry: FaultRegistry) -> str:
    image = registry.add_image("acme/app", "1", [gzip.compress(layer_tar(BASE), 6, mtime=0)])
    return image.manifest_digest


def pull(place: Path, image: str, *arguments: str, path: str = "", **environment: str) -> subprocess.CompletedProcess:
    config = place / "config.toml"
    config.write_text("[pull]\nretries = 1\ntimeout = 5\n")
    words = ["pull", *LINUX, "--config", config, "--home", place / "store", *arguments, image]
    search = f"{path}:{REPOSITORY}" if path else str(REPOSITORY)
    run = run_program(words, env=program_environment(**environment) | {"PYTHONPATH": search})
    assert "Traceback" not in run.stderr and "bug in msb-pull" not in run.stderr, run.stderr
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
    assert "cause: the proxy is a SOCKS proxy, which needs PySocks\n" in run.stderr
    assert "hint: install PySocks" in run.stderr
    assert "trying again" not in run.stderr.lower()


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
        assert "not an ASCII letter or digit" in run.stderr
        assert proxy.asked == []


def test_the_default_port_spelled_out_is_sent_once(tmp_path, authority, trusted):
    with FaultRegistry(tls=context_for(authority, NAME)) as registry, Proxy(registry.port) as proxy:
        digest = add(registry)
        environment = {"HTTPS_PROXY": f"http://{proxy.host}", "SSL_CERT_FILE": trusted}
        run = pull(tmp_path, f"{NAME}:443/acme/app:1", **environment)
        assert (run.returncode, run.stdout) == (0, f"{NAME}:443/acme/app:1@{digest}\n"), run.stderr
        assert set(proxy.asked) == {f"{NAME}:443"}
        assert {x.headers["host"] for x in registry.asked("/v2/")} <= {NAME, f"{NAME}:443"}
