"""Certificates by registry, where docker and podman keep them: closed folders, Docker without root, closed keys."""

from __future__ import annotations

import os
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from msb_pull.ground.errors import LocalError, UsageError
from msb_pull.ground.running import Cancel
from msb_pull.source.http.sockets import Patience
from msb_pull.source.http.tls import TrustStore
from msb_pull.source.login.credentials import CredentialStore
from tests.conftest import REPOSITORY, program, program_environment
from tests.support.fault_registry import FaultRegistry
from tests.support.registries import LAYER, name, server_context
from tests.support.unprivileged import as_nobody, folder_of_nobody

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def trust(authority: trustme.CA, folder: Path) -> Path:
    folder.mkdir(parents=True)
    authority.cert_pem.write_to_path(folder / "ca.crt")
    return folder


@pytest.mark.parametrize("variable", [{}, {"XDG_CONFIG_HOME": "elsewhere"}])
def test_the_folder_of_docker_without_root_is_read(secure, bench, authority, tmp_path, variable):
    config = {key: str(tmp_path / value) for key, value in variable.items()}
    trust(authority, Path(config.get("XDG_CONFIG_HOME", tmp_path / ".config")) / "docker/certs.d" / secure.host)
    bench(CredentialStore.nobody({"HOME": str(tmp_path), **config})).resolve(name(secure))


def pulled(home: Path, registry: FaultRegistry, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*program(), "pull", "-n", *words, "--home", str(home / "store"), "--platform", "linux/amd64"]
    return subprocess.run(
        as_nobody([*command, name(registry)], [REPOSITORY]),
        env=program_environment(HOME=str(home)), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@as_root
@pytest.mark.parametrize("closed", [".docker/certs.d", ".docker/certs.d/HOST", ".docker/certs.d/HOST/ca.crt",
                                    ".docker/certs.d/HOST/client.cert", ".docker/certs.d/HOST/client.key"])  # fmt: skip
def test_what_this_user_may_not_read_is_passed_over(secure, authority, closed):
    """As /etc/docker/certs.d often is: an administrator's. Only with -v is it told, and only once."""
    with folder_of_nobody() as home:
        trust(authority, home / ".config/docker/certs.d" / secure.host)
        folder = trust(authority, home / ".docker/certs.d" / secure.host)
        client = authority.issue_cert("client@example.com")
        client.cert_chain_pems[0].write_to_path(folder / "client.cert")
        client.private_key_pem.write_to_path(folder / "client.key")
        for path in folder.iterdir():
            path.chmod(0o644)
        path = home / closed.replace("HOST", secure.host)
        path.chmod(0)
        done = pulled(home, secure)
        assert done.returncode == 0, done.stderr
        assert "is ignored" not in done.stderr
        told = pulled(home, secure, "-v").stderr
        assert told.count("is ignored") == 1 and f"{path} is ignored, since this user may not read it" in told


@pytest.fixture
def guarded(authority):
    """A registry that wants to see a client's certificate."""
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with FaultRegistry(tls=context) as server:
        server.add_image("acme/app", "1", [LAYER])
        yield server


def with_pass_phrase(pem: bytes) -> bytes:
    key = serialization.load_pem_private_key(pem, None)
    closed = serialization.BestAvailableEncryption(b"sesame")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed)


def test_a_client_key_with_a_pass_phrase_is_refused_in_one_sentence(guarded, bench, authority, tmp_path):
    folder = trust(authority, tmp_path / ".docker/certs.d" / guarded.host)
    client = authority.issue_cert("client@example.com")
    client.cert_chain_pems[0].write_to_path(folder / "client.cert")
    (folder / "client.key").write_bytes(with_pass_phrase(client.private_key_pem.bytes()))
    with pytest.raises(LocalError) as caught:
        bench(CredentialStore.nobody({"HOME": str(tmp_path)})).resolve(name(guarded))
    assert (
        caught.value.message == f"{folder}/client.key: this client key has a passphrase, and msb-pull cannot ask for it"
    )
    assert "openssl pkey" in (caught.value.hint or "")
    assert guarded.count() == 0


def test_nobody_is_asked_for_a_pass_phrase_at_a_terminal(guarded, authority, tmp_path):
    """With a terminal of its own, at which OpenSSL would wait for ever."""
    folder = trust(authority, tmp_path / ".docker/certs.d" / guarded.host)
    client = authority.issue_cert("client@example.com")
    client.cert_chain_pems[0].write_to_path(folder / "client.cert")
    (folder / "client.key").write_bytes(with_pass_phrase(client.private_key_pem.bytes()))
    command = [*program(), "pull", "-n", "--platform", "linux/amd64", name(guarded)]
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", *command], stdin=theirs, capture_output=True, text=True, timeout=60,
            env=program_environment(HOME=str(tmp_path)),
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 7 and done.stderr.count("error:") == 1
    assert "has a passphrase" in done.stderr


@pytest.mark.parametrize("pipe", ["ca.crt", "client.cert", "client.key", "named", "bundle"])
def test_a_pipe_in_the_place_of_a_certificate_is_refused_and_not_waited_for(tmp_path, authority, pipe):
    """OpenSSL opens these files itself."""
    folder = trust(authority, tmp_path / "certs.d" / "example.com")
    client = authority.issue_cert("client@example.com")
    client.cert_chain_pems[0].write_to_path(folder / "client.cert")
    client.private_key_pem.write_to_path(folder / "client.key")
    (folder / pipe).unlink(missing_ok=True)
    os.mkfifo(folder / pipe)
    store = TrustStore(
        ca_certs={"example.com": str(folder / pipe)} if pipe == "named" else {},
        no_verify=frozenset(),
        environment={"HOME": str(tmp_path)} | ({"SSL_CERT_FILE": str(folder / pipe)} if pipe == "bundle" else {}),
        patience=Patience(Cancel()),
        aliases={},
        certs_d=(tmp_path / "certs.d",),
    )
    with pytest.raises((UsageError, LocalError), match="cannot be used") as caught:
        store.context("example.com")
    assert str(folder) in str(caught.value) and "not a regular file" in str(caught.value.cause)
