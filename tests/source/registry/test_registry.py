"""From a name to manifest and config, and mirrors (rows B48 to B74, B89, B90)."""

from __future__ import annotations

import json

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import AccessError, ContentError, NetworkError, NotFoundError, UsageError
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import ACCEPT, DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from msb_pull.image.platform import Platform
from msb_pull.source.login.credentials import CredentialStore
from tests.support.fault_auth import require_basic
from tests.support.fault_registry import OCTETS, Fault, digest_of
from tests.support.registries import AMD64, LAYER, describe, drain, name

ARM64 = Platform("linux", "arm64")


@pytest.fixture
def image(registry):
    registry.image = registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


def entry(registry, digest, architecture="amd64", media_type=OCI_MANIFEST, repository="acme/app", **more):
    data = registry.manifests[repository, digest][0]
    platform = {"platform": {"os": "linux", "architecture": architecture}} if architecture else {}
    return {"mediaType": media_type, "digest": digest, "size": len(data)} | platform | more


def add_index(registry, tag="multi", *entries):
    return registry.add_index("acme/app", tag, entries)


# Plain resolving


def test_resolve(registry, bench, image):
    found = bench().resolve(image)
    assert str(found.digest) == registry.image.manifest_digest
    assert found.manifest_bytes == registry.image.manifest_bytes
    assert found.config_bytes == registry.image.config_bytes
    assert [str(x.digest) for x in found.manifest.layers] == registry.image.layer_digests
    assert found.platform == AMD64
    assert found.source == "registry"
    assert str(found.reference) == image


def test_b48_accept_is_one_header_without_schema1(registry, bench, image):
    bench().resolve(image)
    sent = registry.requests[0].headers["accept"]
    assert sent == ACCEPT
    assert all(x in sent for x in (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
    assert "distribution.manifest.v1" not in sent


@pytest.mark.parametrize(
    "kind",
    [f"{OCI_MANIFEST}; charset=utf-8", DOCKER_MANIFEST, None, "application/json", "text/plain", OCTETS],
)
def test_b49_content_types(registry, bench, image, kind):
    registry.add_manifest("acme/app", "1", registry.image.manifest_bytes, kind)
    bench().resolve(image)


def test_b50_header_and_body_of_two_kinds(registry, bench, image):
    registry.add_manifest("acme/app", "1", registry.image.manifest_bytes, OCI_INDEX)
    with pytest.raises(ContentError):
        bench().resolve(image)


def test_b51_layers_and_manifests_in_one_document(registry, bench, image):
    document = json.loads(registry.image.manifest_bytes) | {"manifests": []}
    registry.add_manifest("acme/app", "1", document)
    with pytest.raises(ContentError):
        bench().resolve(image)


def test_b52_by_digest_and_tampered(registry, bench, image):
    digest = registry.image.manifest_digest
    registry.always("/manifests/", Fault(flip=5, headers={"Docker-Content-Digest": digest}))
    with pytest.raises(ContentError, match="does not match its digest") as caught:
        bench().resolve(f"{registry.host}/acme/app@{digest}")
    assert digest in caught.value.cause


def test_b52_by_digest(registry, bench, image):
    found = bench().resolve(f"{registry.host}/acme/app@{registry.image.manifest_digest}")
    assert str(found.digest) == registry.image.manifest_digest


def test_b52_by_sha512(registry, bench, image):
    data = registry.image.manifest_bytes
    digest = Digest.of(data, "sha512")
    registry.manifests["acme/app", str(digest)] = (data, OCI_MANIFEST)
    assert bench().resolve(f"{registry.host}/acme/app@{digest}").digest == digest


@pytest.mark.parametrize(
    ("header", "warned"),
    [("sha256:" + "0" * 64, True), ("sha512:" + "0" * 128, True), ("nonsense", False), ("", False)],
)
def test_b53_b54_the_digest_header(registry, bench, image, header, warned):
    registry.always("/manifests/", Fault(headers={"Docker-Content-Digest": header}))
    here = bench()
    assert str(here.resolve(image).digest) == registry.image.manifest_digest
    assert ("announces digest" in "".join(here.warnings)) is warned


def test_b54_a_right_header_of_another_algorithm(registry, bench, image):
    right = str(Digest.of(registry.image.manifest_bytes, "sha512"))
    registry.always("/manifests/", Fault(headers={"Docker-Content-Digest": right}))
    here = bench()
    here.resolve(image)
    assert here.warnings == []


@pytest.mark.parametrize("chunked", [True, False])
def test_b55_a_manifest_beyond_all_measure(registry, bench, chunked):
    registry.add_manifest("acme/app", "big", b'{"a": "' + b"x" * (5 << 20) + b'"}')
    registry.always("/manifests/", Fault(chunked=chunked))
    with pytest.raises(ContentError, match="larger than"):
        bench().resolve(name(registry, tag="big"))


def test_b55_an_endless_manifest(registry, bench, image):
    registry.always("/manifests/", Fault(endless=True))
    with pytest.raises(ContentError, match="larger than"):
        bench().resolve(image)


def test_b55_another_size_than_the_index_says(registry, bench, image):
    add_index(registry, "multi", entry(registry, registry.image.manifest_digest) | {"size": 7})
    with pytest.raises(ContentError, match="a different size"):
        bench().resolve(name(registry, tag="multi"))


def test_b55_a_config_beyond_all_measure(registry, bench, image):
    document = json.loads(registry.image.manifest_bytes)
    document["config"]["size"] = 5 << 20
    registry.add_manifest("acme/app", "big", document)
    with pytest.raises(ContentError, match="config is larger"):
        bench().resolve(name(registry, tag="big"))
    assert registry.count("/blobs/") == 0


def test_b55_a_cut_manifest_is_asked_for_again(registry, bench, image):
    registry.script("/manifests/", Fault(end_after=10), Fault(cut_after=20))
    here = bench()
    assert str(here.resolve(image).digest) == registry.image.manifest_digest
    assert registry.count("/manifests/") == 3


def test_b57_schema1(registry, bench):
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    registry.add_manifest("acme/app", "old", {"schemaVersion": 1, "fsLayers": []}, kind)
    with pytest.raises(ContentError, match="schema 1"):
        bench().resolve(name(registry, tag="old"))


# Indexes


def test_b58_b73_the_children_of_an_index_are_asked_for_by_digest(registry, bench, image):
    arm = registry.add_image("acme/app", None, [LAYER], platform=("linux", "arm64", None))
    add_index(registry, "multi", entry(registry, registry.image.manifest_digest),
              entry(registry, arm.manifest_digest, "arm64"))  # fmt: skip
    found = bench().resolve(name(registry, tag="multi"), ARM64)
    assert str(found.digest) == arm.manifest_digest
    assert found.platform == ARM64
    assert [x.path.rpartition("/")[2] for x in registry.asked("/manifests/")] == ["multi", arm.manifest_digest]


def test_b73_a_tag_that_moves_meanwhile(registry, bench, image):
    index = entry(registry, registry.image.manifest_digest)
    add_index(registry, "1", index)

    def move():
        registry.add_image("acme/app", "1", [LAYER + b"new"])

    registry.script(registry.image.manifest_digest, Fault(before=move))
    assert str(bench().resolve(image).digest) == registry.image.manifest_digest


def test_b58_no_such_platform(registry, bench, image):
    add_index(registry, "multi", entry(registry, registry.image.manifest_digest),
              entry(registry, registry.image.manifest_digest, "s390x"))  # fmt: skip
    with pytest.raises(NotFoundError) as caught:
        bench().resolve(name(registry, tag="multi"), ARM64)
    assert "linux/amd64, linux/s390x" in caught.value.cause
    assert name(registry, tag="multi") in caught.value.message


def test_b60_b63_attestations_and_artifacts_are_passed_over(registry, bench, image):
    digest = registry.image.manifest_digest
    attestation = {"vnd.docker.reference.type": "attestation-manifest"}
    add_index(
        registry, "multi",
        entry(registry, digest, "unknown"), entry(registry, digest, annotations=attestation),
        entry(registry, digest, artifactType="application/x"), entry(registry, digest, media_type="application/x"),
        entry(registry, digest),
    )  # fmt: skip
    assert str(bench().resolve(name(registry, tag="multi")).digest) == digest


def test_documents_that_are_compressed_on_the_way_are_read(registry, bench):
    registry.add_image("acme/app", "1", [LAYER], config={"history": [{"created_by": "x" * 500}]})
    registry.always("/v2/", Fault(gzip=True, chunked=True))
    here = bench()
    here.resolve(name(registry))
    assert here.of(events.Retrying) == []
    assert registry.count("/blobs/") == 2


@pytest.mark.parametrize("kind", ["", "application/json"])
def test_an_entry_that_does_not_say_its_type_may_be_an_image(registry, bench, image, kind):
    digest = registry.image.manifest_digest
    add_index(registry, "multi", entry(registry, digest, media_type=kind))
    assert str(bench().resolve(name(registry, tag="multi")).digest) == digest


def test_b61_one_entry_without_a_platform(registry, bench, image):
    add_index(registry, "multi", entry(registry, registry.image.manifest_digest, None))
    here = bench()
    assert here.resolve(name(registry, tag="multi")).platform == AMD64
    with pytest.raises(NotFoundError):
        here.resolve(name(registry, tag="multi"), ARM64, explicit=True)


def nested(registry, levels):
    digest, kind = registry.image.manifest_digest, OCI_MANIFEST
    for level in range(levels):
        digest = add_index(registry, f"deep{level}", entry(registry, digest, media_type=kind))
        kind = OCI_INDEX
    return name(registry, tag=f"deep{levels - 1}")


@pytest.mark.parametrize("levels", [2, 4])
def test_b62_an_index_of_indexes(registry, bench, image, levels):
    assert str(bench().resolve(nested(registry, levels)).digest) == registry.image.manifest_digest


@pytest.mark.parametrize("levels", [5, 20])
def test_b62_too_deep(registry, bench, image, levels):
    with pytest.raises(ContentError, match="nested too deeply"):
        bench().resolve(nested(registry, levels))


def test_b62_a_circle(registry, bench, image):
    """B62: a true circle of digests cannot be made, but a registry may claim one."""
    wrong = "sha256:" + "5" * 64
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX,
                "manifests": [{"mediaType": OCI_INDEX, "digest": wrong, "size": 5,
                               "platform": {"os": "linux", "architecture": "amd64"}}]}  # fmt: skip
    data = json.dumps(document).encode()
    for key in ("circle", wrong):
        registry.manifests["acme/app", key] = (data, OCI_INDEX)
    with pytest.raises(ContentError):
        bench().resolve(name(registry, tag="circle"))
    assert registry.count() <= 3


def test_b64_a_lone_image_for_another_platform(registry, bench, image):
    here = bench()
    assert here.resolve(image, ARM64).platform == AMD64
    assert "linux/amd64, not for linux/arm64" in here.warnings[0]
    with pytest.raises(NotFoundError, match="no image for linux/arm64") as caught:
        here.resolve(image, ARM64, explicit=True)
    assert "--platform linux/amd64" in caught.value.hint


def test_b65_an_artifact_is_refused_before_its_config_is_read(registry, bench):
    config = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "sha256:" + "1" * 64, "size": 2}
    registry.add_manifest("acme/app", "chart", {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [],
    })  # fmt: skip
    with pytest.raises(ContentError, match="helm"):
        bench().resolve(name(registry, tag="chart"))
    assert registry.count("/blobs/") == 0


def test_b66_an_image_from_scratch(registry, bench):
    registry.add_image("acme/app", "empty", [])
    found = bench().resolve(name(registry, tag="empty"))
    assert found.manifest.layers == ()


def test_b67_diff_ids_that_do_not_pair_up(registry, bench):
    registry.add_image("acme/app", "odd", [LAYER], diff_ids=[])
    with pytest.raises(ContentError, match="1 layers"):
        bench().resolve(name(registry, tag="odd"))


def test_b69_a_config_that_does_not_match(registry, bench, image):
    registry.always("/blobs/", Fault(flip=3))
    with pytest.raises(ContentError, match="config does not match"):
        bench().resolve(image)
    assert registry.count("/blobs/") == 2


def test_b69_a_config_that_matches_the_second_time(registry, bench, image):
    registry.script("/blobs/", Fault(flip=3))
    bench().resolve(image)


@pytest.mark.parametrize("good", [True, False])
def test_b69_a_config_inside_the_manifest(registry, bench, image, good):
    import base64

    document = json.loads(registry.image.manifest_bytes)
    data = registry.image.config_bytes if good else registry.image.config_bytes.swapcase()
    document["config"]["data"] = base64.b64encode(data).decode()
    registry.add_manifest("acme/app", "inline", document)
    found = bench().resolve(name(registry, tag="inline"))
    assert found.config_bytes == registry.image.config_bytes
    assert registry.count("/blobs/") == (0 if good else 1)


def test_b72_encrypted_layers_are_refused_before_anything_is_fetched(registry, bench):
    kind = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
    registry.add_image("acme/app", "locked", [LAYER], layer_type=kind)
    with pytest.raises(ContentError, match="encrypted"):
        bench().resolve(name(registry, tag="locked"))
    assert registry.count("/blobs/") == 0


def test_a_missing_tag(registry, bench, image):
    with pytest.raises(NotFoundError, match="acme/app:2: not found") as caught:
        bench().resolve(name(registry, tag="2"))
    assert "404 MANIFEST_UNKNOWN" in caught.value.cause


# Foreign layers


def foreign(registry, other, image, path="/windows/base"):
    layer = describe(LAYER, urls=(f"{other.url}{path}",))
    registry.blobs.pop(str(layer.digest))
    other.files[path] = (LAYER, "application/octet-stream")
    return layer


def test_b71_the_registry_first_then_the_foreign_address_without_credentials(registry, other, bench, image):
    layer = foreign(registry, other, image)
    require_basic(registry, {"bob": "sesame"})
    here = bench(CredentialStore.from_text("bob:sesame", {}))
    assert drain(here.source(image), layer) == LAYER
    assert registry.count("/blobs/") == 2
    assert [x.headers.get("authorization") for x in other.requests] == [None]


def test_b71_a_foreign_layer_that_the_registry_has(registry, other, bench, image):
    layer = describe(LAYER, urls=(f"{other.url}/x",))
    assert drain(bench().source(image), layer) == LAYER
    assert other.count() == 0


def test_b71_a_foreign_address_is_resumed(registry, other, bench, image):
    layer = foreign(registry, other, image)
    other.script("/windows/", Fault(cut_after=1000), Fault(status=503))
    assert drain(bench().source(image), layer) == LAYER
    assert other.requests[-1].headers["range"] == "bytes=1000-"


def test_b71_a_foreign_address_that_wants_a_password(registry, other, bench, image):
    layer = foreign(registry, other, image)
    other.always("/windows/", Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    with pytest.raises(AccessError):
        drain(bench(CredentialStore.from_text("bob:sesame", {})).source(image), layer)
    assert {x.headers.get("authorization") for x in other.requests} == {None}


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/x", "file:///etc/passwd", "https://10.0.0.1/x", "", "https://[bad/", "nonsense"]
)
def test_b71_foreign_addresses_that_are_not_asked(registry, bench, image, url):
    registry.blobs.clear()
    with pytest.raises(ContentError, match="not fetched from its foreign address"):
        drain(bench().source(image), describe(LAYER, urls=(url,)))


def test_b71_a_foreign_address_does_not_lead_inside(registry, other, bench, image):
    layer = foreign(registry, other, image)
    other.always("/windows/", Fault(redirect="http://169.254.169.254/latest"))
    with pytest.raises(NetworkError) as caught:
        drain(bench(retries=0).source(image), layer)
    assert "private network" in caught.value.cause


# Mirrors


@pytest.fixture
def mirrored(registry, other, image):
    """Both hold the image; ``other`` is to be used as the mirror."""
    other.add_image("acme/app", "1", [LAYER])
    return {registry.host: (other.url,)}


def test_b89_the_mirror_serves_everything(registry, other, bench, image, mirrored):
    here = bench(mirrors=mirrored)
    here.resolve(image)
    assert here.blob(image, LAYER) == LAYER
    assert registry.count() == 0
    assert {x.query["ns"][0] for x in other.requests} == {registry.host}
    assert here.warnings == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=404), Fault(status=503), Fault(status=429, headers={"Retry-After": "3600"}), Fault(status=401),
        Fault(status=403), Fault(drop=True), Fault(flip=5), Fault(body=b"<html>"), Fault(redirect="file:///x"),
    ],
)  # fmt: skip
def test_b89_whatever_is_wrong_with_the_mirror_the_registry_is_next(registry, other, bench, image, mirrored, fault):
    other.always("/v2/", fault)
    here = bench(mirrors=mirrored)
    digest = registry.image.manifest_digest
    assert str(here.resolve(f"{registry.host}/acme/app@{digest}").digest) == digest
    assert f"mirror {other.host}" in here.warnings[0]
    assert here.time.waits == []


def test_b89_a_dead_mirror_is_tried_once(registry, bench, image):
    here = bench(mirrors={registry.host: ("http://127.0.0.1:9",)})
    here.resolve(image)
    assert here.blob(image, LAYER) == LAYER
    assert len(here.warnings) == 1
    assert "127.0.0.1:9" in here.warnings[0]


def test_b89_several_mirrors_in_order(registry, other, bench, image, mirrored):
    other.always("/v2/", Fault(status=404))
    here = bench(mirrors={registry.host: ("http://127.0.0.1:9", other.url)})
    here.resolve(image)
    assert "127.0.0.1:9" in here.warnings[0]
    assert other.host in here.warnings[1]
    assert registry.count() == 2


def test_b89_credentials_belong_to_the_host_of_the_mirror(registry, other, bench, image, mirrored, tmp_path):
    import base64

    def auth(text):
        return {"auth": base64.b64encode(text.encode()).decode()}

    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {registry.host: auth("bob:own"), other.host: auth("bob:mirror")}}))
    require_basic(other, {"bob": "mirror"})
    require_basic(registry, {"bob": "own"})
    here = bench(CredentialStore(environment={}, authfile=path), mirrors=mirrored)
    here.resolve(image)
    assert registry.count() == 0
    given = bench(CredentialStore.from_text("bob:own", {}), mirrors=mirrored)
    given.resolve(image)
    assert {x.headers.get("authorization") for x in other.requests[-1:]} == {None}


def test_b89_a_mirror_below_a_path(registry, other, bench, image):
    other.always("/v2/", Fault(status=404))
    here = bench(mirrors={registry.host: (f"{other.url}/proxy/cache/",)})
    here.resolve(image)
    assert other.requests[0].path == "/proxy/cache/v2/acme/app/manifests/1"


@pytest.mark.parametrize("address", ["ftp://x", "https://", "https://u:p@h", "https://h/?a=b", "https://[h", "h:x"])
def test_b89_addresses_of_mirrors_that_are_none(bench, address):
    with pytest.raises(UsageError, match=r"mirror of r\.example"):
        bench(mirrors={"r.example": (address,)}).source("r.example/a/b:1")


def test_b89_b75_a_mirror_with_a_wrong_blob_is_asked_last_the_second_time(registry, other, bench, image, mirrored):
    other.always("/blobs/" + str(describe(LAYER).digest), Fault(flip=100))
    here = bench(mirrors=mirrored)
    source = here.source(image)
    assert digest_of(drain(source, describe(LAYER))) != str(describe(LAYER).digest)
    assert drain(source, describe(LAYER)) == LAYER
    assert other.host in here.warnings[0]
    assert "did not match its digest" in here.warnings[0]


def test_b89_a_mirror_with_a_wrong_config(registry, other, bench, image, mirrored):
    other.always("/blobs/", Fault(flip=100))
    here = bench(mirrors=mirrored)
    assert here.resolve(image).config_bytes == registry.image.config_bytes


def test_b90_a_blob_that_the_mirror_lacks(registry, other, bench, image, mirrored):
    other.blobs.pop(str(describe(LAYER).digest))
    here = bench(mirrors=mirrored)
    here.resolve(image)
    assert here.blob(image, LAYER) == LAYER
    assert registry.count() == 1
    assert "continuing with" in here.warnings[0]


@pytest.mark.parametrize("fault", [Fault(cut_after=100_000), Fault(stall_after=100_000)])
def test_b90_a_mirror_that_dies_in_the_middle(registry, other, bench, image, mirrored, fault):
    other.script("/blobs/", fault)
    here = bench(mirrors=mirrored, timeout=0.5)
    assert here.blob(image, LAYER) == LAYER
    assert registry.asked("/blobs/")[0].headers["range"] == "bytes=100000-"
    assert here.of(events.Retrying) == []


def test_all_fail_and_the_registry_has_the_last_word(registry, bench, image):
    with pytest.raises(NotFoundError) as caught:
        bench(mirrors={registry.host: ("http://127.0.0.1:9",)}).resolve(name(registry, tag="none"))
    assert "MANIFEST_UNKNOWN" in caught.value.cause
