"""What the store keeps of the signatures of its images; nothing here uses a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.config.signatures import SignatureRule
from msb_pull.ground.errors import MsbPullError, SignatureError, UsageError
from msb_pull.image.reference import Reference
from msb_pull.trust.judge import Judge
from msb_pull.trust.keys import parse_key
from msb_pull.trust.proof import MAX_PROOF, Proof
from msb_pull.trust.rules import Wanted, requirements
from msb_pull.trust.statements import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store

_AGAIN = "`msb-pull pull` asks the registry for the signature again"


def kept_proof(store: Store, image: StoredImage) -> Proof | None:
    """What was kept of the signatures of an image as it is now, unchecked; raises Refused for what is damaged."""
    data = store.kept_signature(image.reference, MAX_PROOF)
    proof = Proof.load(data) if data is not None else None
    # A name that has come to mean other content since then leaves the signatures of the old one.
    return proof if proof is not None and proof.digest == image.digest else None


def unsigned_images(
    store: Store, images: Iterable[StoredImage], rules: Sequence[SignatureRule]
) -> list[tuple[str, MsbPullError]]:
    """The images that are not signed as the rules require, or of which what was kept of that is damaged, and why.

    With nothing but what the store keeps. Where the files of a rule cannot be used, a UsageError says so.
    """
    found: list[tuple[str, MsbPullError]] = []
    for image in images:
        reference = Reference.parse(image.reference)
        try:
            _check(store, image, reference, rules)
        except (SignatureError, UsageError) as error:
            found.append((image.reference, error))
    return found


def _check(store: Store, image: StoredImage, reference: Reference, rules: Sequence[SignatureRule]) -> None:
    judges = [Judge(rule) for rule in requirements(reference, Wanted(tuple(rules)))]
    cause = str(judges[0].rule) if judges else "what was kept of its signature"
    try:
        proof = kept_proof(store, image)
        if proof is not None and image.digest is not None:
            proof.check(judges or _own_judges(proof), image.digest, reference)
        elif judges:
            raise Refused("no signature was kept")
    except Refused as error:
        message = (
            f"{image.reference}: not signed as required" if judges else f"{image.reference}: its signature is lost"
        )
        raise SignatureError(message, cause=f"{cause}: {error}", hint=_AGAIN) from None


def _own_judges(proof: Proof) -> list[Judge]:
    """Where no rule asks any more: whether the kept signatures are still those of the keys that were kept with them."""
    judges = []
    for kept in proof.signatures:
        if kept.pem:
            key = parse_key(kept.pem.encode(), kept.signer)
            judges.append(Judge(SignatureRule(images="*", accept=True, place=kept.rule), (key,)))
    return judges
