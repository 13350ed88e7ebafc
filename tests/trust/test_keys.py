"""Public keys of every kind, and signatures that openssl makes with their private ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from msb_pull.ground.errors import UsageError
from msb_pull.trust.keys import parse_key, read_key
from tests.support.signing import Signer
from tests.support.tools import need

DATA = b'{"critical":{}}'
PSS = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")
# How openssl makes a key, and how it signs with it.
WAYS = {
    "p256": (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), ("dgst", "-sha256", "-sign")),
    "p384": (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"), ("dgst", "-sha256", "-sign")),
    "p384 as its size wants": (
        ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
        ("dgst", "-sha384", "-sign"),
    ),
    "ed25519": (("-algorithm", "ED25519"), ("pkeyutl", "-sign", "-rawin", "-inkey")),
    "rsa": (("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"), ("dgst", "-sha256", "-sign")),
    "rsa 3072": (("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"), ("dgst", "-sha256", "-sign")),
    "rsa-pss": (("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"), ("dgst", "-sha256", *PSS, "-sign")),
}
# Signatures that are genuine, but not as cosign makes them.
OTHERS = {
    "p256": (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), ("dgst", "-sha1", "-sign")),
    "p256 with more": (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), ("dgst", "-sha512", "-sign")),
    "rsa": (("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"), ("dgst", "-sha1", "-sign")),
}


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


def signed(folder: Path, making: tuple[str, ...], signing: tuple[str, ...]) -> tuple[Path, bytes]:
    private, public, data, signature = (folder / name for name in ("private", "public", "data", "signature"))
    data.write_bytes(DATA)
    openssl("genpkey", *making, "-out", str(private))
    openssl("pkey", "-in", str(private), "-pubout", "-out", str(public))
    given = ("-in", str(data)) if signing[0] == "pkeyutl" else (str(data),)
    output = ("-out", str(signature))
    before = () if signing[0] == "pkeyutl" else output
    openssl(*signing, str(private), *before, *given, *(output if signing[0] == "pkeyutl" else ()))
    return public, signature.read_bytes()


@pytest.mark.parametrize("kind", WAYS)
def test_what_openssl_signs(kind, tmp_path):
    need("openssl")
    public, signature = signed(tmp_path, *WAYS[kind])
    key = read_key(public)
    assert key.verifies(DATA, signature)
    assert not key.verifies(DATA + b" ", signature)
    assert not key.verifies(DATA, signature[:-1])
    assert not key.verifies(DATA, signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not key.verifies(DATA, b"")
    other = (tmp_path / "other").joinpath
    other().mkdir()
    assert not read_key(signed(other(), *WAYS[kind])[0]).verifies(DATA, signature)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_hashes_do_not_count(kind, tmp_path):
    need("openssl")
    public, signature = signed(tmp_path, *OTHERS[kind])
    assert not read_key(public).verifies(DATA, signature)


def test_the_fingerprint_is_that_of_openssl(tmp_path):
    need("openssl")
    public, _ = signed(tmp_path, *WAYS["p256"])
    openssl("pkey", "-pubin", "-in", str(public), "-outform", "DER", "-out", str(tmp_path / "der"))
    done = subprocess.run(["openssl", "dgst", "-sha256", "-r", str(tmp_path / "der")], capture_output=True, text=True)
    assert read_key(public).fingerprint == done.stdout.split()[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "not one public key"),
        (lambda: b"hello", "not one public key"),
        (lambda: Signer.make("p256").pem * 2, "not one public key"),
        (lambda: Signer.make("p256").pem[:80], "not a public key"),
        (lambda: Signer.make("p256").pem.replace(b"M", b"N", 1), "not a public key"),
        (lambda: Signer.make("p256").pem + b"x" * 70000, "not one public key"),
        (lambda: Signer.make("p521").pem, "kind that is not supported"),
        (lambda: Signer.make("rsa-1024").pem, "1024 bits"),
        (lambda: b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "this is a private key"),
        (lambda: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a public key"),
    ],
)
def test_files_that_hold_no_key(make, message):
    with pytest.raises(UsageError, match=message):
        parse_key(make(), "acme.pub")


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="cannot read the public key"):
            read_key(path)


def test_what_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(UsageError) as wrong:
        parse_key(Signer.make("p256").pem, "acme.pub")
    assert wrong.value.hint == "pip install 'msb-pull[sign]'"
