"""Signatures as they lie in registries and layouts: manifests whose layers are payloads or Sigstore bundles.

cosign puts them under the tag ``sha256-<hex>.sig`` (specs/SIGNATURE_SPEC.md) or makes them refer to the image (its
specs/BUNDLE_SPEC.md; distribution-spec, "Listing Referrers").
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import clipped
from msb_pull.image.documents import Fields, load_json
from msb_pull.image.manifest import Manifest, parse_document
from msb_pull.trust.statements import MAX_STATEMENT, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLES = ("application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle+json;version=0.3")
# What an entry of a list of referrers may be called that holds signatures; cosign 2 had a type of its own for them.
ARTIFACTS = (*BUNDLES, SIMPLE_SIGNING, "application/vnd.dev.cosign.artifact.sig.v1+json")
EMPTY = "application/vnd.oci.empty.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
LOG = "dev.sigstore.cosign/bundle"
# More than any image has. Who may push to a repository could otherwise keep everybody busy who pulls from it.
MAX_SIGNATURES = 64
MAX_BUNDLE = 1 << 20
_MAX_SIGNATURE = 8 * 1024
_MAX_CERTIFICATE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Evidence:
    """One signature: the ``document`` that was signed and its ``signature``, or a bundle that holds both.

    Beside one that was not made with a known key stand its ``certificate`` (PEM) and the entry of a ``log`` (JSON).
    """

    document: bytes
    signature: bytes | None = None
    certificate: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the document of a signature lies, and what its descriptor says of it."""

    descriptor: Descriptor

    @property
    def limit(self) -> int:
        """How many bytes the document may have."""
        return MAX_STATEMENT if self.descriptor.media_type == SIMPLE_SIGNING else MAX_BUNDLE

    def evidence(self, document: bytes) -> Evidence:
        """The signature, with the document that was read from there; raises Refused."""
        if self.descriptor.media_type != SIMPLE_SIGNING:
            return Evidence(document)
        annotations = self.descriptor.annotations
        certificate, log = annotations.get(CERTIFICATE, ""), annotations.get(LOG, "")
        if max(len(certificate), len(log)) > _MAX_CERTIFICATE:
            raise Refused("its certificate or its log entry is too long")
        return Evidence(document, _signature(annotations), certificate, log)


def signatures_in(data: bytes, content_type: str | None, subject: Digest | None) -> list[Place]:
    """The places of all signatures that a manifest lists; raises Refused for one that does not make sense.

    ``subject`` is what it must refer to, None for one that was found by its tag.
    """
    try:
        manifest = parse_document(data, content_type, "it")
        refers = Fields(load_json(data, "it", "manifest"), "it", "its manifest").get("subject")
        told = Fields(refers, "it", "its subject").digest("digest") if refers is not None else None
    except ContentError as error:
        raise Refused(f"its manifest is damaged: {clipped(error.cause or error.message, 120)}") from None
    if not isinstance(manifest, Manifest):
        raise Refused("it is an index, not a manifest of signatures")
    if subject is not None and told != subject:
        raise Refused("its manifest refers to something else")
    layers = manifest.layers
    if len(layers) > MAX_SIGNATURES:
        raise Refused(f"there are more than {MAX_SIGNATURES} signatures in its manifest")
    places = [Place(layer) for layer in layers if layer.media_type in (*BUNDLES, SIMPLE_SIGNING)]
    if not places:
        kinds = layers[0].media_type if layers else "nothing"
        raise Refused(f"its manifest holds {clipped(kinds, 80)}, and no signature")
    marks = [(place.descriptor.digest, place.descriptor.annotations.get(SIGNATURE)) for place in places]
    if len(set(marks)) != len(marks):
        raise Refused("the same signature stands in its manifest twice")
    return places


def _signature(annotations: Mapping[str, str]) -> bytes:
    text = annotations.get(SIGNATURE, "")
    if not text or len(text) > _MAX_SIGNATURE:
        raise Refused("it has no signature" if not text else "its signature is too long")
    return decoded(text, "signature")


def decoded(text: object, part: str) -> bytes:
    """Strict base64; raises Refused."""
    try:
        if isinstance(text, str):
            return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise Refused(f"its {part} is not base64")
