"""The same against docker-registry: what it accepts is what registries accept."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest
import trustme

from msb_pull.ground import events
from msb_pull.ground.errors import AccessError, NetworkError, NotFoundError
from msb_pull.source.login.credentials import CredentialStore
from tests.conftest import need
from tests.support.fault_registry import FaultRegistry
from tests.support.registries import describe, drain
from tests.support.servers import PASSWORD, PROGRAM, USER, RealRegistry, TokenServer

BLOBS = [random.Random(n).randbytes(500_000 + n) for n in range(6)]


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A storage folder that already holds acme/app:1."""
    need(PROGRAM)
    folder = tmp_path_factory.mktemp("registry") / "storage"
    with RealRegistry(folder) as registry:
        registry.push("acme/app", "1", BLOBS)
    return folder


@pytest.fixture
def tokens():
    """A token service for bob, and for nobody else."""
    with FaultRegistry() as server:
        yield TokenServer(server, users={USER: PASSWORD})


def login(password=PASSWORD):
    return CredentialStore.from_text(f"{USER}:{password}", {})


def pull(here, host, tag="1"):
    """Everything that a pull reads, on four threads."""
    reference = f"{host}/acme/app:{tag}"
    found = here.resolve(reference)
    source, got = here.source(reference), {}

    def read(numbers):
        for number in numbers:
            got[number] = drain(source, found.manifest.layers[number])

    threads = [threading.Thread(target=read, args=(range(n, len(BLOBS), 4),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [got.get(n) for n in range(len(BLOBS))] == BLOBS
    return found


def test_plain(storage, bench):
    with RealRegistry(storage) as registry:
        here = bench()
        found = pull(here, registry.host)
        assert here.blob(f"{registry.host}/acme/app:1", BLOBS[0], 499_000) == BLOBS[0][499_000:]
        with pytest.raises(NotFoundError) as caught:
            here.resolve(f"{registry.host}/acme/app:2")
        assert "MANIFEST_UNKNOWN" in caught.value.cause
        with pytest.raises(NotFoundError):
            here.resolve(f"{registry.host}/acme/none:1")
        here.resolve(f"{registry.host}/acme/app@{found.digest}")
        assert here.warnings == []


def test_passwords(storage, bench):
    with RealRegistry(storage, htpasswd=True) as registry:
        pull(bench(login()), registry.host)
        with pytest.raises(AccessError) as caught:
            bench().resolve(f"{registry.host}/acme/app:1")
        assert f"docker login {registry.host}" in caught.value.hint
        with pytest.raises(AccessError) as caught:
            bench(login("wrong")).resolve(f"{registry.host}/acme/app:1")
        assert "401 UNAUTHORIZED" in caught.value.cause


def test_passwords_from_the_file_of_docker_login(storage, bench, tmp_path):
    with RealRegistry(storage, htpasswd=True) as registry:
        (tmp_path / ".docker").mkdir()
        auths = {registry.host: {"auth": "Ym9iOnNlc2FtZQ=="}}
        (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": auths}))
        pull(bench(CredentialStore(environment={"HOME": str(tmp_path)})), registry.host)


def test_tls(storage, bench, tmp_path):
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "crt")
    leaf.private_key_pem.write_to_path(tmp_path / "key")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with RealRegistry(storage, tls=(tmp_path / "crt", tmp_path / "key")) as registry:
        pull(bench(ca_certs={registry.host: str(tmp_path / "ca.pem")}), registry.host)
        pull(bench(tls_no_verify=frozenset({registry.host})), registry.host)
        with pytest.raises(NetworkError) as caught:
            bench().resolve(f"{registry.host}/acme/app:1")
        assert "certificate" in caught.value.cause
        # Spoken to in the clear it answers 400; nothing of that must look like a missing image.
        with pytest.raises(NetworkError) as caught:
            bench(plain_http=frozenset({registry.host})).resolve(f"{registry.host}/acme/app:1")
        assert "400" in caught.value.cause


def test_tokens(storage, bench, tokens):
    with RealRegistry(storage, tokens=tokens) as registry:
        pull(bench(login()), registry.host)
        assert tokens.made == 1
        with pytest.raises(AccessError):
            bench().resolve(f"{registry.host}/acme/app:1")
        with pytest.raises(AccessError) as caught:
            bench(login("wrong")).resolve(f"{registry.host}/acme/app:1")
        assert "incorrect username or password" in caught.value.cause


def test_a_token_that_the_registry_no_longer_believes(storage, bench, tokens):
    """docker-registry allows a minute of leeway: tokens that ended long ago are what an expiry looks like to it."""
    with RealRegistry(storage, tokens=tokens) as registry:
        here = bench(login())
        tokens.lifetime = -100
        with pytest.raises(AccessError):
            here.resolve(f"{registry.host}/acme/app:1")
        made, tokens.lifetime = tokens.made, 300
        pull(here, registry.host)
        assert tokens.made == made + 1


def test_mirror_in_front_of_another(storage, bench, tmp_path):
    with RealRegistry(storage) as origin, RealRegistry(tmp_path / "cache", upstream=origin.url) as mirror:
        here = bench(mirrors={origin.host: (mirror.url,)})
        pull(here, origin.host)
        assert here.warnings == []
        wait_for(tmp_path / "cache")
    # Both are gone; what the mirror has kept is served without them.
    with RealRegistry(tmp_path / "cache") as mirror:
        here = bench(mirrors={origin.host: (mirror.url,)})
        assert drain(here.source(f"{origin.host}/acme/app:1"), describe(BLOBS[0])) == BLOBS[0]


def wait_for(cache):
    """A pull-through registry writes what it serves into its own storage after the answer."""
    deadline = time.monotonic() + 10
    while sum(1 for x in cache.rglob("data") if x.is_file()) < len(BLOBS) + 1 and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_mirror_that_is_gone(storage, bench, tmp_path):
    with RealRegistry(storage) as origin:
        with RealRegistry(tmp_path / "cache", upstream=origin.url) as mirror:
            gone = mirror.url
        here = bench(mirrors={origin.host: (gone,)})
        pull(here, origin.host)
        assert len(here.warnings) == 1


def test_the_registry_restarts_in_the_middle_of_a_blob(tmp_path, bench):
    """The connection breaks and the port is closed for a second, then the rest comes from the new process."""
    need(PROGRAM)
    data = random.Random(9).randbytes(30_000_000)
    here = bench(real_time=True)
    with RealRegistry(tmp_path / "storage") as registry:
        registry.push("acme/app", "1", [data])
        with here.source(f"{registry.host}/acme/app:1").open_blob(describe(data), 0) as stream:
            got = [stream.read(1000)]
            registry.stop()
            again = threading.Timer(1, registry.start)
            again.start()
            while piece := stream.read(65536):
                got.append(piece)
            again.join()
    assert b"".join(got) == data
    assert here.of(events.Retrying)
