"""What a signature says once it is known to be genuine: of which content, and under which name.

Two forms: the payload of simple signing that cosign has always signed (cosign, specs/SIGNATURE_SPEC.md; containers-
signature.5 for its fields), and the in-toto statement inside a Sigstore bundle that cosign 3 signs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import ContentError, UsageError
from msb_pull.ground.text import clipped
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.documents import load_json
from msb_pull.image.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Mapping

COSIGN_TYPE = "cosign container image signature"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
IN_TOTO = "application/vnd.in-toto+json"
# Both are a few hundred bytes; what a signer may add is free, within reason.
MAX_STATEMENT = 256 * 1024


class Refused(Exception):
    """Why a signature does not count: a few words, with text of others already shortened."""


def check_payload(data: bytes, signed: Digest, reference: Reference) -> None:
    """Checks a payload of simple signing; raises Refused unless it is about this content under this name."""
    document = _object(data, "payload")
    _only(document, {"critical", "optional"}, "its payload")
    critical = _part(document, "critical")
    _only(critical, {"identity", "image", "type"}, "its payload, critical")
    image, identity = _part(critical, "image"), _part(critical, "identity")
    _only(image, {"docker-manifest-digest"}, "its payload, critical.image")
    _only(identity, {"docker-reference"}, "its payload, critical.identity")
    if not isinstance(document.get("optional"), dict | None):
        raise Refused("its payload, optional is not an object")
    if critical.get("type") != COSIGN_TYPE:
        raise Refused(f"it is of type {_shown(critical.get('type'))}")
    if _digest(image.get("docker-manifest-digest")) != signed:
        raise Refused(f"it is of other content, {_shown(image.get('docker-manifest-digest'))}")
    check_name(identity.get("docker-reference"), signed, reference)


def check_statement(data: bytes, signed: Digest, reference: Reference) -> None:
    """Checks the in-toto statement of a signature; raises Refused. Attestations of other things are no signatures."""
    document = _object(data, "statement")
    if document.get("_type") != STATEMENT_TYPE:
        raise Refused(f"it is a statement of type {_shown(document.get('_type'))}")
    if document.get("predicateType") != SIGN_PREDICATE:
        raise Refused(f"it is an attestation ({_shown(document.get('predicateType'))}), not a signature")
    if not isinstance(document.get("predicate"), dict | None):
        raise Refused("the predicate of its statement is not an object")
    subjects = document.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise Refused("its statement is not about exactly one subject")
    digests = subjects[0].get("digest")
    if not isinstance(digests, dict) or digests != {signed.algorithm: signed.hex}:
        raise Refused(f"it is of other content, {_shown(digests)}")
    if subjects[0].get("name"):
        check_name(subjects[0]["name"], signed, reference)


def check_name(value: Any, signed: Digest, reference: Reference) -> None:
    """Compares the name that a signer gave with the one that was asked for; raises Refused.

    The repository must be the same. A tag must be the one asked for, unless a digest was (containers-policy.json,
    ``matchRepoDigestOrExact``): a signature of 1.0 must not pass for 2.0. A digest must be the signed one.
    """
    if not isinstance(value, str) or not value:
        raise Refused("it names no repository")
    # cosign writes names with their registry, and Docker Hub as index.docker.io, or bare as people do.
    name, at, _ = value.partition("@")
    try:
        named = Reference.parse(value)
    except UsageError:
        raise Refused(f"it is for {_shown(value)}, which is no name of an image") from None
    mine = reference.registry.lower(), reference.repository
    if (named.registry.lower(), named.repository) != mine:
        raise Refused(f"it is for another repository, {_shown(value)}")
    if at and named.digest != signed:
        raise Refused(f"it is for another digest, {_shown(value)}")
    tagged = ":" in name.rpartition("/")[2]
    if tagged and reference.digest is None and named.tag != reference.tag:
        raise Refused(f"it is for another tag, {_shown(value)}")


def _object(data: bytes, part: str) -> Mapping[str, Any]:
    if len(data) > MAX_STATEMENT:
        raise Refused(f"its {part} is larger than {MAX_STATEMENT} bytes")
    try:
        return load_json(data, "it", part)
    except ContentError as error:
        raise Refused(f"its {part} is damaged: {_shown(error.cause or error.message)}") from None


def _part(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise Refused(f"its payload has no {key}")
    return value


def _only(document: Mapping[str, Any], known: set[str], where: str) -> None:
    # containers-signature.5: consumers must reject signatures with what they do not know in critical.
    if unknown := sorted(document.keys() - known):
        raise Refused(f"{where} holds {_shown(unknown[0])}, which is unknown")


def _digest(value: Any) -> Digest | None:
    try:
        return Digest.parse(value) if isinstance(value, str) else None
    except InvalidDigest:
        return None


def _shown(value: Any) -> str:
    return clipped(value if isinstance(value, str) else str(value), 100) or "nothing"
