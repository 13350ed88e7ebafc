"""What was checked of an image, kept so that it can be checked again without a network."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import ContentError
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.documents import Fields, load_json
from msb_pull.image.manifest import Index, parse_document
from msb_pull.trust.evidence import MAX_SIGNATURES, Evidence, decoded
from msb_pull.trust.statements import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.image.reference import Reference
    from msb_pull.trust.judge import Judge, Signer

_VERSION = 1
# What is kept of one image at most; real ones are a few kilobytes, and an index with everything is below 100.
MAX_PROOF = 4 << 20


@dataclass(frozen=True, slots=True)
class KeptSignature:
    """One signature, of whom it is, which rule it has fulfilled, and what it signs: the image or an index above."""

    evidence: Evidence
    signed: Digest
    signer: str
    rule: str
    pem: str = ""

    @classmethod
    def of(cls, evidence: Evidence, signed: Digest, signer: Signer, rule: str) -> KeptSignature:
        """What is kept of a signature that was checked."""
        return cls(evidence, signed, signer.name, rule, signer.pem)


@dataclass(frozen=True, slots=True)
class Proof:
    """The signatures of one image; ``indexes`` are the documents that lead from what was signed to its manifest."""

    digest: Digest
    signatures: tuple[KeptSignature, ...]
    indexes: tuple[bytes, ...] = ()
    checked_at: datetime | None = None

    def dump(self) -> bytes:
        """As a document; raises Refused where it is too large to be kept."""
        document = {
            "version": _VERSION,
            "digest": str(self.digest),
            "checked_at": (self.checked_at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "indexes": [_text(index) for index in self.indexes],
            "signatures": [
                {
                    "signed": str(kept.signed),
                    "document": _text(kept.evidence.document),
                    "signature": None if kept.evidence.signature is None else _text(kept.evidence.signature),
                    "certificate": kept.evidence.certificate,
                    "log": kept.evidence.log,
                    "signer": kept.signer,
                    "rule": kept.rule,
                    "key": kept.pem,
                }
                for kept in self.signatures
            ],
        }
        data = json.dumps(document).encode("ascii")
        if len(data) > MAX_PROOF:
            raise Refused(f"what proves it is larger than {MAX_PROOF} bytes")
        return data

    @classmethod
    def load(cls, data: bytes) -> Proof:
        """Reads what :meth:`dump` wrote; raises Refused for what is damaged. Nothing is checked by that."""
        try:
            fields = Fields(load_json(data, "it", "kept signature"), "it", "its kept signature")
            if fields.get("version") != _VERSION:
                fields.refuse("is of another version")
            kept = tuple(_kept(entry) for entry in fields.objects("signatures")[:MAX_SIGNATURES])
            indexes = tuple(decoded(text, "index") for text in fields.texts("indexes"))
            when = datetime.fromisoformat(fields.text("checked_at"))
            return cls(fields.digest("digest"), kept, indexes, when)
        except (ContentError, InvalidDigest, ValueError) as error:
            raise Refused(f"what was kept of its signature is damaged: {error}") from None

    def check(self, judges: Sequence[Judge], digest: Digest, reference: Reference) -> None:
        """Checks again that each judge has the signature it asks for; raises Refused. Needs no network."""
        if self.digest != digest:
            raise Refused("what was kept of its signature is about other content")
        above = self._leading_to(digest)
        for judge in judges:
            self._satisfies(judge, above, reference)

    def _satisfies(self, judge: Judge, above: set[Digest], reference: Reference) -> None:
        trouble = Refused("no signature was kept")
        for kept in self.signatures:
            if kept.signed not in above:
                trouble = Refused("what was signed does not lead to the image")
                continue
            try:
                judge.check(kept.evidence, kept.signed, reference)
            except Refused as error:
                trouble = error
                continue
            return
        raise trouble

    def _leading_to(self, digest: Digest) -> set[Digest]:
        """The manifest, and every index of those kept from which it is reached."""
        found = {digest}
        try:
            parsed = [(index, parse_document(index, None, "it")) for index in self.indexes]
        except ContentError as error:
            raise Refused(f"an index that was kept is damaged: {error}") from None
        # Nearest first, so that each is reached from the one before.
        for data, index in reversed(parsed):
            listed = {entry.digest for entry in index.manifests} if isinstance(index, Index) else set()
            if listed & found:
                found |= {Digest.of(data, name) for name in ("sha256", "sha512")}
        return found


def leading(indexes: Sequence[tuple[Digest, bytes]], manifest: Digest) -> list[Digest]:
    """What may have been signed: the manifest, and the indexes that the name led through, the one it names first."""
    return [*(digest for digest, _ in indexes), manifest]


def _kept(entry: Fields) -> KeptSignature:
    signature: Any = entry.get("signature")
    evidence = Evidence(
        decoded(entry.get("document"), "document"),
        None if signature is None else decoded(signature, "signature"),
        entry.text("certificate"),
        entry.text("log"),
    )
    return KeptSignature(evidence, entry.digest("signed"), entry.text("signer"), entry.text("rule"), entry.text("key"))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
