"""Signatures that are tampered with, swapped, replayed, truncated, of the wrong type or of others: none counts.

Each is put where a genuine one would lie. The pull ends with code 8, the store stays as it was, and the registry has
sent no byte of a layer. The same places with genuine signatures are at the end: there the image is pulled.
"""

from __future__ import annotations

import base64
import hmac
import json

import pytest

from msb_pull import (
    ExitCode,
    NetworkError,
    Platform,
    PullOptions,
    RegistryOptions,
    SignatureError,
    Store,
    pull_image,
)
from tests.support.fault_registry import OCI_INDEX, OCI_MANIFEST, Fault, FaultRegistry, digest_of
from tests.support.home import sample
from tests.support.signing import (
    ANNOTATION,
    BUNDLE,
    PREDICATE,
    Layer,
    Signer,
    attach,
    bundle,
    list_referrers,
    manifest_of,
    payload,
    refer,
    referring,
    sign,
    signed_bytes,
    statement,
    tag_of,
)

REPOSITORY = "acme/app"
OTHER = "sha256:" + "5" * 64
LINUX = Platform.parse("linux/amd64")


class Case:
    """A registry with the sample image, keys, and what a test puts beside the image."""

    def __init__(self, registry: FaultRegistry, key: Signer, stranger: Signer) -> None:
        self.registry = registry
        self.key = key
        self.stranger = stranger
        self.name, self.image = sample(registry)
        self.digest = self.image.manifest_digest
        self.here = f"{registry.host}/{REPOSITORY}"

    def good(self) -> Layer:
        return Layer.of(self.key, payload(self.here, self.digest))

    def put(self, *layers: Layer) -> None:
        attach(self.registry, REPOSITORY, self.digest, layers)

    def say(self, document: bytes) -> None:
        """A payload of any kind, genuinely signed."""
        self.put(Layer.of(self.key, document))

    def change(self, **critical) -> None:
        self.say(payload(self.here, self.digest, **critical))

    def annotate(self, value, key: str = ANNOTATION) -> None:
        self.put(Layer(self.good().document, {key: value}))

    def manifest(self, **fields) -> None:
        """A good signature in a manifest that is changed."""
        document = manifest_of(self.registry, [self.good()]) | fields
        self.registry.add_manifest(REPOSITORY, tag_of(self.digest), document)

    def bundle(self, **fields) -> None:
        refer(self.registry, REPOSITORY, self.digest, bundle(self.key, self.digest, **fields))

    def envelope(self, change) -> None:
        document = json.loads(bundle(self.key, self.digest))
        change(document["dsseEnvelope"])
        refer(self.registry, REPOSITORY, self.digest, json.dumps(document).encode())

    def state(self, **fields) -> None:
        self.bundle(document=statement(self.digest, **fields))

    def signature(self) -> bytes:
        return base64.b64decode(self.good().annotations[ANNOTATION])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def twice(data: bytes, key: str) -> bytes:
    """JSON in which a key stands twice, the second time with the value of the first."""
    text = data.decode()
    return text.replace(f'"{key}":', f'"{key}":"x","{key}":', 1).encode()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def swap(case: Case) -> None:
    """Two genuine signatures of two images, each under the other's tag."""
    other = case.registry.add_image(REPOSITORY, "2", [b"not a layer"], diff_ids=[OTHER])
    attach(case.registry, REPOSITORY, case.digest, [Layer.of(case.key, payload(case.here, other.manifest_digest))])


def reserialized(case: Case) -> None:
    good = case.good()
    case.put(Layer(json.dumps(json.loads(good.document), indent=1).encode(), good.annotations))


def missing_blob(case: Case) -> None:
    case.put(good := case.good())
    del case.registry.blobs[digest_of(good.document)]


def other_blob(case: Case) -> None:
    """The registry sends another payload than the manifest names."""
    good = case.good()
    case.put(good)
    case.registry.blobs[digest_of(good.document)] = payload(case.here, case.digest, type="x" * 10)


def elsewhere(case: Case) -> None:
    """A bundle whose manifest refers to another image."""
    subject = {"mediaType": OCI_MANIFEST, "digest": OTHER, "size": 1}
    refer(case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest), subject=subject)


def without_subject(case: Case) -> None:
    refer(case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest), subject=None)


def wrong_entry(case: Case) -> None:
    """The list of referrers names another size than the manifest has."""
    entry = referring(case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest))
    list_referrers(case.registry, REPOSITORY, case.digest, [entry | {"size": entry["size"] + 1}])


def nested_list(case: Case) -> None:
    """What refers to the image is an index that holds the manifest."""
    entry = referring(case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest))
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    made = case.registry.add_manifest(REPOSITORY, None, index, OCI_INDEX)
    outer = {"mediaType": OCI_INDEX, "digest": made, "size": len(index), "artifactType": BUNDLE}
    list_referrers(case.registry, REPOSITORY, case.digest, [outer])


def flood(case: Case) -> None:
    """More strangers' signatures than are looked at, and a genuine one behind them."""
    strangers = [Layer.of(case.stranger, payload(case.here, case.digest, type=str(x))) for x in range(70)]
    case.put(*strangers, case.good())


def answered(case: Case, fault: Fault) -> None:
    case.put(case.good())
    case.registry.always(tag_of(case.digest), fault)


TAGGED = {
    "a stranger's": lambda case: case.put(Layer.of(case.stranger, payload(case.here, case.digest))),
    "strangers' only": lambda case: sign(case.registry, REPOSITORY, case.digest, case.stranger, Signer.make("rsa")),
    "of another digest": lambda case: case.change(image={"docker-manifest-digest": OTHER}),
    "of the config": lambda case: case.change(image={"docker-manifest-digest": case.image.config_digest}),
    "of a layer": lambda case: case.change(image={"docker-manifest-digest": case.image.layer_digests[0]}),
    "of the digest in capitals": lambda case: case.change(image={"docker-manifest-digest": case.digest.upper()}),
    "of a digest without its algorithm": lambda case: case.change(image={"docker-manifest-digest": case.digest[7:]}),
    "of a part of the digest": lambda case: case.change(image={"docker-manifest-digest": case.digest[:-1]}),
    "of a digest with more behind it": lambda case: case.change(image={"docker-manifest-digest": case.digest + "0"}),
    "of a list of digests": lambda case: case.change(image={"docker-manifest-digest": [case.digest]}),
    "of nothing": lambda case: case.change(image={}),
    "of null": lambda case: case.change(image=None),
    "with the digest under another key": lambda case: case.change(image={"Docker-manifest-digest": case.digest}),
    "with two digests": lambda case: case.change(image={"docker-manifest-digest": case.digest, "digest": OTHER}),
    "swapped with another image's": swap,
    "replayed from another repository": lambda case: case.say(payload(f"{case.registry.host}/acme/other", case.digest)),
    "replayed from a repository above": lambda case: case.say(payload(f"{case.registry.host}/acme", case.digest)),
    "replayed from a repository below": lambda case: case.say(payload(f"{case.here}/sub", case.digest)),
    "replayed from another registry": lambda case: case.say(payload("ghcr.io/acme/app", case.digest)),
    "replayed from another port": lambda case: case.say(payload("127.0.0.1:1/acme/app", case.digest)),
    "replayed from Docker Hub": lambda case: case.say(payload("acme/app", case.digest)),
    "replayed from another tag": lambda case: case.say(payload(f"{case.here}:0.9", case.digest)),
    "of this name at another digest": lambda case: case.say(payload(f"{case.here}@{OTHER}", case.digest)),
    "of this tag at another digest": lambda case: case.say(payload(f"{case.here}:1@{OTHER}", case.digest)),
    "without a name": lambda case: case.say(payload("", case.digest)),
    "of a name that is none": lambda case: case.say(payload(f"{case.here} ", case.digest)),
    "of a glob": lambda case: case.say(payload(f"{case.registry.host}/acme/*", case.digest)),
    "of a list of names": lambda case: case.change(identity={"docker-reference": [case.here]}),
    "without an identity": lambda case: case.change(identity=None),
    "with more identity": lambda case: case.change(identity={"docker-reference": case.here, "tag": "1"}),
    "of another type": lambda case: case.change(type="atomic container signature"),
    "without a type": lambda case: case.change(type=None),
    "with more that is critical": lambda case: case.change(expires="2020-01-01"),
    "with more beside what is critical": lambda case: case.say(
        json.dumps(json.loads(case.good().document) | {"extra": 1}).encode()
    ),
    "with an option that is a text": lambda case: case.say(
        json.dumps(json.loads(case.good().document) | {"optional": "x"}).encode()
    ),
    "with a type twice": lambda case: case.say(twice(case.good().document, "type")),
    "with a digest twice": lambda case: case.say(twice(case.good().document, "docker-manifest-digest")),
    "with critical twice": lambda case: case.say(twice(case.good().document, "critical")),
    "a list": lambda case: case.say(b"[" + case.good().document + b"]"),
    "no JSON": lambda case: case.say(b"signed"),
    "empty": lambda case: case.say(b""),
    "JSON with more behind it": lambda case: case.say(case.good().document + b"{}"),
    "nested deeply": lambda case: case.say(b'{"critical":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "not UTF-8": lambda case: case.say(case.good().document.replace(b"cosign", b"cos\xffgn")),
    "UTF-16": lambda case: case.say(case.good().document.decode().encode("utf-16")),
    "too large": lambda case: case.say(case.good().document + b" " * 300_000),
    "changed after it was signed": lambda case: case.put(Layer(case.good().document + b" ", case.good().annotations)),
    "written anew after it was signed": reserialized,
    "truncated": lambda case: case.put(Layer(case.good().document[:-1], case.good().annotations)),
    "with a truncated signature": lambda case: case.annotate(b64(case.signature()[:-1])),
    "with half a signature": lambda case: case.annotate(b64(case.signature()[:36])),
    "with a longer signature": lambda case: case.annotate(b64(case.signature() + b"\0")),
    "with a bit turned in the signature": lambda case: case.annotate(b64(flipped(case.signature(), 20))),
    "with an empty signature": lambda case: case.annotate(""),
    "with a signature of zeros": lambda case: case.annotate(b64(bytes(70))),
    "with a signature of r and s being 0": lambda case: case.annotate(b64(bytes.fromhex("3006020100020100"))),
    "with a signature that is not base64": lambda case: case.annotate("%%%"),
    "with a signature in hex": lambda case: case.annotate(case.signature().hex() + "!"),
    "with white space in the signature": lambda case: case.annotate(
        b64(case.signature())[:20] + "\n" + b64(case.signature())[20:]
    ),
    "with a signature of a megabyte": lambda case: case.annotate("A" * (1 << 20)),
    "with a signature that is a number": lambda case: case.annotate(1),
    "with the signature under another key": lambda case: case.annotate(
        b64(case.signature()), "dev.sigstore.cosign/signature"
    ),
    "with the signature of another payload": lambda case: case.put(
        Layer(case.good().document, Layer.of(case.key, payload(case.here, OTHER)).annotations)
    ),
    "with a signature of the digest alone": lambda case: case.annotate(b64(case.key.sign(case.digest.encode()))),
    "with a signature of the manifest": lambda case: case.annotate(b64(case.key.sign(case.image.manifest_bytes))),
    "without annotations": lambda case: case.put(Layer(case.good().document, {})),
    "of another media type": lambda case: case.put(
        Layer(case.good().document, case.good().annotations, "application/json")
    ),
    "of no media type": lambda case: case.put(Layer(case.good().document, case.good().annotations, "")),
    "called a bundle": lambda case: case.put(Layer(case.good().document, case.good().annotations, BUNDLE)),
    "twice in one manifest": lambda case: case.put(
        *[Layer.of(Signer(case.key.private, case.key.ways), case.good().document)] * 2
    ),
    "behind a flood": flood,
    "in a manifest without layers": lambda case: case.manifest(layers=[]),
    "in a manifest with null layers": lambda case: case.manifest(layers=None),
    "in a manifest without a config": lambda case: case.manifest(config=None),
    "in a manifest of schema 1": lambda case: case.manifest(schemaVersion=1),
    "in an index": lambda case: case.registry.add_manifest(
        REPOSITORY, tag_of(case.digest), {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, OCI_INDEX
    ),
    "in a manifest that is no JSON": lambda case: case.registry.add_manifest(
        REPOSITORY, tag_of(case.digest), b'{"schemaVersion": 2, '
    ),
    "with a payload that is missing": missing_blob,
    "with a payload that was exchanged": other_blob,
    "under the tag of another digest": lambda case: attach(case.registry, REPOSITORY, OTHER, [case.good()]),
    "under the tag of the config": lambda case: attach(
        case.registry, REPOSITORY, case.image.config_digest, [case.good()]
    ),
    "in another repository": lambda case: attach(case.registry, "acme/other", case.digest, [case.good()]),
    "answered with 404": lambda case: answered(case, Fault(status=404)),
    "made with the key as HMAC": lambda case: case.annotate(
        b64(hmac.digest(case.key.pem, case.good().document, "sha256"))
    ),
}

BUNDLED = {
    "a stranger's": lambda case: refer(case.registry, REPOSITORY, case.digest, bundle(case.stranger, case.digest)),
    "of another digest": lambda case: case.bundle(document=statement(OTHER)),
    "of two subjects": lambda case: case.state(subject=[{"digest": {"sha256": case.digest[7:]}}] * 2),
    "of no subject": lambda case: case.state(subject=[]),
    "of a subject that is no list": lambda case: case.state(subject={"digest": {"sha256": case.digest[7:]}}),
    "of a subject with two digests": lambda case: case.state(
        subject=[{"digest": {"sha256": case.digest[7:], "sha512": "5" * 128}}]
    ),
    "of a subject without a digest": lambda case: case.state(subject=[{"name": case.here}]),
    "of a subject of another name": lambda case: case.state(
        subject=[{"name": "ghcr.io/acme/app", "digest": {"sha256": case.digest[7:]}}]
    ),
    "of a digest of another algorithm": lambda case: case.state(subject=[{"digest": {"sha1": case.digest[7:47]}}]),
    "of a digest with its algorithm in it": lambda case: case.state(subject=[{"digest": {"sha256": case.digest}}]),
    "an attestation": lambda case: case.state(predicateType="https://slsa.dev/provenance/v1"),
    "of a later predicate": lambda case: case.state(predicateType=PREDICATE.replace("/v1", "/v2")),
    "of an older statement": lambda case: case.state(_type="https://in-toto.io/Statement/v0.1"),
    "without a type": lambda case: case.state(_type=None),
    "with a predicate that is a text": lambda case: case.state(predicate="x"),
    "with a type twice": lambda case: case.bundle(document=twice(statement(case.digest), "_type")),
    "with a statement that is no JSON": lambda case: case.bundle(document=b"signed"),
    "with an empty statement": lambda case: case.bundle(document=b""),
    "with a statement that is too large": lambda case: case.bundle(
        document=statement(case.digest, predicate={"x": "y" * 300_000})
    ),
    "with a payload of simple signing": lambda case: case.bundle(document=case.good().document),
    "of another payload type": lambda case: case.bundle(kind="application/json"),
    "with its payload type changed": lambda case: case.envelope(lambda x: x.update(payloadType="application/json")),
    "with its payload changed": lambda case: case.envelope(
        lambda x: x.update(payload=b64(statement(case.digest, predicate={"a": 1})))
    ),
    "with its payload not base64": lambda case: case.envelope(lambda x: x.update(payload="%")),
    "with no signature": lambda case: case.envelope(lambda x: x.update(signatures=[])),
    "with two signatures": lambda case: case.envelope(lambda x: x.update(signatures=x["signatures"] * 2)),
    "with signatures that are no list": lambda case: case.envelope(lambda x: x.update(signatures=x["signatures"][0])),
    "with an empty signature": lambda case: case.envelope(lambda x: x.update(signatures=[{"sig": ""}])),
    "with a truncated signature": lambda case: case.envelope(
        lambda x: x.update(signatures=[{"sig": x["signatures"][0]["sig"][:-8]}])
    ),
    "signed without its type": lambda case: case.envelope(
        lambda x: x.update(signatures=[{"sig": b64(case.key.sign(statement(case.digest)))}])
    ),
    "signed as another type": lambda case: case.envelope(
        lambda x: x.update(signatures=[{"sig": b64(case.key.sign(signed_bytes("text/plain", statement(case.digest))))}])
    ),
    "of version 0.1": lambda case: case.bundle(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
    "of version 0.4": lambda case: case.bundle(mediaType="application/vnd.dev.sigstore.bundle.v0.4+json"),
    "of no media type": lambda case: case.bundle(mediaType=None),
    "without an envelope": lambda case: case.bundle(dsseEnvelope=None),
    "of a file": lambda case: case.bundle(
        messageSignature={"signature": b64(case.key.sign(case.image.manifest_bytes))}
    ),
    "with an envelope twice": lambda case: refer(
        case.registry, REPOSITORY, case.digest, twice(bundle(case.key, case.digest), "dsseEnvelope")
    ),
    "no JSON": lambda case: refer(case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest)[:-1]),
    "a list": lambda case: refer(case.registry, REPOSITORY, case.digest, b"[" + bundle(case.key, case.digest) + b"]"),
    "empty": lambda case: refer(case.registry, REPOSITORY, case.digest, b""),
    "too large": lambda case: refer(
        case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest) + b" " * (2 << 20)
    ),
    "of what refers to another image": elsewhere,
    "of what refers to nothing": without_subject,
    "listed with another size": wrong_entry,
    "listed in an index": nested_list,
    "listed as an SBOM": lambda case: list_referrers(
        case.registry,
        REPOSITORY,
        case.digest,
        [
            referring(case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest))
            | {"artifactType": "application/spdx+json"}
        ],
    ),
    "in a list for another image": lambda case: refer(case.registry, REPOSITORY, OTHER, bundle(case.key, case.digest)),
    "in a list that is no index": lambda case: case.registry.files.update(
        {f"/v2/{REPOSITORY}/referrers/{case.digest}": (case.image.manifest_bytes, OCI_MANIFEST)}
    ),
}

CASES = {
    f"{kind} {name}": put for kind, cases in (("tag:", TAGGED), ("bundle:", BUNDLED)) for name, put in cases.items()
}


@pytest.fixture(scope="module")
def keys() -> tuple[Signer, Signer]:
    return Signer.make("p256"), Signer.make("p256")


@pytest.fixture
def case(keys):
    with FaultRegistry() as registry:
        yield Case(registry, *keys)


def pull(case: Case, store: Store, key: str, **options):
    wishes = PullOptions(platform=LINUX, require_signature=(key,), **options)
    return pull_image(case.name, store, wishes)


def test_there_are_enough_of_them():
    assert len(CASES) >= 120


@pytest.mark.parametrize("name", CASES)
def test_refused(name, case, tmp_path):
    store, key = Store.open(tmp_path / "home"), case.key.write(tmp_path / "key.pub")
    CASES[name](case)
    with pytest.raises(SignatureError) as refused:
        pull(case, store, key)
    assert refused.value.exit_code == ExitCode.UNSIGNED
    assert "--require-signature asks for one made with" in (refused.value.cause or "")
    assert key in (refused.value.cause or "")
    assert store.images() == []
    assert all(case.registry.count(digest) == 0 for digest in case.image.layer_digests)
    assert not list(store.home.rglob("sha256*")) and not list(store.home.rglob("*.signature"))


@pytest.mark.parametrize("name", ["tag: a stranger's", "bundle: of another digest", "bundle: an attestation"])
def test_a_genuine_one_beside_it_counts(name, case, tmp_path):
    store, key = Store.open(tmp_path / "home"), case.key.write(tmp_path / "key.pub")
    CASES[name](case)
    if name.startswith("tag"):
        stranger = Layer.of(case.stranger, payload(case.here, case.digest))
        case.put(stranger, case.good())
    else:
        sign(case.registry, REPOSITORY, case.digest, case.key)
    assert pull(case, store, key).changed


COSIGN_2 = "application/vnd.dev.cosign.artifact.sig.v1+json"


def payload_that_refers(case: Case) -> None:
    """As cosign 2 could be told to: a payload of simple signing in a manifest that refers to the image."""
    subject = {"mediaType": OCI_MANIFEST, "digest": case.digest, "size": 1}
    data = json.dumps(manifest_of(case.registry, [case.good()], artifactType=COSIGN_2, subject=subject)).encode()
    made = case.registry.add_manifest(REPOSITORY, None, data)
    entry = {"mediaType": OCI_MANIFEST, "digest": made, "size": len(data), "artifactType": COSIGN_2}
    list_referrers(case.registry, REPOSITORY, case.digest, [entry])


GENUINE = {
    "under the tag": lambda case: case.put(case.good()),
    "with a tag in its name": lambda case: case.say(payload(f"{case.here}:1", case.digest)),
    "with its digest in its name": lambda case: case.say(payload(f"{case.here}@{case.digest}", case.digest)),
    "with options": lambda case: case.say(
        json.dumps(json.loads(case.good().document) | {"optional": {"creator": "x", "timestamp": 1}}).encode()
    ),
    "with a certificate beside it": lambda case: case.put(
        Layer.of(case.key, case.good().document, **{"dev.sigstore.cosign/bundle": "{}"})
    ),
    "a bundle": lambda case: case.bundle(),
    "a bundle, listed by the tag": lambda case: refer(
        case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest), api=False
    ),
    "a bundle that names the image": lambda case: case.state(
        subject=[{"name": case.here, "digest": {"sha256": case.digest[7:]}}]
    ),
    "a bundle, listed by the type of its config": lambda case: list_referrers(
        case.registry,
        REPOSITORY,
        case.digest,
        [
            referring(case.registry, REPOSITORY, case.digest, bundle(case.key, case.digest))
            | {"artifactType": "application/vnd.oci.empty.v1+json"}
        ],
    ),
    "a payload that refers to the image": payload_that_refers,
}


@pytest.mark.parametrize("name", GENUINE)
def test_genuine(name, case, tmp_path):
    store, key = Store.open(tmp_path / "home"), case.key.write(tmp_path / "key.pub")
    GENUINE[name](case)
    assert pull(case, store, key).changed
    asked = len(case.registry.requests)
    assert not pull(case, store, key).changed
    assert len(case.registry.requests) == asked


@pytest.mark.parametrize("body", [b"<html>hello</html>", b""], ids=["a page", "nothing"])
def test_no_answer_is_trouble_of_the_network(body, case, tmp_path):
    store, key = Store.open(tmp_path / "home"), case.key.write(tmp_path / "key.pub")
    answered(case, Fault(body=body))
    with pytest.raises(NetworkError):
        pull_image(
            case.name,
            store,
            PullOptions(platform=LINUX, require_signature=(key,)),
            registries=RegistryOptions(retries=0),
        )
    assert all(case.registry.count(digest) == 0 for digest in case.image.layer_digests)
