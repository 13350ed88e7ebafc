"""Keyless signatures as cosign made them before version 3: payload, signature, certificate and log entry apart.

The entry comes with the log's promise to include it and no proof that it did (specs/SIGNATURE_SPEC.md, ``bundle``),
which the package ``sigstore`` takes in no bundle. What it checks of a bundle's certificate it checks here too, by a
method that is no part of its interface: so this is done with versions whose insides are known, and refused with others.
"""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import ContentError, UsageError
from msb_pull.ground.text import clipped
from msb_pull.image.digest import Digest
from msb_pull.image.documents import Fields, load_json
from msb_pull.trust.evidence import decoded
from msb_pull.trust.keys import public_key
from msb_pull.trust.statements import Refused

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from msb_pull.trust.evidence import Evidence

# What does, in order: time, chain, certificate log, profile, policy, entry of the log, validity at that time.
_KNOWN = "4.5."


class Entry:
    """An entry of the log with its promise (Signed Entry Timestamp); raises Refused for what is none."""

    def __init__(self, data: str) -> None:
        try:
            fields = Fields(load_json(data.encode(), "it", "log entry"), "it", "its log entry")
            payload = fields.object("Payload")
            self.promise = decoded(fields.get("SignedEntryTimestamp"), "promise of the log")
            self.time, self.index = payload.size("integratedTime"), payload.size("logIndex")
            self.log, self._text = bytes.fromhex(payload.text("logID")), payload.text("body")
            self.body = load_json(decoded(self._text, "log entry"), "it", "log entry")
        except (ContentError, ValueError) as error:
            raise Refused(f"its log entry is damaged: {clipped(str(error), 120)}") from None

    @property
    def signed(self) -> bytes:
        """What the log has signed (RFC 8785 of these four)."""
        parts = {"body": self._text, "integratedTime": self.time, "logID": self.log.hex(), "logIndex": self.index}
        return json.dumps(parts, separators=(",", ":"), sort_keys=True).encode("ascii")

    def check(self, evidence: Evidence, certificate: Certificate) -> None:
        """Compares the entry with the signature that it came with (CVE-2022-36056); raises Refused."""
        digest = Digest.of(evidence.document)
        found: Any = self.body
        for name in ("spec", "signature", "publicKey", "content"):
            found = found.get(name) if isinstance(found, dict) else None
        signature = base64.b64encode(evidence.signature or b"").decode("ascii")
        wanted = {
            "kind": "hashedrekord",
            "apiVersion": "0.0.1",
            "spec": {
                "data": {"hash": {"algorithm": digest.algorithm, "value": digest.hex}},
                "signature": {"content": signature, "publicKey": {"content": found}},
            },
        }
        if self.body != wanted or _certificate(decoded(found, "log entry")) != certificate:
            raise Refused("its log entry is that of another signature")


def signed_with_certificate(verifier: Any, policy: Any, evidence: Evidence) -> None:
    """Checks a signature with a certificate, whose identity ``policy`` judges.

    Raises Refused, and what ``sigstore`` and what it uses raise.
    """
    import sigstore

    if not sigstore.__version__.startswith(_KNOWN):
        raise Refused(f"it is in cosign's older form, which needs sigstore {_KNOWN}x (this is {sigstore.__version__})")
    if not evidence.log:
        raise Refused("it has a certificate, and no entry in the log")
    certificate, entry = _certificate(evidence.certificate.encode()), Entry(evidence.log)
    try:
        key = public_key(certificate.public_key(), "its certificate")
    except UsageError as error:
        raise Refused(error.message) from None
    if not key.verifies(evidence.document, evidence.signature or b""):
        raise Refused("it was not made with the key of its certificate")
    entry.check(evidence, certificate)
    verifier._verify_common_signing_cert(_as_bundle(certificate, entry), policy)


def _as_bundle(certificate: Certificate, entry: Entry) -> Any:
    """What the verifier asks of a bundle before it comes to its content."""

    def verify(keyring: Any) -> None:
        keyring.verify(key_id=entry.log, signature=entry.promise, data=entry.signed)

    inner = SimpleNamespace(
        integrated_time=entry.time,
        inclusion_promise=entry.promise,
        kind_version=SimpleNamespace(kind="hashedrekord", version="0.0.1"),
    )
    return SimpleNamespace(
        signing_certificate=certificate,
        verification_material=SimpleNamespace(timestamp_verification_data=None),
        log_entry=SimpleNamespace(_inner=inner, _verify=verify),
    )


def _certificate(pem: bytes) -> Certificate:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        found = []
    if len(found) != 1:
        raise Refused("it has not exactly one certificate")
    return found[0]
