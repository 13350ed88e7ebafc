"""Public keys, and the signatures that cosign makes with them.

Signatures say nothing of how they were made; what a key can do decides. As cosign does: ECDSA with SHA-256, for P-384
also with SHA-384, Ed25519 over the bytes themselves, RSA (PKCS #1 v1.5 or PSS) with SHA-256.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import UsageError
from msb_pull.ground.places import read_regular

if TYPE_CHECKING:
    from pathlib import Path

_MAX_FILE = 64 * 1024
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 16384
_BEGIN = b"-----BEGIN "
_KINDS = "ECDSA (P-256, P-384), Ed25519 and RSA are known"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and what is known of it. ``fingerprint`` is the SHA-256 of its DER form, ``pem`` its canonical text."""

    name: str
    fingerprint: str
    pem: str
    key: Any

    @property
    def shown(self) -> str:
        """For people: the file, and enough of the fingerprint to tell keys apart."""
        return f"{self.name} (SHA256:{self.fingerprint[:12]})"

    def verifies(self, data: bytes, signature: bytes) -> bool:
        """Whether the holder of the key has signed ``data``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

        ways: list[tuple[Any, ...]]
        if isinstance(self.key, ed25519.Ed25519PublicKey):
            ways = [()]
        elif isinstance(self.key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
            ways = [(padding.PKCS1v15(), hashes.SHA256()), (pss, hashes.SHA256())]
        elif isinstance(self.key.curve, ec.SECP384R1):
            ways = [(ec.ECDSA(hashes.SHA256()),), (ec.ECDSA(hashes.SHA384()),)]
        else:
            ways = [(ec.ECDSA(hashes.SHA256()),)]
        for way in ways:
            try:
                self.key.verify(signature, data, *way)
            except InvalidSignature:
                continue
            return True
        return False


def read_key(path: Path) -> PublicKey:
    """The one public key in a file (PEM); raises UsageError, also where the package that reads it is missing."""
    try:
        data = read_regular(path, _MAX_FILE)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the public key", cause=error.strerror) from None
    return parse_key(data, str(path))


def parse_key(data: bytes, name: str) -> PublicKey:
    """A public key in PEM, called ``name`` in messages; raises UsageError."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise UsageError(
            "checking signatures needs the package cryptography", hint="pip install 'msb-pull[sign]'"
        ) from None
    if b"PRIVATE KEY-----" in data:
        raise UsageError(f"{name}: this is a private key", hint="name the public one, as cosign.pub")
    if len(data) > _MAX_FILE or data.count(_BEGIN) != 1:
        raise UsageError(f"{name}: not one public key in PEM", hint="a key file begins with -----BEGIN PUBLIC KEY-----")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{name}: not a public key", cause=str(error).partition("\n")[0], hint=_KINDS) from None
    return public_key(key, name)


def public_key(key: Any, name: str) -> PublicKey:
    """A key of ``cryptography``; raises UsageError for kinds and sizes that cosign does not sign with."""
    from cryptography.hazmat.primitives import serialization

    _check_kind(key, name)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    der = key.public_bytes(serialization.Encoding.DER, spki)
    pem = key.public_bytes(serialization.Encoding.PEM, spki).decode("ascii")
    return PublicKey(name, hashlib.sha256(der).hexdigest(), pem, key)


def _check_kind(key: Any, name: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return
    if not isinstance(key, rsa.RSAPublicKey):
        raise UsageError(f"{name}: a public key of a kind that is not supported", hint=_KINDS)
    if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        hint = f"use one of {_MIN_RSA_BITS} bits or more"
        raise UsageError(f"{name}: an RSA key of {key.key_size} bits is not supported", hint=hint)
