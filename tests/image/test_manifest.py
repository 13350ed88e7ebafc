"""Manifests, indexes and configs: rows B48 to B51 and B55 to B74, and what random documents may do (nothing)."""

from __future__ import annotations

import base64
import copy
import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msb_pull.ground.errors import ContentError
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.documents import DOCUMENT_LIMIT, load_json
from msb_pull.image.manifest import (
    ACCEPT,
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Index,
    Manifest,
    check_image,
    parse_config,
    parse_document,
)
from msb_pull.image.platform import Platform
from tests.support.counting import steps
from tests.support.documents import CONFIG, ENTRY, INDEX, MANIFEST, WHAT, digest, layer, parse, without


def refused(document, content_type: str | None = None) -> str:
    """What a person reads of the refusal."""
    with pytest.raises(ContentError) as caught:
        parse(document, content_type)
    error = caught.value
    assert error.message.startswith(f"{WHAT}: ") and "\n" not in error.message
    assert len(error.message) < 400 and len(error.cause or "") < 300
    return f"{error.message} | {error.cause} | {error.hint}"


def test_all_of_a_manifest():
    config = CONFIG | {"annotations": {"a": "b"}}
    foreign = layer(1, urls=["https://example.com/x"], data=base64.b64encode(b"abc").decode(), artifactType="x/y")
    parsed = parse(MANIFEST | {"annotations": {"k": "v", "n": 1}, "config": config, "layers": [foreign]})
    assert isinstance(parsed, Manifest)
    assert (parsed.schema_version, parsed.media_type, parsed.artifact_type) == (2, OCI_MANIFEST, None)
    assert parsed.annotations == {"k": "v"} and parsed.config.annotations == {"a": "b"}
    (found,) = parsed.layers
    assert (found.media_type, str(found.digest), found.size) == (f"{OCI_LAYER}+gzip", digest(1), 11)
    assert (found.urls, found.data, found.artifact_type) == (("https://example.com/x",), b"abc", "x/y")


def test_all_of_an_index():
    parsed = parse(INDEX)
    assert isinstance(parsed, Index) and parsed.media_type == OCI_INDEX
    assert parsed.manifests[0].platform == Platform("linux", "arm", "v6")
    assert parsed.images() == list(parsed.manifests)


def test_b48_accept():
    assert ACCEPT.split(", ") == [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST]


# Which kind it is

ANY_HEADER = [None, "", "application/json", "text/plain", "application/octet-stream", "a/b; c=d", "application/json;"]


@pytest.mark.parametrize("header", [*ANY_HEADER, OCI_MANIFEST, f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST.upper()])
@pytest.mark.parametrize("document", [MANIFEST, without(MANIFEST, "mediaType"), MANIFEST | {"mediaType": None}])
def test_b49_manifest(header, document):
    parsed = parse(document, header)
    assert isinstance(parsed, Manifest) and parsed.media_type == OCI_MANIFEST


@pytest.mark.parametrize("header", [*ANY_HEADER, OCI_INDEX, f" {OCI_INDEX} ;x"])
@pytest.mark.parametrize("document", [INDEX, without(INDEX, "mediaType"), INDEX | {"mediaType": "what/ever"}])
def test_b49_index(header, document):
    parsed = parse(document, header)
    assert isinstance(parsed, Index) and parsed.media_type == OCI_INDEX


@pytest.mark.parametrize("kind", [DOCKER_MANIFEST, DOCKER_LIST])
def test_b49_docker_by_header_alone(kind):
    document = MANIFEST if kind == DOCKER_MANIFEST else INDEX
    assert parse(without(document, "mediaType"), kind).media_type == kind


def test_b49_unknown_shape():
    assert "neither" in refused({"errors": [{"code": "UNAUTHORIZED"}]})
    assert "neither" in refused({})
    assert "no list of layers" in refused(without(MANIFEST, "layers"))
    assert "no list of manifests" in refused(without(INDEX, "manifests"))
    assert "mediaType" in refused(MANIFEST | {"mediaType": 5})


@pytest.mark.parametrize(
    ("header", "document"),
    [
        (OCI_INDEX, MANIFEST),
        (OCI_MANIFEST, INDEX),
        (DOCKER_LIST, MANIFEST),
        (DOCKER_MANIFEST, INDEX),
        (OCI_MANIFEST, MANIFEST | {"mediaType": DOCKER_LIST}),
    ],
)
def test_b50_header_and_body_differ_in_kind(header, document):
    assert "to the registry and" in refused(document, header)


@pytest.mark.parametrize(
    ("header", "document"), [(DOCKER_MANIFEST, MANIFEST), (OCI_INDEX, INDEX | {"mediaType": DOCKER_LIST})]
)
def test_b50_same_kind_is_a_warning(header, document):
    warnings: list[str] = []
    parsed = parse(document, header, warn=warnings.append)
    assert parsed.media_type == document["mediaType"]
    assert len(warnings) == 1 and header in warnings[0]
    assert parse(document, document["mediaType"], warn=warnings.append) and len(warnings) == 1


@pytest.mark.parametrize(
    "document",
    [
        MANIFEST | {"manifests": [ENTRY]},
        MANIFEST | {"manifests": []},
        without(MANIFEST, "mediaType") | {"manifests": [ENTRY]},
        INDEX | {"layers": []},
        INDEX | {"config": CONFIG},
        without(INDEX, "mediaType") | {"layers": [layer()]},
        MANIFEST | {"fsLayers": []},
        INDEX | {"fsLayers": [{"blobSum": digest()}]},
    ],
)
@pytest.mark.parametrize("header", [None, OCI_MANIFEST, OCI_INDEX])
def test_b51_ambiguous(document, header):
    refused(document, header)


def test_b51_null_is_absent():
    """What programs in Go write for a list that is empty."""
    assert isinstance(parse(MANIFEST | {"manifests": None, "annotations": None}), Manifest)
    assert isinstance(parse(INDEX | {"layers": None, "config": None}), Index)
    assert parse(INDEX | {"manifests": None}).manifests == ()


def test_b55_size_limit():
    padded = MANIFEST | {"annotations": {"x": "x" * DOCUMENT_LIMIT}}
    assert "larger than 4194304 bytes" in refused(padded)
    data = json.dumps(MANIFEST).encode()
    assert parse(data + b" " * (DOCUMENT_LIMIT - len(data)))
    assert "larger than" in refused(data + b" " * (DOCUMENT_LIMIT - len(data) + 1))


# Strict JSON

RAW = json.dumps(MANIFEST)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"<html></html>", "not valid JSON"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"5", "not a JSON object"),
        (b"\xef\xbb\xbf" + RAW.encode(), "not valid JSON"),
        (RAW.encode("utf-16"), "not valid JSON"),
        (RAW.encode() + b"{}", "Extra data"),
        (RAW.encode() + b"\0", "Extra data"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"schemaVersion": 2, "schemaVersion": 1}', "'schemaVersion' appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' appears twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too large"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "too large"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b'{"\\udfff": 1}', "surrogates"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_b56_json(data, says):
    assert says in refused(data)


def test_b56_brackets_in_texts_are_no_depth():
    """Colours in a build step, for example: a hundred times ``[`` and never ``]``."""
    assert parse(MANIFEST | {"annotations": {"x": "\x1b[1m{[" * 500 + '\\"['}})


def test_b56_pairs_of_surrogates_are_fine():
    assert parse(MANIFEST | {"annotations": {"x": "\U0001f600"}}).annotations == {"x": "\U0001f600"}


def test_b56_depth():
    def nested(levels: int) -> bytes:
        return b'{"a":' * levels + b"1" + b"}" * levels

    assert load_json(nested(64), WHAT, "config")
    with pytest.raises(ContentError):
        load_json(nested(70), WHAT, "config")


def test_b56_large_documents_take_no_square():
    def wide(count: int) -> bytes:
        return b'{"a": [' + b"[]," * count + b"1]}"

    half, whole = (steps(partial(load_json, wide(count), WHAT, "manifest")) for count in (5000, 10_000))
    assert whole < 2.1 * half
    load_json(wide(DOCUMENT_LIMIT // 3 - 10), WHAT, "manifest")
    refused(b'{"a": ' + b"[" * (DOCUMENT_LIMIT - 100))


@pytest.mark.parametrize("size", ["10", -1, 1.0, 1e3, True, None, [], {}, 1 << 63, -(1 << 70)])
def test_b56_sizes(size):
    assert "bad size" in refused(MANIFEST | {"layers": [layer(size=size)]})
    assert "bad size" in refused(MANIFEST | {"config": CONFIG | {"size": size}})
    assert "bad size" in refused(INDEX | {"manifests": [ENTRY | {"size": size}]})
    assert "bad size" in refused(MANIFEST | {"layers": [without(layer(), "size")]})


def test_b56_where_it_is():
    assert "its manifest, layers[1] has a bad size: '-1'" in refused(MANIFEST | {"layers": [layer(), layer(size=-1)]})


@pytest.mark.parametrize(
    "document",
    [
        MANIFEST | {"layers": {}},
        MANIFEST | {"layers": "x"},
        MANIFEST | {"layers": [1]},
        MANIFEST | {"layers": [None]},
        MANIFEST | {"config": []},
        MANIFEST | {"config": "x"},
        MANIFEST | {"annotations": []},
        MANIFEST | {"layers": [layer(annotations="x")]},
        MANIFEST | {"layers": [layer(urls="https://x")]},
        MANIFEST | {"layers": [layer(urls=[1])]},
        MANIFEST | {"layers": [layer(data="no base64!")]},
        INDEX | {"manifests": {}},
        INDEX | {"manifests": [[]]},
        MANIFEST | {"schemaVersion": 3},
        MANIFEST | {"schemaVersion": "2"},
        MANIFEST | {"schemaVersion": [2]},
    ],
)
def test_b56_wrong_types(document):
    refused(document)


@pytest.mark.parametrize(
    "platform", [None, "linux/amd64", [], {}, {"os": "linux"}, {"os": 1, "architecture": 2}, {"architecture": "x"}]
)
def test_b61_half_a_platform_is_none(platform):
    assert parse(INDEX | {"manifests": [ENTRY | {"platform": platform}]}).manifests[0].platform is None


@pytest.mark.parametrize(
    ("document", "header"),
    [
        ({"schemaVersion": 1, "name": "a/b", "tag": "1", "fsLayers": [], "history": []}, None),
        ({"schemaVersion": 1, "fsLayers": []}, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ({"schemaVersion": 1, "fsLayers": []}, "application/vnd.docker.distribution.manifest.v1+json; charset=utf-8"),
        ({"anything": 1}, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ({"schemaVersion": 1}, "application/json"),
    ],
)
def test_b57_schema_1(document, header):
    said = refused(document, header)
    assert "schema 1 images are not supported" in said and "ask for a rebuilt image" in said


# What is no image

EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (MANIFEST | {"config": CONFIG | {"mediaType": EMPTY}}, EMPTY),
        (MANIFEST | {"config": CONFIG | {"mediaType": EMPTY}, "artifactType": "text/x-sbom"}, "text/x-sbom"),
        (MANIFEST | {"artifactType": "application/x-thing"}, "application/x-thing"),
        (
            MANIFEST | {"config": CONFIG | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            "application/vnd.cncf.helm.config.v1+json",
        ),
        (
            MANIFEST | {"config": CONFIG | {"mediaType": "application/vnd.wasm.config.v0+json"}},
            "application/vnd.wasm.config.v0+json",
        ),
        (MANIFEST | {"config": without(CONFIG, "mediaType")}, "unknown"),
    ],
)
def test_b65_artifacts(document, kind):
    with pytest.raises(ContentError) as caught:
        check_image(parse(document), WHAT)
    assert caught.value.message == f"{WHAT}: this is an artifact of type {kind}, not a container image"


@pytest.mark.parametrize("where", ["config", "layers"])
def test_errors_do_not_quote_megabytes(where):
    kind = {"mediaType": "x" * 3_000_000 + "+encrypted"}
    changed = {"config": CONFIG | kind} if where == "config" else {"layers": [MANIFEST["layers"][0] | kind]}
    with pytest.raises(ContentError) as caught:
        check_image(parse(MANIFEST | changed), WHAT)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "kind",
    [
        f"{OCI_LAYER}",
        f"{OCI_LAYER}+gzip",
        f"{OCI_LAYER}+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        f"{OCI_LAYER}.gzip",
        "application/vnd.docker.image.rootfs.diff.tar+gzip",
    ],
)
def test_images_are_images(kind):
    for config in (OCI_CONFIG, DOCKER_CONFIG):
        check_image(
            parse(MANIFEST | {"config": CONFIG | {"mediaType": config}, "layers": [layer(mediaType=kind)]}), WHAT
        )


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (f"{OCI_LAYER}+gzip+encrypted", "encrypted"),
        (f"{OCI_LAYER}+encrypted", "encrypted"),
        (f"{OCI_LAYER}+bzip2", f"{OCI_LAYER}+bzip2"),
        ("application/vnd.docker.image.rootfs.diff.tar.xz", "not a tar archive"),
        ("application/octet-stream", "application/octet-stream"),
        ("", "unknown"),
        (OCI_CONFIG, OCI_CONFIG),
    ],
)
def test_b72_layers_that_cannot_be_read(kind, says):
    with pytest.raises(ContentError, match=r"layer [0-9a-f]{12} ") as caught:
        check_image(parse(MANIFEST | {"layers": [layer(1), layer(2, mediaType=kind)]}), WHAT)
    assert says in caught.value.message


# Configs


def config_of(count: int, **more) -> bytes:
    diff_ids = [digest(1000 + number) for number in range(count)]
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}} | more
    return json.dumps(document).encode()


def test_all_of_a_config():
    data = config_of(2, created="2020-01-01T00:00:00Z", variant="v2", config={"Env": ["A=1"]})
    parsed = parse_config(data, parse(MANIFEST), WHAT)
    assert (parsed.os, parsed.architecture, parsed.variant) == ("linux", "amd64", "v2")
    assert parsed.platform == Platform("linux", "amd64", "v2") and parsed.config == {"Env": ["A=1"]}
    assert [str(x) for x in parsed.diff_ids] == [digest(1000), digest(1001)]
    assert parsed.raw["created"] == parsed.created == "2020-01-01T00:00:00Z"


@pytest.mark.parametrize("inner", [None, [], "x", 5])
def test_config_without_settings(inner):
    assert parse_config(config_of(2, config=inner), parse(MANIFEST), WHAT).config == {}


def test_b66_no_layers():
    """An image made from scratch, in every way it is written."""
    for layers in ([], None):
        manifest = parse(MANIFEST | {"layers": layers})
        check_image(manifest, WHAT)
        assert manifest.layers == ()
        for data in (b"{}", b'{"rootfs": null}', b'{"rootfs": {"diff_ids": null}}', config_of(0)):
            assert parse_config(data, manifest, WHAT).diff_ids == ()
        with pytest.raises(ContentError):
            parse_config(config_of(1), manifest, WHAT)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_b67_layers_and_diff_ids_do_not_pair_up(count):
    with pytest.raises(ContentError, match=rf"has {count} diff_ids, its manifest 2 layers"):
        parse_config(config_of(count), parse(MANIFEST), WHAT)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        b"",
        config_of(2, rootfs=None),
        config_of(2, rootfs=[]),
        config_of(2, rootfs={"type": "layers"}),
        config_of(2, rootfs={"diff_ids": "xx"}),
        config_of(2, rootfs={"diff_ids": {"0": digest(), "1": digest()}}),
        config_of(2, rootfs={"diff_ids": [digest(), 5]}),
        config_of(2, rootfs={"diff_ids": [digest(), "sha256:x"]}),
        config_of(2, rootfs={"diff_ids": [digest(), digest().upper()]}),
    ],
)
def test_b67_broken_configs(data):
    with pytest.raises(ContentError, match=WHAT):
        parse_config(data, parse(MANIFEST), WHAT)


def test_b68_repeated_layers():
    a, b = layer(1), layer(2)
    manifest = parse(MANIFEST | {"layers": [a, b, a, a]})
    check_image(manifest, WHAT)
    assert [x.size for x in manifest.layers] == [11, 12, 11, 11]
    diff_ids = [digest(11), digest(12), digest(11), digest(11)]
    assert len(parse_config(config_of(0, rootfs={"diff_ids": diff_ids}), manifest, WHAT).diff_ids) == 4
    with pytest.raises(ContentError, match="two diff_ids"):
        parse_config(config_of(0, rootfs={"diff_ids": [*diff_ids[:3], digest(13)]}), manifest, WHAT)
    with pytest.raises(ContentError, match="two sizes"):
        check_image(parse(MANIFEST | {"layers": [a, b, a | {"size": 5}]}), WHAT)


def test_b69_inline_data():
    """It is only kept here; whoever uses it compares it with size and digest."""
    data = b'{"a": 1}'
    inline = CONFIG | {"data": base64.b64encode(data).decode(), "digest": str(Digest.of(data)), "size": len(data)}
    assert parse(MANIFEST | {"config": inline}).config.data == data
    assert parse(MANIFEST | {"config": CONFIG | {"data": None}}).config.data is None
    assert parse(MANIFEST | {"config": CONFIG | {"data": 5}}).config.data is None
    assert parse(MANIFEST | {"config": CONFIG | {"data": "A" * (3 << 20)}}).config.data is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"blake3:{'f' * 64}", 'unsupported digest algorithm "blake3"'),
        (f"md5:{'f' * 32}", 'algorithm "md5"'),
        (f"sha256:{'F' * 64}", "lower-case hex"),
        (f"sha256:{'f' * 63}", "63 hex digits"),
        (f"sha512:{'f' * 64}", "64 hex digits, sha512 has 128"),
        (f"sha256:{'f' * 64}\n", "lower-case hex"),
        ("sha256:../../../../etc/passwd", "lower-case hex"),
        (f"sha256:/{'f' * 63}", "lower-case hex"),
        (f"SHA256:{'f' * 64}", "unsupported"),
        (f"sha256+b64:{'f' * 64}", "unsupported"),
        (f"sha256:{chr(0xFF11) * 64}", "lower-case hex"),
        ("f" * 64, "not a digest"),
        ("x" * 100_000, "not a digest"),
        ("", "not a digest"),
        (5, "has no digest"),
        (None, "has no digest"),
    ],
)
def test_b70_digests(text, says):
    assert says in refused(MANIFEST | {"layers": [layer(digest=text)]})


def test_b70_sha512():
    text = str(Digest.of(b"x", "sha512"))
    assert str(parse(MANIFEST | {"layers": [layer(digest=text)]}).layers[0].digest) == text


def test_b71_foreign_layers_keep_their_addresses():
    foreign = layer(1, mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["https://a/b"])
    manifest = parse(MANIFEST | {"layers": [foreign]})
    check_image(manifest, WHAT)
    assert manifest.layers[0].urls == ("https://a/b",)
    assert parse(MANIFEST | {"layers": [layer(urls=None)]}).layers[0].urls == ()


def test_b74_names_and_subjects_say_nothing():
    annotations = {"org.opencontainers.image.ref.name": "other:1"}
    parsed = parse(MANIFEST | {"annotations": annotations, "subject": {"digest": "nonsense"}})
    check_image(parsed, WHAT)


# Whatever it is, the only error is ContentError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
KEYS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "artifactType", "fsLayers"]


@given(st.binary(max_size=200))
def test_random_bytes(data):
    with pytest.raises(ContentError):
        parse_document(b"\x01" + data, None, WHAT)
    with pytest.raises(ContentError):
        parse_config(b"\x01" + data, parse(MANIFEST), WHAT)


@given(st.dictionaries(st.sampled_from(KEYS), values), st.sampled_from([None, OCI_INDEX, DOCKER_MANIFEST, "x"]))
def test_random_documents(document, header):
    check(document, header)


@given(st.data())
def test_mutated_documents(data):
    """One value anywhere in a good document replaced by another."""
    document = copy.deepcopy(data.draw(st.sampled_from([MANIFEST, INDEX])))
    place: object = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))  # type: ignore[arg-type]
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):  # type: ignore[index]
            break
        place = place[key]  # type: ignore[index]
    place[key] = data.draw(values)  # type: ignore[index]
    check(document, data.draw(st.sampled_from([None, OCI_INDEX, OCI_MANIFEST])))


def check(document: dict, header: str | None) -> None:
    try:
        parsed = parse(document, header)
        if isinstance(parsed, Manifest):
            check_image(parsed, WHAT)
        else:
            parsed.images()
    except ContentError:
        pass


@given(st.dictionaries(st.sampled_from(["rootfs", "os", "architecture", "config", "created"]), values))
def test_random_configs(document):
    try:
        parsed = parse_config(json.dumps(document).encode(), parse(MANIFEST | {"layers": []}), WHAT)
        assert isinstance(parsed.config, dict) and str(parsed.platform)
    except ContentError:
        pass


@given(st.text(max_size=80) | st.from_regex(r"sha(256|512):[0-9a-f]{60,70}", fullmatch=True))
def test_digests(text):
    try:
        parsed = Digest.parse(text)
    except InvalidDigest as error:
        assert str(error).isprintable()
        return
    assert str(parsed) == text and parsed.short == parsed.hex[:12]
    assert set(text.partition(":")[2]) <= set("0123456789abcdef")


@given(st.binary(max_size=50), st.sampled_from(["sha256", "sha512"]))
def test_digest_of(data, algorithm):
    found = Digest.of(data, algorithm)
    hasher = found.hasher()
    hasher.update(data)
    assert hasher.hexdigest() == found.hex and Digest.parse(str(found)) == found
