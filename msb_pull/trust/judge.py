"""One rule with its keys or its authority at hand, and what it makes of a signature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.trust.keys import read_key
from msb_pull.trust.statements import Refused, check_payload, check_statement

if TYPE_CHECKING:
    from msb_pull.config.signatures import SignatureRule
    from msb_pull.image.digest import Digest
    from msb_pull.image.reference import Reference
    from msb_pull.trust.evidence import Evidence
    from msb_pull.trust.keys import PublicKey


@dataclass(frozen=True, slots=True)
class Signer:
    """Who has signed: ``name`` for people; ``pem`` is the key, "" for a certificate."""

    name: str
    pem: str = ""


class Judge:
    """Tells genuine signatures from others, by one rule; making one raises UsageError where its files are no use.

    ``keys`` are taken in place of those in the rule's files.
    """

    def __init__(self, rule: SignatureRule, keys: tuple[PublicKey, ...] | None = None) -> None:
        self.rule = rule
        self._keys = tuple(read_key(path) for path in rule.keys) if keys is None else keys
        self._authority = None
        if rule.issuer:
            from msb_pull.trust.bundle import Authority

            self._authority = Authority(rule)

    @property
    def wants(self) -> str:
        """Whose signature it asks for, for people."""
        if self._authority is not None:
            return f"one of {self.rule.identity} by {self.rule.issuer}"
        return f"one made with {' or '.join(key.shown for key in self._keys)}"

    def check(self, evidence: Evidence, signed: Digest, reference: Reference) -> Signer:
        """Who has signed this content under this name; raises Refused for anything that is not entirely right.

        Whether it is genuine is found out first, and nothing else of it is believed before.
        """
        if evidence.signature is None:
            return self._check_bundle(evidence.document, signed, reference)
        if self._authority is not None:
            identity = self._authority.signer(evidence)
            check_payload(evidence.document, signed, reference)
            return Signer(f"{identity} ({self.rule.issuer})")
        for key in self._keys:
            if key.verifies(evidence.document, evidence.signature):
                check_payload(evidence.document, signed, reference)
                return Signer(key.shown, key.pem)
        raise Refused("it was not made with a key of the rule")

    def _check_bundle(self, document: bytes, signed: Digest, reference: Reference) -> Signer:
        from msb_pull.trust.bundle import signed_with

        if self._authority is not None:
            statement, identity = self._authority.statement(document)
            check_statement(statement, signed, reference)
            return Signer(f"{identity} ({self.rule.issuer})")
        statement, key = signed_with(self._keys, document)
        check_statement(statement, signed, reference)
        return Signer(key.shown, key.pem)
