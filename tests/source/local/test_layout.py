"""OCI layouts in folders: which image is taken, what it is called, and what a broken or hostile layout may do."""

from __future__ import annotations

import base64
import json
import os
import threading

import pytest

from msb_pull.ground.errors import ContentError, LocalError, NotFoundError, UsageError
from msb_pull.image.digest import Digest
from msb_pull.image.platform import Platform
from tests.support.imagebuild import (
    CONTAINERD_NAME,
    OCI_CONFIG,
    OCI_MANIFEST,
    REF_NAME,
    LayoutBuilder,
    compress,
    config_bytes,
    encode,
    sha256,
    simple_layout,
)
from tests.support.local_images import AMD64, ONE, TWO, read

ARM64 = Platform("linux", "arm64")


@pytest.fixture
def layout(tmp_path):
    return LayoutBuilder(tmp_path / "layout")


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_an_image(local, tmp_path, compression):
    folder = simple_layout(tmp_path / "layout", [ONE, TWO], "3.11", compression)
    entry = json.loads((folder / "index.json").read_text())["manifests"][0]
    source = local.source(f"oci:{folder}:3.11")
    assert source.remote is False
    resolved = source.resolve(AMD64, explicit=True)
    assert str(resolved.digest) == entry["digest"] and sha256(resolved.manifest_bytes) == entry["digest"]
    assert str(resolved.platform) == "linux/amd64" and resolved.source == f"oci:{folder}"
    assert [str(x) for x in resolved.config.diff_ids] == [sha256(ONE), sha256(TWO)]
    assert str(resolved.manifest.config.digest) == sha256(resolved.config_bytes)
    blobs = [read(source, x) for x in resolved.manifest.layers]
    assert blobs == [compress(ONE, compression), compress(TWO, compression)]


def test_blobs_from_anywhere_and_from_several_threads(local, tmp_path):
    folder = simple_layout(tmp_path / "layout", [ONE, TWO], compression="plain")
    source = local.source(f"oci:{folder}:1")
    layers = source.resolve(AMD64, explicit=False).manifest.layers
    assert read(source, layers[1], offset=len(TWO) - 5, size=3) == TWO[-5:]
    assert read(source, layers[1], offset=len(TWO)) == b""
    with pytest.raises(ContentError):
        source.open_blob(layers[1], len(TWO) + 1)
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append((n % 2, read(source, layers[n % 2], size=100 + n))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == sorted([(0, ONE), (1, TWO)] * 4)


def test_relative_paths_and_symlinks_to_the_folder(local, tmp_path, monkeypatch):
    simple_layout(tmp_path / "My-Build", [ONE], "1.0")
    (tmp_path / "latest").symlink_to("My-Build")
    monkeypatch.chdir(tmp_path / "My-Build")
    assert str(local.resolve("oci:.").reference) == "localhost/my-build:1.0"
    assert str(local.resolve("oci:../latest/").reference) == "localhost/latest:1.0"
    assert local.resolve("oci:.").source == f"oci:{tmp_path}/My-Build"


# Names


@pytest.mark.parametrize(
    ("ref_name", "name", "recorded"),
    [
        ("3.11", None, "localhost/layout:3.11"),
        ("latest", "docker.io/library/python:latest", "docker.io/library/python:latest"),
        ("3.11", "quay.io/a/b:3.11", "quay.io/a/b:3.11"),
        ("docker.io/library/alpine:3", None, "docker.io/library/alpine:3"),
        ("alpine:3", None, "docker.io/library/alpine:3"),
        ("a/b", None, "docker.io/a/b:latest"),
        ("localhost:5000/a:1", None, "localhost:5000/a:1"),
        (None, "ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("3.11", "Not A Name", "localhost/layout:3.11"),
    ],
)
def test_recorded_under_the_name_it_carries(local, layout, ref_name, name, recorded):
    layout.add(layout.image([ONE]), ref_name, name=name)
    folder = layout.write()
    assert str(local.resolve(f"oci:{folder}").reference) == recorded
    assert str(local.resolve(f"oci:{folder}", "my/name").reference) == "docker.io/my/name:latest"
    for wanted in (ref_name, name, recorded, recorded.rpartition(":")[2]):
        if wanted:
            assert str(local.resolve(f"oci:{folder}:{wanted}").reference) == recorded


@pytest.mark.parametrize("ref_name", [None, "Not A Name", "-x", "a/UPPER:1", "https://x.y/z", "x" * 300])
def test_no_name_that_can_be_used(local, layout, ref_name):
    layout.add(layout.image([ONE]), ref_name)
    folder = layout.write()
    said = local.refused(UsageError, f"oci:{folder}", name=None)
    assert "--as NAME" in said and (ref_name is None or ref_name[:40] in said)
    assert str(local.resolve(f"oci:{folder}", "x:1").reference) == "docker.io/library/x:1"


def test_folder_that_is_no_name(local, tmp_path):
    folder = simple_layout(tmp_path / "my build", [ONE], "1")
    assert "--as NAME" in local.refused(UsageError, f"oci:{folder}", name=None)


def test_two_names_of_one_image(local, layout):
    entry = layout.image([ONE])
    layout.add(entry, "1.0")
    layout.add(entry, "latest")
    folder = layout.write()
    said = local.refused(UsageError, f"oci:{folder}", name=None)
    assert "localhost/layout:1.0, localhost/layout:latest" in said
    assert str(local.resolve(f"oci:{folder}:latest").reference) == "localhost/layout:latest"
    assert local.resolve(f"oci:{folder}", "x").reference.repository == "library/x"


def test_a_name_with_a_digest_must_be_true(local, layout):
    entry = layout.image([ONE])
    layout.add(entry, name=f"ghcr.io/a/b@{entry['digest']}")
    folder = layout.write()
    assert str(local.resolve(f"oci:{folder}").reference) == f"ghcr.io/a/b@{entry['digest']}"
    said = local.refused(ContentError, f"oci:{folder}", name=f"x@{sha256(b'another')}")
    assert entry["digest"] in said
    layout.entries.clear()
    layout.add(entry, name=f"ghcr.io/a/b@{sha256(b'another')}")
    assert "this is not ghcr.io/a/b@" in local.refused(ContentError, f"oci:{layout.write()}", name=None)


# Choice


def test_tag_among_several(local, layout):
    one, two = layout.add(layout.image([ONE]), "1"), layout.add(layout.image([TWO]), "2")
    folder = layout.write()
    assert str(local.resolve(f"oci:{folder}:2").digest) == two["digest"]
    assert str(local.resolve(f"oci:{folder}:{one['digest']}").digest) == one["digest"]
    said = local.refused(UsageError, f"oci:{folder}")
    assert "several images" in said and "1, 2" in said
    said = local.refused(NotFoundError, f"oci:{folder}:3")
    assert "no image '3'" in said and "it holds 1, 2" in said


def test_the_very_word_comes_first(local, layout):
    layout.add(layout.image([ONE]), "quay.io/a/b:1")
    exact = layout.add(layout.image([TWO]), "1")
    assert str(local.resolve(f"oci:{layout.write()}:1").digest) == exact["digest"]


def test_unnamed_and_named(local, layout):
    layout.add(layout.image([ONE]))
    named = layout.add(layout.image([TWO]), "x")
    folder = layout.write()
    assert "1 without a name" in local.refused(UsageError, f"oci:{folder}")
    assert str(local.resolve(f"oci:{folder}:x").digest) == named["digest"]


def test_nested_index(local, layout):
    images = [layout.image([x], platform=p, say_platform=True) for x, p in ((ONE, "linux/arm64"), (TWO, "linux/amd64"))]
    layout.add(layout.index([layout.index(images)]), "1")
    folder = layout.write()
    for platform, image in ((ARM64, images[0]), (AMD64, images[1])):
        resolved = local.resolve(f"oci:{folder}:1", platform=platform, explicit=True)
        assert str(resolved.digest) == image["digest"] and resolved.platform == platform
    said = local.refused(NotFoundError, f"oci:{folder}", platform=Platform("linux", "s390x"))
    assert "linux/amd64" in said


@pytest.mark.parametrize("tag", [None, "1"])
def test_platforms_side_by_side(local, layout, tag):
    """The same name for several platforms, without an index between: buildx and umoci write this."""
    images = [layout.image([x], platform=p, say_platform=True) for x, p in ((ONE, "linux/arm64"), (TWO, "linux/amd64"))]
    for image in images:
        layout.add(image, tag)
    folder = layout.write()
    for platform, image in ((ARM64, images[0]), (AMD64, images[1])):
        assert str(local.resolve(f"oci:{folder}", "x", platform=platform).digest) == image["digest"]
    assert "linux/arm64" in local.refused(NotFoundError, f"oci:{folder}", platform=Platform("linux", "386"))


def test_same_name_without_platforms(local, layout):
    for tar in (ONE, TWO):
        layout.add(layout.image([tar]), "1")
    assert "several images" in local.refused(UsageError, f"oci:{layout.write()}:1")


def test_b60_attestations_are_passed_over(local, layout):
    image = layout.image([ONE], say_platform=True)
    attestation = layout.blob(b"{}", OCI_MANIFEST, platform={"os": "unknown", "architecture": "unknown"})
    layout.add(image)
    layout.add(attestation)
    assert str(local.resolve(f"oci:{layout.write()}", "x").digest) == image["digest"]


def test_b64_one_image_for_another_platform(local, layout):
    layout.add(layout.image([ONE], platform="linux/arm64", say_platform=True), "1")
    folder = layout.write()
    assert str(local.resolve(f"oci:{folder}").platform) == "linux/arm64"
    assert len(local.warnings) == 1 and "linux/arm64" in local.warnings[0]
    assert "linux/arm64" in local.refused(NotFoundError, f"oci:{folder}", explicit=True)


def test_b65_artifact(local, layout):
    layout.add(layout.image([ONE], manifest={"artifactType": "text/x-thing"}), "1")
    assert "artifact of type text/x-thing" in local.refused(ContentError, f"oci:{layout.write()}:1")


def test_b66_no_layers(local, layout):
    layout.add(layout.image([]), "1")
    assert local.layers(f"oci:{layout.write()}:1") == []


def test_b69_inline_config(local, layout):
    data = config_bytes([ONE])
    inline = {"mediaType": OCI_CONFIG, "digest": sha256(data), "size": len(data)}
    inline["data"] = base64.b64encode(data).decode()
    layout.add(layout.image([ONE], manifest={"config": inline}), "1")
    layout.path(sha256(data)).unlink()
    assert local.resolve(f"oci:{layout.write()}:1").config_bytes == data
    for wrong in (data + b" ", data[:-1] + b" "):
        layout.entries.clear()
        inline["data"] = base64.b64encode(wrong).decode()
        layout.add(layout.image([TWO], manifest={"config": inline}), "1")
        local.refused(ContentError, f"oci:{layout.write()}:1")


def test_b70_sha512(local, layout):
    blob = compress(ONE)
    name = Digest.of(blob, "sha512")
    (layout.folder / "blobs" / "sha512").mkdir()
    (layout.folder / "blobs" / "sha512" / name.hex).write_bytes(blob)
    described = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": str(name), "size": len(blob)}
    layout.add(layout.image([ONE], manifest={"layers": [described]}), "1")
    assert local.layers(f"oci:{layout.write()}:1") == [blob]


# What is broken


def test_not_there(local, tmp_path):
    assert "no such folder" in local.refused(NotFoundError, f"oci:{tmp_path}/nowhere:1")
    (tmp_path / "file").write_text("x")
    assert f"oci-archive:{tmp_path}/file" in local.refused(NotFoundError, f"oci:{tmp_path}/file")
    (tmp_path / "empty").mkdir()
    assert "no index.json" in local.refused(NotFoundError, f"oci:{tmp_path}/empty")
    (tmp_path / "empty" / "version").write_text("Directory Transport Version: 1.1")
    assert "skopeo" in local.refused(NotFoundError, f"oci:{tmp_path}/empty")


def test_nothing_is_opened_before_it_is_asked(local, tmp_path):
    local.source(f"oci:{tmp_path}/nowhere:1")


def test_a_path_that_is_no_text(local, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    simple_layout(type(tmp_path)(folder), [ONE])
    assert local.resolve(f"oci:{folder}:1", "x").source == f"oci:{tmp_path}/\\xff"


NO_DIGEST = {"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, "size": 1, "digest": "sha256:../x"}]}
NO_INDEX = {"schemaVersion": 2, "config": {"mediaType": "x", "size": 1, "digest": sha256(b"")}, "layers": []}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"schemaVersion": 2, "manifests": {}}', "no list of manifests"),
        (encode(NO_DIGEST), "digest"),
        (b" " * (5 << 20), "larger than"),
        (encode(NO_INDEX), "is not an index"),
        (b'{"manifests": [], "manifests": []}', "appears twice"),
    ],
)
def test_broken_index(local, layout, data, says):
    (layout.folder / "index.json").write_bytes(data)
    said = local.refused(ContentError, f"oci:{layout.folder}:1")
    assert says in said and "index.json" in said


@pytest.mark.parametrize("manifests", [[], None])
def test_empty_index(local, layout, manifests):
    layout.write(manifests=manifests)
    assert "it contains no image" in local.refused(NotFoundError, f"oci:{layout.folder}")


@pytest.mark.parametrize("data", [b'{"imageLayoutVersion": "2.0.0"}', b"{}", b"", b'{"imageLayoutVersion": 1}'])
def test_layout_version(local, tmp_path, data):
    folder = simple_layout(tmp_path / "layout", [ONE])
    (folder / "oci-layout").write_bytes(data)
    assert "oci-layout" in (said := local.refused(ContentError, f"oci:{folder}:1")) or "layout version" in said
    (folder / "oci-layout").unlink()
    assert len(local.layers(f"oci:{folder}:1")) == 1


def blobs_of(folder):
    """The manifest's, the config's and the layer's file of the only image."""
    entry = json.loads((folder / "index.json").read_text())["manifests"][0]
    path = folder / "blobs" / entry["digest"].replace(":", "/")
    manifest = json.loads(path.read_text())
    names = [entry["digest"], manifest["config"]["digest"], manifest["layers"][0]["digest"]]
    return [folder / "blobs" / name.replace(":", "/") for name in names]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_blob_that_is_not_what_it_should_be(local, tmp_path, number):
    """Missing, shorter, longer, changed, or no file at all: named in the error; it never hangs."""
    folder = simple_layout(tmp_path / "layout", [ONE])
    path = blobs_of(folder)[number]
    name = f"blobs/sha256/{path.name}"
    data = path.read_bytes()
    argument = f"oci:{folder}:1"
    for wrong in (data[:-1], data + b"x", b""):
        path.write_bytes(wrong)
        said = local.refused(ContentError, argument)
        assert name in said and f"expected {len(data)} bytes, found {len(wrong)}" in said
    if number < 2:  # a layer's content is compared by whoever reads it
        path.write_bytes(data.replace(b"sha256", b"sha255", 1))
        said = local.refused(ContentError, argument)
        assert "does not match its digest" in said and "copy it again" in said and "registry" not in said
    path.unlink()
    assert f"{name} is missing" in local.refused(ContentError, argument)
    os.mkfifo(path)
    assert f"{name} is not a regular file" in local.refused(ContentError, argument)
    path.unlink()
    path.mkdir()
    assert f"{name} is not a regular file" in local.refused(ContentError, argument)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_symlinks_are_not_followed(local, tmp_path, number):
    folder = simple_layout(tmp_path / "layout", [ONE])
    path = blobs_of(folder)[number]
    path.rename(tmp_path / "elsewhere")
    for target in (tmp_path / "elsewhere", "/dev/zero", "/etc/passwd", "nowhere"):
        path.symlink_to(target)
        said = local.refused(ContentError, f"oci:{folder}:1")
        assert path.name in said and "symlink" in said
        path.unlink()


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "index.json", "oci-layout"])
def test_symlinks_on_the_way_are_not_followed(local, tmp_path, name):
    folder = simple_layout(tmp_path / "layout", [ONE])
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    said = local.refused(ContentError, f"oci:{folder}:1")
    assert name.rpartition("/")[2] in said and "symlink" in said


def test_huge_config(local, layout):
    huge = config_bytes([ONE], note="x" * (5 << 20))
    described = layout.blob(huge, OCI_CONFIG)
    layout.add(layout.image([ONE], manifest={"config": described}), "1")
    assert "larger than" in local.refused(ContentError, f"oci:{layout.write()}:1")


def test_sparse_giant_manifest_is_not_read(local, layout):
    entry = layout.image([ONE])
    os.truncate(layout.path(entry["digest"]), 1 << 40)
    layout.add(entry | {"size": 1 << 40}, "1")
    assert "larger than" in local.refused(ContentError, f"oci:{layout.write()}:1")


def test_index_in_a_circle(local, layout):
    """A digest cannot hold itself; a chain that is too long stands for it."""
    entry = layout.image([ONE], say_platform=True)
    for _ in range(7):
        entry = layout.index([entry])
    layout.add(entry, "1")
    assert "nested too deeply" in local.refused(ContentError, f"oci:{layout.write()}:1")


def test_file_that_shrinks_while_it_is_read(local, tmp_path):
    folder = simple_layout(tmp_path / "layout", [TWO], compression="plain")
    source = local.source(f"oci:{folder}:1")
    layer = source.resolve(AMD64, explicit=False).manifest.layers[0]
    with source.open_blob(layer, 0) as stream:
        assert stream.read(10) == TWO[:10]
        os.truncate(blobs_of(folder)[2], 100)
        with pytest.raises(ContentError, match="became shorter"):
            while stream.read(1000):
                pass


def test_unreadable(local, tmp_path, monkeypatch):
    folder = simple_layout(tmp_path / "layout", [ONE])
    closed, real = blobs_of(folder)[2].name, os.open

    def fails(name, *arguments, **named):
        if name == closed:
            raise PermissionError(13, "Permission denied", name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(os, "open", fails)
    said = local.refused(LocalError, f"oci:{folder}:1")
    assert closed in said and "Permission denied" in said and "you may read it" in said


def test_annotations_that_are_odd(local, layout):
    layout.add(layout.image([ONE]) | {"annotations": {REF_NAME: 5, CONTAINERD_NAME: "", "x": "\x1b[31m"}})
    assert local.layers(f"oci:{layout.write()}")
