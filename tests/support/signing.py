"""Signatures of images as cosign makes them, with keys of our own, and where they lie at a registry.

signer = Signer.make("p256")
sign(registry, "acme/app", added.manifest_digest, signer)        # under the tag sha256-….sig
refer(registry, "acme/app", digest, bundle(signer, digest))      # as cosign 3 does, for the list of referrers
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from tests.support.fault_registry import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, FaultRegistry, digest_of

SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY = "application/vnd.oci.empty.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://sigstore.dev/cosign/sign/v1"


@dataclass(frozen=True)
class Signer:
    """A private key, and how it signs."""

    private: Any
    ways: tuple[Any, ...] = field(default=())

    @classmethod
    def make(cls, kind: str) -> Signer:
        """A new key: p256, p384, p384-sha384, ed25519, rsa (PKCS #1 v1.5) or rsa-pss; others to be refused."""
        sha256 = hashes.SHA256()
        if kind == "ed25519":
            return cls(ed25519.Ed25519PrivateKey.generate())
        if kind.startswith("rsa"):
            bits = 1024 if kind == "rsa-1024" else 2048
            pss = padding.PSS(padding.MGF1(sha256), padding.PSS.DIGEST_LENGTH)
            return cls(
                rsa.generate_private_key(65537, bits), (pss if kind == "rsa-pss" else padding.PKCS1v15(), sha256)
            )
        curve = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p384-sha384": ec.SECP384R1(), "p521": ec.SECP521R1()}
        return cls(
            ec.generate_private_key(curve[kind]), (ec.ECDSA(hashes.SHA384() if kind.endswith("sha384") else sha256),)
        )

    def sign(self, data: bytes) -> bytes:
        """The signature of some bytes."""
        return self.private.sign(data, *self.ways)

    @property
    def pem(self) -> bytes:
        """The public key."""
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(serialization.Encoding.PEM, public)

    def write(self, path: Path) -> str:
        """Writes the public key; returns where."""
        path.write_bytes(self.pem)
        return str(path)


def payload(name: str, digest: str, **critical: Any) -> bytes:
    """What cosign signs; ``critical`` replaces parts of it."""
    parts = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": parts | critical, "optional": None}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Layer:
    """One signature of a manifest: its document and the annotations beside it."""

    document: bytes
    annotations: Mapping[str, Any]
    media_type: str = SIMPLE

    @classmethod
    def of(cls, signer: Signer, document: bytes, **more: str) -> Layer:
        """A payload and its signature."""
        signature = base64.b64encode(signer.sign(document)).decode()
        return cls(document, {ANNOTATION: signature, **more})


def manifest_of(registry: FaultRegistry, layers: Sequence[Layer], **fields: Any) -> dict[str, Any]:
    """A manifest with these signatures, whose blobs are stored."""
    config = b"{}"
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": registry.add_blob(config), "size": len(config)},
        "layers": [
            {
                "mediaType": layer.media_type,
                "digest": registry.add_blob(layer.document),
                "size": len(layer.document),
                "annotations": dict(layer.annotations),
            }
            for layer in layers
        ],
        **fields,
    }


def sign(registry: FaultRegistry, repository: str, digest: str, *signers: Signer, name: str | None = None) -> str:
    """Signs with keys as `cosign sign --key` did before version 3; returns the digest of the signatures' manifest."""
    document = payload(name or f"{registry.host}/{repository}", digest)
    return attach(registry, repository, digest, [Layer.of(signer, document) for signer in signers])


def tag_of(digest: str) -> str:
    """The tag of the signatures of some content."""
    return digest.replace(":", "-") + ".sig"


def attach(registry: FaultRegistry, repository: str, digest: str, layers: Sequence[Layer]) -> str:
    """Puts signatures under the tag of what they are said to be of."""
    return registry.add_manifest(repository, tag_of(digest), manifest_of(registry, layers))


def statement(digest: str, **fields: Any) -> bytes:
    """What cosign 3 signs."""
    algorithm, _, value = digest.partition(":")
    subject = [{"digest": {algorithm: value}, "annotations": {}}]
    document = {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE, "predicate": {}}
    return json.dumps(document | fields).encode()


def signed_bytes(kind: str, document: bytes) -> bytes:
    """The bytes of a DSSE envelope that are signed."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(document), document)


def bundle(signer: Signer, digest: str, *, document: bytes | None = None, kind: str = IN_TOTO, **fields: Any) -> bytes:
    """A Sigstore bundle made with a key, as `cosign sign --key` makes it since version 3."""
    said = document if document is not None else statement(digest)
    envelope = {
        "payload": base64.b64encode(said).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(signer.sign(signed_bytes(kind, said))).decode()}],
    }
    material = {"publicKey": {"hint": "none"}, "tlogEntries": [], "timestampVerificationData": {}}
    return json.dumps(
        {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope} | fields
    ).encode()


def referring(registry: FaultRegistry, repository: str, digest: str, document: bytes, **fields: Any) -> dict[str, Any]:
    """Stores a bundle with a manifest that refers to an image; returns its entry for a list of referrers."""
    empty = {"mediaType": EMPTY, "digest": registry.add_blob(b"{}"), "size": 2}
    manifest = manifest_of(registry, [Layer(document, {}, BUNDLE)], artifactType=BUNDLE, config=empty)
    manifest["subject"] = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1}
    data = json.dumps(manifest | fields).encode()
    made = registry.add_manifest(repository, None, data)
    return {"mediaType": OCI_MANIFEST, "digest": made, "size": len(data), "artifactType": BUNDLE}


def refer(
    registry: FaultRegistry, repository: str, digest: str, *documents: bytes, api: bool = True, **fields: Any
) -> None:
    """Stores bundles that refer to an image, in the list of the API or in that of the tag that stands in for it."""
    entries = [referring(registry, repository, digest, document, **fields) for document in documents]
    list_referrers(registry, repository, digest, entries, api=api)


def list_referrers(
    registry: FaultRegistry, repository: str, digest: str, entries: Sequence[Mapping[str, Any]], *, api: bool = True
) -> None:
    """Lists what refers to an image."""
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}).encode()
    if api:
        registry.files[f"/v2/{repository}/referrers/{digest}"] = index, OCI_INDEX
    else:
        registry.add_manifest(repository, digest.replace(":", "-"), index, OCI_INDEX)


def rule(images: str, **fields: Any) -> str:
    """A rule of the configuration file."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"images": images, **fields}.items()]
    return "\n".join(["[[signatures]]", *lines, ""])


__all__ = [
    "ANNOTATION", "BUNDLE", "IN_TOTO", "PREDICATE", "SIMPLE", "STATEMENT", "Layer", "Signer", "attach", "bundle",
    "digest_of", "list_referrers", "manifest_of", "payload", "refer", "referring", "rule", "sign", "signed_bytes",
    "statement", "tag_of",
]  # fmt: skip
