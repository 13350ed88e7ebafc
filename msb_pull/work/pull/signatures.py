"""Before a layer is asked for: is the image signed as its rules require?

What was signed may be the manifest or any index that the name led through: cosign signs what a name stands for, which
is the index of an image for several platforms, and the index names the manifest by its digest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.config.table import to_path
from msb_pull.ground.errors import ContentError, LocalError, NotFoundError, SignatureError, UsageError
from msb_pull.image.manifest import OCI_CONFIG
from msb_pull.trust.evidence import ARTIFACTS, EMPTY, MAX_SIGNATURES, signatures_in
from msb_pull.trust.judge import Judge
from msb_pull.trust.proof import KeptSignature, Proof
from msb_pull.trust.rules import Wanted, requirements
from msb_pull.trust.statements import Refused
from msb_pull.work.signed import kept_proof

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike
    from pathlib import Path

    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor
    from msb_pull.image.reference import Reference
    from msb_pull.source.interface import Attached, ResolvedImage, Source
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store
    from msb_pull.trust.evidence import Evidence, Place
    from msb_pull.work.pull.plan import PullOptions

# Of many reasons a few say enough.
_SHOWN = 3


class Gate:
    """What the rules want of one image, and whether it has that."""

    def __init__(self, reference: Reference, wanted: Wanted, job: Job) -> None:
        """Raises SignatureError where a rule takes no such image, UsageError where its key cannot be read."""
        self._reference = reference
        self._job = job
        self.judges = [Judge(rule) for rule in requirements(reference, wanted)]

    def holds_for(self, image: StoredImage, store: Store) -> bool:
        """Whether what was kept of the signatures of a stored image still fulfils all rules; asks nobody."""
        if not self.judges:
            return True
        try:
            proof = kept_proof(store, image)
            if proof is None or image.digest is None:
                return False
            proof.check(self.judges, image.digest, self._reference)
        except Refused as error:
            self._job.log(str(self._reference), f"signature: {error}")
            return False
        return True

    def check(self, source: Source, resolved: ResolvedImage) -> Proof | None:
        """The signatures of an image that is about to be pulled, None where none are wanted; raises SignatureError."""
        return self._find(source, resolved.indexes, resolved.digest)

    def check_stored(self, source: Source, digest: Digest) -> Proof | None:
        """The signatures of a stored image itself, whatever its name stands for by now; raises SignatureError."""
        return self._find(source, (), digest)

    def keep(self, proof: Proof | None, store: Store, *, needed: bool) -> None:
        """Keeps what was checked beside the recorded image; where nothing can be written that is an error if needed."""
        if proof is None:
            return
        data = self._dumped(proof)
        try:
            with store.database(create=True) as database:
                database.keep_signature(str(self._reference), proof.digest, data)
        except LocalError as error:
            if needed:
                raise
            self._job.log(str(self._reference), f"the signature could not be kept: {error.message}")

    def refuse_unkept(self) -> SignatureError:
        """What to say where the registry must not be asked."""
        hint = "pull it without `--policy never`: the registry is asked for its signature alone"
        return self._refusal("nothing that was kept of its signature fulfils it", hint)

    def _find(self, source: Source, indexes: Sequence[tuple[Digest, bytes]], manifest: Digest) -> Proof | None:
        if not self.judges:
            return None
        attached = source.attached()
        if attached is None:
            raise self._refusal("an archive of this kind holds no signatures")
        search = _Search(attached)
        signed = [*(digest for digest, _ in indexes), manifest]
        kept = [self._judged(judge, search, signed) for judge in self.judges]
        proof = Proof(manifest, tuple(kept), tuple(data for _, data in indexes))
        self._dumped(proof)
        return proof

    def _dumped(self, proof: Proof) -> bytes:
        """What is to be kept; raises SignatureError where that is too much, best before anything is fetched."""
        try:
            return proof.dump()
        except Refused as error:
            raise self._refusal(str(error)) from None

    def _judged(self, judge: Judge, search: _Search, candidates: Sequence[Digest]) -> KeptSignature:
        for signed in candidates:
            for evidence in search.evidence(signed):
                try:
                    signer = judge.check(evidence, signed, self._reference)
                except Refused as error:
                    search.note(error)
                    continue
                self._job.log(str(self._reference), f"signed by {signer.name}, as {judge.rule} requires")
                return KeptSignature.of(evidence, signed, signer, str(judge.rule))
        raise self._refusal(search.summary(), judge=judge)

    def _refusal(self, cause: str, hint: str | None = None, judge: Judge | None = None) -> SignatureError:
        judge = judge or self.judges[0]
        return SignatureError(
            f"{self._reference}: not signed as required",
            cause=f"{judge.rule} asks for {judge.wants}: {cause}",
            hint=hint,
        )


def gate_for(reference: Reference, options: PullOptions, job: Job) -> Gate:
    """The gate of one image; raises what making one does."""
    keys = tuple(_key(path) for path in options.require_signature)
    return Gate(reference, Wanted(options.signatures or (), keys, options.no_signature_check), job)


def _key(given: str | PathLike[str]) -> Path:
    try:
        return to_path(given)
    except ValueError as error:
        raise UsageError(f"the key of a required signature: {error}") from None


class _Search:
    """The signatures that lie beside an image, each fetched once, and only when those before it did not do."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self._found: dict[tuple[Digest, bool], list[Evidence]] = {}
        self._reasons: dict[str, None] = {}
        self._left = MAX_SIGNATURES

    def evidence(self, signed: Digest) -> Iterator[Evidence]:
        """The signatures of this content: under its tag, then those that refer to it."""
        for refer, find in ((False, self._tagged), (True, self._referring)):
            if (signed, refer) not in self._found:
                self._found[signed, refer] = list(find(signed))
            yield from self._found[signed, refer]

    def note(self, why: Refused) -> None:
        """Remembers why a signature did not count."""
        self._reasons[str(why)] = None

    def summary(self) -> str:
        """Why none did."""
        shown = list(self._reasons)[:_SHOWN]
        more = len(self._reasons) - len(shown)
        return "; ".join(shown) + (f" and {more} more reasons" if more else "") or "there is no signature"

    def _tagged(self, signed: Digest) -> Iterator[Evidence]:
        # The registry's own words on a tag that is no tag would be of no help.
        if signed.algorithm != "sha256":
            return
        try:
            found = self._attached.tagged(f"sha256-{signed.hex}.sig")
        except ContentError as error:
            self.note(Refused(f"what is under its tag is damaged: {error.cause or error.message}"))
            return
        if found is not None:
            yield from self._read(*found, None)

    def _referring(self, signed: Digest) -> Iterator[Evidence]:
        try:
            listed = [entry for entry in self._attached.referrers(signed) if _may_sign(entry)]
        except ContentError as error:
            self.note(Refused(f"the list of what refers to it is damaged: {error.cause or error.message}"))
            return
        for entry in listed[:MAX_SIGNATURES]:
            try:
                data, kind = self._attached.manifest(entry)
            except (ContentError, NotFoundError) as error:
                self.note(Refused(f"a manifest that refers to it cannot be read: {error.cause or error.message}"))
                continue
            yield from self._read(data, kind, signed)

    def _read(self, data: bytes, content_type: str | None, subject: Digest | None) -> Iterator[Evidence]:
        try:
            places = signatures_in(data, content_type, subject)
        except Refused as error:
            self.note(error)
            return
        for place in places:
            if self._left <= 0:
                self.note(Refused(f"there are more than {MAX_SIGNATURES} signatures"))
                return
            self._left -= 1
            try:
                yield place.evidence(self._document(place))
            except Refused as error:
                self.note(error)

    def _document(self, place: Place) -> bytes:
        if place.descriptor.size > place.limit:
            raise Refused(f"it has more than {place.limit} bytes")
        try:
            # Whoever may push a signature could otherwise have any address asked before it is known to be one.
            return self._attached.blob(replace(place.descriptor, urls=()))
        except (ContentError, NotFoundError) as error:
            raise Refused(f"its document cannot be read: {error.cause or error.message}") from None


def _may_sign(entry: Descriptor) -> bool:
    """Whether an entry of a list of referrers may be a signature.

    The list need not say what its entries are, and some registries take the type of a manifest's config for its own.
    """
    return entry.artifact_type in (None, *ARTIFACTS, EMPTY, OCI_CONFIG)
