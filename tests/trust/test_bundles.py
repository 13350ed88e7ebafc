"""Keyless signatures: bundles that npm's own packages made (tests/support/make_bundles.mjs), and what is like them."""

from __future__ import annotations

import base64
import copy
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msb_pull import (
    ExitCode,
    Platform,
    PullOptions,
    RegistryOptions,
    SignatureError,
    SignatureRule,
    Store,
    UsageError,
    pull_image,
)
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import Descriptor
from msb_pull.image.reference import Reference
from msb_pull.trust.evidence import Evidence, Place
from msb_pull.trust.statements import Refused
from tests.support.fault_registry import FaultRegistry
from tests.support.sample import SAMPLE
from tests.support.signing import ANNOTATION, SIMPLE, Layer, Signer, attach, bundle, refer
from tests.support.tools import REQUIRE_TOOLS

if importlib.util.find_spec("sigstore") is None:
    if REQUIRE_TOOLS and sys.version_info < (3, 15):
        raise ImportError("not installed: sigstore")
    pytest.skip("not installed: sigstore", allow_module_level=True)

BUNDLES = Path(__file__).parent / "bundles"
ISSUER = "https://token.actions.githubusercontent.com"
IDENTITY = "https://github.com/acme/*/.github/workflows/release.yml@refs/tags/*"
DIGEST = Digest.parse("sha256:4543e47e7e5a48c78f04a48206f408d0f2335d9bdabb1ea0b6a10afa4cf529d9")
NAME = Reference.parse("registry.example.com/acme/app:1")
# What the rest of a bundle is checked against, and what nobody reads.
UNREAD = {
    "verificationMaterial.timestampVerificationData": "there is none",
    "verificationMaterial.tlogEntries.0.inclusionProof.logIndex": "0 in a log of one entry",
    "verificationMaterial.tlogEntries.0.inclusionProof.checkpoint.envelope": "the log's name beside its signature",
}


def rule(**fields: Any) -> SignatureRule:
    given = {"issuer": ISSUER, "identity": IDENTITY, "trust_root": BUNDLES / "trusted_root.json"}
    return SignatureRule(images="*", **given | fields)


@pytest.fixture(scope="module")
def judge():
    from msb_pull.trust.judge import Judge

    return Judge(rule())


def read(name: str) -> dict[str, Any]:
    return json.loads((BUNDLES / name).read_bytes())


def check(judge, document: Any) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return judge.check(Evidence(data), DIGEST, NAME).name


def test_genuine(judge):
    for name in ("good.json", "again.json"):
        assert check(judge, read(name)) == f"{IDENTITY.replace('*', 'app', 1).replace('*', 'v1')} ({ISSUER})"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("foreign.json", "certificate chain"),
        ("expired.json", "certificate"),
        ("other-digest.json", "of other content"),
        ("other-workflow.json", "certificate is for"),
        ("other-owner.json", "certificate is for"),
        ("other-issuer.json", "not issued for"),
        ("provenance.json", "an attestation"),
        ("other-type.json", "no in-toto statement"),
        ("file.json", "of type"),
    ],
)
def test_genuine_ones_of_other_things(judge, name, why):
    with pytest.raises(Refused, match=why):
        check(judge, read(name))


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield (*path, key)
            yield from leaves(value, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def changed(value: Any) -> Iterator[Any]:
    """Other values of the same kind, and of others."""
    yield None
    if isinstance(value, str):
        yield from ("", value[:-4], value + value, "%" + value[1:])
        middle = len(value) // 2
        yield value[:middle] + ("A" if value[middle] != "A" else "B") + value[middle + 1 :]
        if value.isdigit():
            yield from (str(int(value) + 1), "-1", "9" * 30)
    elif isinstance(value, list):
        yield from ([], value * 2, {})
    else:
        yield from ({}, [], [value])


@pytest.mark.parametrize("path", list(leaves(read("good.json"))), ids=lambda path: ".".join(map(str, path)))
def test_every_part_of_it_matters(judge, path):
    good = read("good.json")
    wrong = []
    for value in (*changed(at(good, path)), "left out"):
        document = copy.deepcopy(good)
        parent = at(document, path[:-1])
        if value == "left out":
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        if document == good:
            continue
        try:
            check(judge, document)
        except Refused:
            continue
        wrong.append(value)
    # The package stops reading base64 where it ends.
    doubled = 2 * at(good, path) if str(at(good, path)).endswith("=") else None
    assert [x for x in wrong if x != doubled] == [] or ".".join(map(str, path)) in UNREAD, wrong


PARTS = ["verificationMaterial", "dsseEnvelope"]
INNER = ["certificate", "tlogEntries"]


@pytest.mark.parametrize("other", ["again.json", "foreign.json", "other-digest.json", "other-workflow.json"])
@pytest.mark.parametrize("part", [*PARTS, *INNER])
def test_parts_of_two_genuine_ones_make_none(judge, other, part):
    good, second = read("good.json"), read(other)
    if part in PARTS:
        good[part] = second[part]
    else:
        good["verificationMaterial"][part] = second["verificationMaterial"][part]
    with pytest.raises(Refused):
        check(judge, good)


def test_what_is_no_bundle_with_a_certificate(judge):
    key = Signer.make("p256")
    for data in (b"", b"{}", b"[]", b"null", bundle(key, str(DIGEST)), (BUNDLES / "good.json").read_bytes()[:-40]):
        with pytest.raises(Refused):
            check(judge, data)
    doubled = (BUNDLES / "good.json").read_bytes().replace(b'"dsseEnvelope"', b'"dsseEnvelope": {}, "dsseEnvelope"')
    with pytest.raises(Refused, match="twice"):
        check(judge, doubled)


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"identity": "*"}, True),
        ({"identity": "https://github.com/acme/app/.github/workflows/release.yml@refs/tags/v1"}, True),
        ({"identity": "https://github.com/acme/app"}, False),
        ({"identity": "HTTPS://github.com/*"}, False),
        ({"issuer": ISSUER + "/"}, False),
        ({"issuer": "https://*"}, False),
        ({"trust_root": BUNDLES / "foreign_root.json"}, False),
    ],
)
def test_who_may_sign(fields, fits):
    from msb_pull.trust.judge import Judge

    try:
        check(Judge(rule(**fields)), read("good.json"))
    except Refused:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"mediaType": "x"}', "\x00", "missing", "too large"])
def test_trust_roots_that_are_none(tmp_path, text):
    from msb_pull.trust.judge import Judge

    path = tmp_path / "root.json"
    if text != "missing":
        path.write_text(text if text != "too large" else " " * (2 << 20))
    with pytest.raises(UsageError, match="trust root"):
        Judge(rule(trust_root=path))


def test_what_is_missing_is_named(monkeypatch):
    from msb_pull.trust.judge import Judge

    monkeypatch.setitem(sys.modules, "sigstore.verify", None)
    with pytest.raises(UsageError) as wrong:
        Judge(rule())
    assert wrong.value.hint == "pip install 'msb-pull[sigstore]'"


@pytest.fixture
def registry():
    """One that has the sample, whose digest was signed."""
    with FaultRegistry() as registry:
        for path in (SAMPLE / "blobs" / "sha256").iterdir():
            registry.add_blob(path.read_bytes())
        registry.add_manifest("acme/app", "1", registry.blobs[str(DIGEST)])
        yield registry


def pull(registry: FaultRegistry, store: Store, **options: Any):
    wishes = PullOptions(platform=Platform.parse("linux/amd64"), signatures=(rule(),), **options)
    return pull_image(f"{registry.host}/acme/app:1", store, wishes)


@pytest.mark.parametrize("api", [True, False])
def test_a_pull_with_a_bundle(registry, tmp_path, api):
    store = Store.open(tmp_path / "home")
    documents = [(BUNDLES / name).read_bytes() for name in ("provenance.json", "good.json")]
    refer(registry, "acme/app", str(DIGEST), *documents, api=api)
    assert pull(registry, store).changed
    asked = len(registry.requests)
    assert not pull(registry, store).changed
    assert len(registry.requests) == asked


@pytest.mark.parametrize("name", ["provenance.json", "foreign.json", "other-owner.json", "expired.json", "file.json"])
def test_a_pull_without_one(registry, tmp_path, name):
    store = Store.open(tmp_path / "home")
    refer(registry, "acme/app", str(DIGEST), (BUNDLES / name).read_bytes())
    with pytest.raises(SignatureError) as refused:
        pull(registry, store)
    assert refused.value.exit_code == ExitCode.UNSIGNED
    assert f"asks for one of {IDENTITY} by {ISSUER}" in (refused.value.cause or "")
    layers = [x["digest"] for x in json.loads(registry.blobs[str(DIGEST)])["layers"]]
    assert layers and all(registry.count(digest) == 0 for digest in layers)
    assert store.images() == []


# The older form, with certificate and log entry in annotations.

SIGNATURE, CERTIFICATE, LOG = ANNOTATION, "dev.sigstore.cosign/certificate", "dev.sigstore.cosign/bundle"


def check_annotated(judge, found: dict[str, Any]) -> str:
    layer = Layer(found["document"].encode(), found["annotations"])
    descriptor = Descriptor(SIMPLE, Digest.of(layer.document), len(layer.document), annotations=layer.annotations)
    return judge.check(Place(descriptor).evidence(layer.document), DIGEST, NAME).name


def test_annotated(judge):
    for name in ("annotated.json", "annotated-again.json"):
        assert ISSUER in check_annotated(judge, read(name))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("annotated-foreign.json", "certificate chain"),
        ("annotated-expired.json", "not valid at validation time"),
        ("annotated-other-digest.json", "of other content"),
        ("annotated-other-owner.json", "certificate is for"),
    ],
)
def test_annotated_ones_of_other_things(judge, name, why):
    with pytest.raises(Refused, match=why):
        check_annotated(judge, read(name))


def unpacked() -> dict[str, Any]:
    """The log entry of an annotated signature, with its body as an object."""
    log = json.loads(read("annotated.json")["annotations"][LOG])
    log["Payload"]["body"] = json.loads(base64.b64decode(log["Payload"]["body"]))
    return log


def packed(log: dict[str, Any]) -> str:
    payload = log.get("Payload")
    if isinstance(body := payload.get("body") if isinstance(payload, dict) else None, dict):
        text = base64.b64encode(json.dumps(body, separators=(",", ":"), sort_keys=True).encode()).decode()
        log = log | {"Payload": payload | {"body": text}}
    return json.dumps(log)


@pytest.mark.parametrize("path", list(leaves(unpacked())), ids=lambda path: ".".join(map(str, path)))
def test_every_part_of_the_log_entry_matters(judge, path):
    good = read("annotated.json")
    wrong = []
    for value in (*changed(at(unpacked(), path)), "left out"):
        log = unpacked()
        parent = at(log, path[:-1])
        parent[path[-1]] = value
        if value == "left out":
            del parent[path[-1]]
        try:
            check_annotated(judge, good | {"annotations": good["annotations"] | {LOG: packed(log)}})
        except Refused:
            continue
        wrong.append(value)
    assert wrong == []


@pytest.mark.parametrize("other", ["annotated-again.json", "annotated-foreign.json", "annotated-other-owner.json"])
@pytest.mark.parametrize("part", [SIGNATURE, CERTIFICATE, LOG])
def test_parts_of_two_annotated_ones_make_none(judge, other, part):
    good, second = read("annotated.json"), read(other)
    good["annotations"][part] = second["annotations"][part]
    with pytest.raises(Refused):
        check_annotated(judge, good)


@pytest.mark.parametrize("part", [SIGNATURE, CERTIFICATE, LOG])
@pytest.mark.parametrize("value", ["", "x", "{}", "null", "A" * 100_000])
def test_annotations_that_are_none(judge, part, value):
    good = read("annotated.json")
    good["annotations"][part] = value
    with pytest.raises(Refused):
        check_annotated(judge, good)


def test_two_certificates_are_none(judge):
    good = read("annotated.json")
    good["annotations"][CERTIFICATE] *= 2
    with pytest.raises(Refused, match="exactly one certificate"):
        check_annotated(judge, good)


def test_a_document_that_was_changed(judge):
    good = read("annotated.json")
    with pytest.raises(Refused, match="not made with the key"):
        check_annotated(judge, good | {"document": good["document"] + " "})


def test_of_another_repository(judge):
    good = read("annotated.json")
    layer = Layer(good["document"].encode(), good["annotations"])
    descriptor = Descriptor(SIMPLE, Digest.of(layer.document), 1, annotations=layer.annotations)
    with pytest.raises(Refused, match="another repository"):
        judge.check(
            Place(descriptor).evidence(layer.document), DIGEST, Reference.parse("registry.example.com/evil/app")
        )


def test_insides_that_are_not_known_are_not_used(judge, monkeypatch):
    import sigstore

    monkeypatch.setattr(sigstore, "__version__", "4.6.0")
    with pytest.raises(Refused, match=r"needs sigstore 4\.5\.x"):
        check_annotated(judge, read("annotated.json"))


def test_a_pull_with_an_annotated_one(registry, tmp_path):
    store, found = Store.open(tmp_path / "home"), read("annotated.json")
    attach(registry, "acme/app", str(DIGEST), [Layer(found["document"].encode(), found["annotations"])])
    with pytest.raises(SignatureError) as refused:
        pull(registry, store)
    assert "another repository" in (refused.value.cause or "")
    # Under the name that it was signed for, with the test's registry as the mirror of that one.
    options = RegistryOptions(mirrors={"registry.example.com": (registry.url,)}, retries=0)
    wishes = PullOptions(platform=Platform.parse("linux/amd64"), signatures=(rule(),))
    assert pull_image(str(NAME), store, wishes, registries=options).changed
    registry.forget()
    assert not pull_image(str(NAME), store, wishes, registries=options).changed
    assert registry.requests == []


def test_the_trust_root_of_now_decides(registry, tmp_path):
    """A kept bundle is checked again: what the rule no longer believes in does not count, and nothing is fetched."""
    store, root = Store.open(tmp_path / "home"), tmp_path / "root.json"
    shutil.copy(BUNDLES / "trusted_root.json", root)
    refer(registry, "acme/app", str(DIGEST), (BUNDLES / "good.json").read_bytes())
    wishes = PullOptions(platform=Platform.parse("linux/amd64"), signatures=(rule(trust_root=root),))
    assert pull_image(f"{registry.host}/acme/app:1", store, wishes).changed
    shutil.copy(BUNDLES / "foreign_root.json", root)
    registry.forget()
    with pytest.raises(SignatureError):
        pull_image(f"{registry.host}/acme/app:1", store, wishes)
    shutil.copy(BUNDLES / "trusted_root.json", root)
    assert not pull_image(f"{registry.host}/acme/app:1", store, wishes).changed
