"""Sigstore bundles (protobuf-specs, sigstore_bundle.proto): signed with a known key, or with a certificate.

Those with a certificate are checked by the package ``sigstore``, offline: the certificate's chain and its time, its
entry in the certificate log, the entry in the signature log with its proof, and the signature.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import ContentError, UsageError, raise_if_exhausted
from msb_pull.ground.places import read_regular
from msb_pull.ground.text import clipped
from msb_pull.image.documents import load_json
from msb_pull.trust.evidence import BUNDLES, decoded
from msb_pull.trust.statements import IN_TOTO, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.x509 import Certificate

    from msb_pull.config.signatures import SignatureRule
    from msb_pull.trust.evidence import Evidence
    from msb_pull.trust.keys import PublicKey

_MAX_ROOT = 1 << 20


def parse_bundle(data: bytes) -> dict[str, Any]:
    """The document of a bundle, whose kind is known; raises Refused."""
    try:
        document = load_json(data, "it", "bundle")
    except ContentError as error:
        raise Refused(f"its bundle is damaged: {clipped(error.cause or error.message, 120)}") from None
    if document.get("mediaType") not in BUNDLES:
        raise Refused(f"its bundle is of type {clipped(str(document.get('mediaType')), 80)}")
    if "dsseEnvelope" not in document or "messageSignature" in document:
        # What else a bundle may hold is a signature of a file, which says nothing of any image.
        raise Refused("its bundle holds no statement")
    return document


def signed_with(keys: tuple[PublicKey, ...], data: bytes) -> tuple[bytes, PublicKey]:
    """The statement in a bundle, and the key that it was signed with (DSSE, protocol.md); raises Refused."""
    envelope = parse_bundle(data).get("dsseEnvelope")
    if not isinstance(envelope, dict) or envelope.get("payloadType") != IN_TOTO:
        raise Refused("its bundle holds no in-toto statement")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise Refused("its statement is not signed exactly once")
    statement = decoded(envelope.get("payload"), "statement")
    signature = decoded(signatures[0].get("sig"), "signature")
    signed = b"DSSEv1 %d %s %d %s" % (len(IN_TOTO), IN_TOTO.encode("ascii"), len(statement), statement)
    for key in keys:
        if key.verifies(signed, signature):
            return statement, key
    raise Refused("it was not made with a key of the rule")


class Authority:
    """What a keyless rule believes in: a trust root, an issuer, and who may sign."""

    def __init__(self, rule: SignatureRule) -> None:
        """Reads the trust root; raises UsageError, also where the package that does so is missing."""
        assert rule.trust_root is not None
        self._rule = rule
        self._verifier = _verifier(Path(rule.trust_root))

    def statement(self, data: bytes) -> tuple[bytes, str]:
        """The statement that a bundle holds, and the identity of who has signed it; raises Refused."""
        from sigstore.models import Bundle

        parse_bundle(data)
        policy = _Identity(self._rule)
        with _refusing("its bundle is not valid"):
            kind, statement = self._verifier.verify_dsse(Bundle.from_json(data), policy)
        if kind != IN_TOTO:
            raise Refused("its bundle holds no in-toto statement")
        return statement, policy.seen

    def signer(self, evidence: Evidence) -> str:
        """The identity of who has signed in cosign's older form; raises Refused."""
        from msb_pull.trust.annotated import signed_with_certificate

        if not evidence.certificate:
            raise Refused("it has no certificate")
        policy = _Identity(self._rule)
        with _refusing("its certificate is not valid"):
            signed_with_certificate(self._verifier, policy, evidence)
        return policy.seen


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Makes any error a Refused: those of all that certificates and numbers are read with come through as they are."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 - see above; whatever it is, this is no valid signature
        raise_if_exhausted(error)
        raise Refused(f"{what}: {clipped(str(error).partition(chr(10))[0], 160)}") from None


class _Identity:
    """Who a certificate must name (fulcio, oid-info.md): for :class:`sigstore.verify.policy.VerificationPolicy`."""

    def __init__(self, rule: SignatureRule) -> None:
        self._rule = rule
        self.seen = ""

    def verify(self, cert: Certificate) -> None:
        """Raises VerificationError unless the issuer is the rule's and the identity matches its glob."""
        from cryptography import x509
        from sigstore.errors import VerificationError
        from sigstore.verify.policy import AnyOf, OIDCIssuer, OIDCIssuerV2

        try:
            AnyOf([OIDCIssuerV2(self._rule.issuer), OIDCIssuer(self._rule.issuer)]).verify(cert)
        except VerificationError:
            raise VerificationError(f"its certificate was not issued for {self._rule.issuer}") from None
        try:
            names = list(cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            names = []
        if len(names) != 1:
            raise VerificationError("its certificate names not exactly one identity")
        name = names[0].value
        if isinstance(names[0], x509.OtherName):
            raise VerificationError("its certificate names an identity of a kind that is not supported")
        if not isinstance(name, str) or not fnmatch.fnmatchcase(name, self._rule.identity):
            raise VerificationError(f"its certificate is for {clipped(str(name), 100)}")
        self.seen = name


def _verifier(path: Path) -> Any:
    try:
        from sigstore.errors import Error
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier
    except ImportError:
        hint = "pip install 'msb-pull[sigstore]'"
        raise UsageError("checking signatures with certificates needs the package sigstore", hint=hint) from None
    # Without a handler of its own, logging writes what it has to say to standard error.
    logging.getLogger("sigstore").addHandler(logging.NullHandler())
    hint = "it must be a trusted_root.json, as `cosign trusted-root create` writes one"
    try:
        if len(read_regular(path, _MAX_ROOT)) > _MAX_ROOT:
            raise UsageError(f"{path}: too large for a trust root", hint=hint)
        return Verifier(trusted_root=TrustedRoot.from_file(str(path)))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the trust root", cause=error.strerror) from None
    except (Error, ValueError, TypeError, KeyError, AttributeError) as error:
        cause = clipped(str(error).partition("\n")[0], 160)
        raise UsageError(f"{path}: not a trust root", cause=cause, hint=hint) from None
