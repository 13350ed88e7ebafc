"""OCI archives and docker archives: as their makers write them, from files and pipes, and broken ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import resource
import subprocess
import tarfile
import threading
import time
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msb_pull.ground.errors import Cancelled, ContentError, LocalError, MsbPullError, NotFoundError, UsageError
from msb_pull.ground.pax import records
from msb_pull.image.manifest import OCI_LAYER
from msb_pull.image.platform import Platform
from msb_pull.image.reference import parse_argument
from msb_pull.source.local import archive, spool, tarindex
from tests.conftest import need
from tests.support.imagebuild import (
    REF_NAME,
    DockerImage,
    LayoutBuilder,
    archive_bytes,
    blob_name,
    compress,
    directory,
    docker_archive,
    docker_members,
    docker_members_with_layout,
    folder_members,
    index_document,
    link,
    oci_archive,
    regular,
    sha256,
    simple_layout,
)
from tests.support.local_images import AMD64, ONE, TWO, read

FORMATS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]


@pytest.fixture
def layout(tmp_path):
    """A layout of one image with two layers, called 3.11."""
    return simple_layout(tmp_path / "layout", [ONE, TWO], "3.11")


@pytest.fixture
def docker(tmp_path):
    """A docker-archive of one image with two layers, called example.com/app:1."""
    return docker_archive(tmp_path / "image.tar", DockerImage([ONE, TWO]))


def write(path, members, format=tarfile.PAX_FORMAT):
    path.write_bytes(archive_bytes(members, format))
    return path


# OCI archives


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("prefix", ["", "./", ".//./"])
def test_oci_archive(local, layout, tmp_path, compression, prefix):
    file = oci_archive(layout, tmp_path / "python.tar", compression, prefix)
    resolved = local.resolve(f"oci-archive:{file}")
    assert str(resolved.digest) == json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    assert str(resolved.reference) == "localhost/python:3.11" and resolved.source == f"oci-archive:{file}"
    assert local.opened[-1].remote is False
    for name in ("", ":3.11", f":{resolved.digest}"):
        assert local.layers(f"oci-archive:{file}{name}") == [compress(ONE), compress(TWO)]
    assert "it holds 3.11" in local.refused(NotFoundError, f"oci-archive:{file}:3.12")


@pytest.mark.parametrize("format", FORMATS)
def test_formats_of_tar(local, layout, tmp_path, format):
    file = write(tmp_path / "x.tar", folder_members(layout, "a/../" + "./" * 60), format)
    assert local.layers(f"oci-archive:{file}") == [compress(ONE), compress(TWO)]


@pytest.mark.parametrize("name", ["image.oci.tar.gz", "image.tgz", "image", "image.tar.zst", "IMAGE.tar"])
def test_name_of_the_file(local, layout, tmp_path, name):
    file = oci_archive(layout, tmp_path / name)
    assert str(local.resolve(f"oci-archive:{file}").reference) == "localhost/image:3.11"


@pytest.mark.parametrize("name", [".tar", "two words.tar"])
def test_name_of_the_file_that_is_no_name(local, layout, tmp_path, name):
    file = oci_archive(layout, tmp_path / name)
    assert "--as NAME" in local.refused(UsageError, f"oci-archive:{file}", name=None)
    assert len(local.layers(f"oci-archive:{file}", "x")) == 2


def test_members_in_any_order_and_others_between(local, layout, tmp_path):
    members = folder_members(layout)
    random.Random(5).shuffle(members)
    members.insert(1, regular("README", b"x" * 700))
    members.insert(3, link("latest", "index.json"))
    assert len(local.layers(f"oci-archive:{write(tmp_path / 'x.tar', members)}")) == 2


def test_links_inside(local, layout, tmp_path):
    """A blob may be a link to another member, never to anything else."""
    members = [x for x in folder_members(layout) if x[0].name != "index.json"]
    index = (layout / "index.json").read_bytes()
    ways = [
        [regular("real", index), link("index.json", "real")],
        [regular("a/b/real", index), link("index.json", "./a/b/../b/real")],
        [regular("real", index), link("index.json", "real", tarfile.LNKTYPE)],
        [regular("real", index), link("index.json", "./real", tarfile.LNKTYPE)],
        [regular("real", index), link("x/one", "../real"), link("index.json", "x/one")],
    ]
    for number, way in enumerate(ways):
        file = write(tmp_path / f"{number}.tar", members + way)
        assert len(local.layers(f"oci-archive:{file}")) == 2


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../../etc/passwd", "..", ".", "", "nowhere", "index.json", "blobs", "x/../../index2"]
)
def test_links_that_lead_nowhere_or_out(local, layout, tmp_path, kind, target):
    members = [x for x in folder_members(layout) if x[0].name != "index.json"]
    file = write(tmp_path / "x.tar", [*members, link("index.json", target, kind)])
    said = local.refused(ContentError, f"oci-archive:{file}")
    assert "index.json" in said


def test_names_that_lead_out_are_never_looked_up(local, layout, tmp_path):
    bad = [regular("../index.json", b"x"), regular("/index.json", b"x"), regular("blobs/../../x", b"x")]
    file = write(tmp_path / "x.tar", [*bad, *folder_members(layout), *bad])
    assert len(local.layers(f"oci-archive:{file}")) == 2
    assert not (tmp_path / "index.json").exists()


def test_twice(local, layout, tmp_path):
    members = folder_members(layout)
    again = [directory("blobs"), directory("blobs/"), regular("./other", b"1"), regular("other", b"2")]
    assert len(local.layers(f"oci-archive:{write(tmp_path / 'a.tar', members + again)}")) == 2
    for name in ("index.json", members[-2][0].name):
        file = write(tmp_path / "b.tar", [*members, regular(f"./{name}", b"{}")])
        assert f"{name} appears twice" in local.refused(ContentError, f"oci-archive:{file}")


def test_packed_with_its_folder(local, layout, tmp_path):
    file = oci_archive(layout, tmp_path / "x.tar", prefix="layout/")
    said = local.refused(ContentError, f"oci-archive:{file}")
    assert "neither index.json nor manifest.json" in said and "tar -C FOLDER" in said


def test_the_wrong_transport(local, layout, docker, tmp_path):
    assert "docker-archive:" in local.refused(ContentError, f"oci-archive:{docker}")
    assert len(local.layers(f"docker-archive:{oci_archive(layout, tmp_path / 'x.tar')}")) == 2
    assert f"oci:{layout}" in local.refused(NotFoundError, f"oci-archive:{layout}")
    assert "no such file" in local.refused(NotFoundError, f"docker-archive:{tmp_path}/nothing")
    assert "not a file" in local.refused(LocalError, "docker-archive:/dev/zero")


def test_two_platforms(local, tmp_path):
    made = LayoutBuilder(tmp_path / "layout")
    images = [made.image([x], platform=f"linux/{a}", say_platform=True) for x, a in ((ONE, "arm64"), (TWO, "amd64"))]
    made.add(made.index(images), "1")
    file = oci_archive(made.write(), tmp_path / "x.tar")
    for architecture, tar in (("arm64", ONE), ("amd64", TWO)):
        found = local.layers(f"oci-archive:{file}:1", platform=Platform("linux", architecture), explicit=True)
        assert found == [compress(tar)]


# docker archives


@pytest.mark.parametrize("style", ["podman", "old", "docker"])
@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
def test_docker_archive(local, tmp_path, style, compression):
    image = DockerImage([ONE, TWO, ONE])
    file = docker_archive(tmp_path / "x.tar", image, style=style, compression=compression)
    resolved = local.resolve(f"docker-archive:{file}")
    assert str(resolved.reference) == "example.com/app:1" and str(resolved.platform) == "linux/amd64"
    assert [str(x.digest) for x in resolved.manifest.layers] == [sha256(ONE), sha256(TWO), sha256(ONE)]
    assert [x.size for x in resolved.manifest.layers] == [len(ONE), len(TWO), len(ONE)]
    assert {x.media_type for x in resolved.manifest.layers} == {OCI_LAYER}
    assert sha256(resolved.manifest_bytes) == str(resolved.digest)
    assert json.loads(resolved.config_bytes)["rootfs"]["diff_ids"] == [sha256(x) for x in (ONE, TWO, ONE)]
    assert local.layers(f"docker-archive:{file}") == [ONE, TWO, ONE]


def test_the_manifest_is_always_the_same(local, tmp_path):
    """However the archive was written: the digest depends on config and layers alone."""
    found = set()
    for style in ("podman", "old", "docker"):
        file = docker_archive(tmp_path / f"{style}.tar", DockerImage([ONE, TWO]), style=style)
        found.update(str(local.resolve(f"docker-archive:{file}").digest) for _ in range(2))
    assert len(found) == 1


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_layers_inside(local, tmp_path, compression):
    """Builders other than Docker write them: their digest is that of the compressed bytes."""
    file = write(tmp_path / "x.tar", docker_members(DockerImage([ONE, TWO]), compression=compression))
    resolved = local.resolve(f"docker-archive:{file}")
    stored = [compress(x, compression) for x in (ONE, TWO)]
    assert [str(x.digest) for x in resolved.manifest.layers] == [sha256(x) for x in stored]
    assert {x.media_type for x in resolved.manifest.layers} == {f"{OCI_LAYER}+{compression}"}
    assert local.layers(f"docker-archive:{file}") == stored


def test_layout_is_preferred(local, tmp_path):
    """Since version 25 Docker writes a layout as well, which has the digests."""
    made = LayoutBuilder(tmp_path / "layout")
    entry = made.image([ONE], "plain")
    made.add(made.index([entry]), "3", name="docker.io/library/app:3")
    made.write()
    file = write(tmp_path / "x.tar", docker_members_with_layout(made, DockerImage([ONE], ["app:3"])))
    for name in ("", ":app:3", ":docker.io/library/app:3", ":3"):
        for transport in ("docker-archive", "oci-archive"):
            resolved = local.resolve(f"{transport}:{file}{name}")
            assert str(resolved.digest) == entry["digest"]
            assert str(resolved.reference) == "docker.io/library/app:3"


def test_one_of_several(local, tmp_path):
    images = [DockerImage([ONE], ["a:1", "quay.io/a:1"]), DockerImage([TWO], ["b/c:2"]), DockerImage([ONE, TWO], None)]
    file = docker_archive(tmp_path / "x.tar", *images)
    for wanted, layers, recorded in (
        ("a:1", [ONE], "docker.io/library/a:1"),
        ("docker.io/library/a:1", [ONE], "docker.io/library/a:1"),
        ("quay.io/a:1", [ONE], "quay.io/a:1"),
        ("b/c:2", [TWO], "docker.io/b/c:2"),
        ("2", [TWO], "docker.io/b/c:2"),
    ):
        assert local.layers(f"docker-archive:{file}:{wanted}") == layers
        assert str(local.resolve(f"docker-archive:{file}:{wanted}").reference) == recorded
    said = local.refused(UsageError, f"docker-archive:{file}")
    assert "several images" in said and "a:1, b/c:2, quay.io/a:1, 1 without a name" in said
    assert "it holds a:1" in local.refused(NotFoundError, f"docker-archive:{file}:b/c:3")


def test_names_of_one_image(local, tmp_path):
    two = docker_archive(tmp_path / "two.tar", DockerImage([ONE], ["a:1", "a:2"]))
    assert "docker.io/library/a:1, docker.io/library/a:2" in local.refused(
        UsageError, f"docker-archive:{two}", name=None
    )
    assert local.layers(f"docker-archive:{two}", "x:1") == [ONE]
    for tags in (None, [], ["<none>:<none>"]):
        none = docker_archive(tmp_path / "none.tar", DockerImage([ONE], tags))
        assert "--as NAME" in local.refused(UsageError, f"docker-archive:{none}", name=None)
        assert str(local.resolve(f"docker-archive:{none}", "x:1").reference) == "docker.io/library/x:1"


def test_platform_of_the_config(local, tmp_path):
    file = docker_archive(tmp_path / "x.tar", DockerImage([ONE], config={"architecture": "arm64", "variant": "v8"}))
    assert str(local.resolve(f"docker-archive:{file}").platform) == "linux/arm64"
    assert len(local.warnings) == 1
    assert "linux/arm64" in local.refused(NotFoundError, f"docker-archive:{file}", explicit=True)


def test_no_layers(local, tmp_path):
    for rootfs in ({"type": "layers", "diff_ids": None}, None):
        file = docker_archive(tmp_path / "x.tar", DockerImage([], config={"rootfs": rootfs}))
        assert local.layers(f"docker-archive:{file}") == []


def changed(members, **entry):
    """The members with other values in the only entry of manifest.json."""
    listed = json.loads(next(data for info, data in members if info.name == "manifest.json"))
    listed[0] |= entry
    rest = [x for x in members if x[0].name != "manifest.json"]
    return [*rest, regular("manifest.json", json.dumps(listed).encode())]


LAYER = f"{sha256(ONE).partition(':')[2]}.tar"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"Config": None}, "names no config"),
        ({"Config": "../../etc/passwd"}, "../../etc/passwd is not in the archive"),
        ({"Config": "/etc/passwd"}, "/etc/passwd is not in the archive"),
        ({"Config": LAYER}, "not valid JSON"),
        ({"Config": "manifest.json"}, "not a JSON object"),
        ({"Layers": []}, "has 0 layers, its config 1 diff_ids"),
        ({"Layers": [LAYER, LAYER]}, "has 2 layers, its config 1 diff_ids"),
        ({"Layers": ["../x"]}, "../x is not in the archive"),
        ({"Layers": ["x" * 5000]}, "is not in the archive"),
        ({"Layers": ["/etc/passwd"]}, "/etc/passwd is not in the archive"),
        ({"Layers": [5]}, "no list of strings"),
        ({"Layers": "x"}, "no list of strings"),
        ({"RepoTags": "x"}, "no list of strings"),
    ],
)
def test_hostile_lists(local, tmp_path, entry, says):
    file = write(tmp_path / "x.tar", changed(docker_members(DockerImage([ONE])), **entry))
    assert says in local.refused(ContentError, f"docker-archive:{file}")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b"{}", "not a list of images"),
        (b"[5]", "not an object"),
        (b'[{"Config": "a", "Config": "b"}]', "appears twice"),
        (b" " * (5 << 20), "larger than"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_lists(local, tmp_path, data, says):
    file = write(tmp_path / "x.tar", [regular("manifest.json", data)])
    said = local.refused(ContentError, f"docker-archive:{file}")
    assert says in said and "manifest.json" in said


def test_nothing_in_it(local, tmp_path):
    assert "it contains no image" in local.refused(
        NotFoundError, f"docker-archive:{write(tmp_path / 'a.tar', [regular('manifest.json', b'[]')])}"
    )
    assert "before version 1.10" in local.refused(
        ContentError, f"docker-archive:{write(tmp_path / 'b.tar', [regular('repositories', b'{}')])}"
    )
    assert "neither" in local.refused(ContentError, f"docker-archive:{write(tmp_path / 'c.tar', [])}")


def test_layer_that_is_a_link(local, tmp_path):
    members = [x for x in docker_members(DockerImage([ONE])) if x[0].name != LAYER]
    for target in ("/etc/passwd", "../../x", LAYER):
        file = write(tmp_path / "x.tar", [*members, link(LAYER, target)])
        assert LAYER in local.refused(ContentError, f"docker-archive:{file}")


def test_layer_that_is_not_its_diff_id(local, tmp_path):
    """A layer is recorded under what its config says, so that whoever reads it finds out."""
    members = [x for x in docker_members(DockerImage([ONE])) if x[0].name != LAYER]
    file = write(tmp_path / "x.tar", [*members, regular(LAYER, TWO)])
    resolved = local.resolve(f"docker-archive:{file}")
    assert str(resolved.manifest.layers[0].digest) == sha256(ONE)
    assert read(local.opened[-1], resolved.manifest.layers[0]) == TWO


def test_two_files_for_one_layer(local, tmp_path):
    members = docker_members(DockerImage([ONE, ONE]))
    file = write(tmp_path / "x.tar", [*changed(members, Layers=[LAYER, "other"]), regular("other", ONE + b"\0" * 512)])
    assert "two sizes" in local.refused(ContentError, f"docker-archive:{file}")


def test_several_threads_read_one_archive(local, docker):
    source = local.source(f"docker-archive:{docker}")
    layers = source.resolve(AMD64, explicit=False).manifest.layers
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append((n % 2, read(source, layers[n % 2], size=997 + n))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == sorted([(0, ONE), (1, TWO)] * 4)
    assert read(source, layers[1], offset=60_000) == TWO[60_000:]


# Standard input, pipes, compression


def piped(local, data: bytes | None, text: str = "docker-archive:-", name: str | None = None, pace: float = 0):
    """Resolves what a pipe delivers; returns source and image. None: a pipe that delivers nothing and stays open."""
    readable, writable = os.pipe()

    def feed():
        with os.fdopen(writable, "wb", buffering=0) as out:
            try:
                step = 1000 if pace else 1 << 30
                for at in range(0, len(data or b""), step):
                    out.write(data[at : at + step])
                    time.sleep(pace)
                while data is None and not local.cancel.is_set():
                    time.sleep(0.02)
            except BrokenPipeError:
                pass

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        argument = parse_argument(text)
        source = archive.open_archive(argument, name, local.scratch, local.job, stdin=readable)
        local.opened.append(source)
        return source, source.resolve(AMD64, explicit=False)
    finally:
        os.close(readable)
        thread.join(20)


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("pace", [0, 0.0001])
def test_docker_archive_from_a_pipe(local, docker, compression, pace):
    source, resolved = piped(local, compress(docker.read_bytes(), compression), pace=pace)
    assert str(resolved.reference) == "example.com/app:1" and resolved.source == "docker-archive:-"
    assert [read(source, x) for x in resolved.manifest.layers] == [ONE, TWO]
    assert os.listdir(local.scratch) == []


def test_oci_archive_from_a_pipe(local, layout, tmp_path):
    data = oci_archive(layout, tmp_path / "x.tar").read_bytes()
    source, resolved = piped(local, data, "oci-archive:-:3.11", "my:1")
    assert [read(source, x) for x in resolved.manifest.layers] == [compress(ONE), compress(TWO)]
    with pytest.raises(UsageError, match="has no name"):
        piped(local, data, "oci-archive:-")


@pytest.mark.parametrize("skip", [0, 7])
def test_standard_input_that_is_a_file(local, docker, tmp_path, skip):
    """Read in place from its beginning; from anywhere else it is copied."""
    (tmp_path / "x").write_bytes(b"x" * skip + docker.read_bytes())
    handle = os.open(tmp_path / "x", os.O_RDONLY)
    os.lseek(handle, skip, os.SEEK_SET)
    source = archive.open_archive(parse_argument("docker-archive:-"), None, local.scratch, local.job, stdin=handle)
    local.opened.append(source)
    assert len(source.resolve(AMD64, explicit=False).manifest.layers) == 2
    os.close(handle)


def test_named_pipe(local, docker, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(docker.read_bytes()))
    thread.start()
    assert local.layers(f"docker-archive:{tmp_path}/pipe") == [ONE, TWO]
    thread.join(20)


def test_empty_input(local, tmp_path):
    with pytest.raises(ContentError, match="is empty") as caught:
        piped(local, b"")
    assert "program before the pipe" in caught.value.cause
    (tmp_path / "x.tar").write_bytes(b"")
    assert "too short" in local.refused(ContentError, f"docker-archive:{tmp_path}/x.tar")


def test_terminal(local):
    controller, terminal = os.openpty()
    with pytest.raises(UsageError, match="terminal"):
        spool.open_archive_file("-", "docker-archive:-", local.scratch, local.cancel, stdin=terminal)
    os.close(controller)
    os.close(terminal)


def test_closed_standard_input(local):
    with pytest.raises(LocalError, match="no standard input"):
        spool.open_archive_file("-", "docker-archive:-", local.scratch, local.cancel, stdin=987)


def test_cancelled_while_waiting_for_input(local):
    threading.Timer(0.3, local.cancel.set).start()
    with pytest.raises(Cancelled):
        piped(local, None)


def test_cancelled_before_reading(local, docker, tmp_path):
    local.cancel.set()
    for compression in ("plain", "gzip"):
        (tmp_path / "y.tar").write_bytes(compress(docker.read_bytes(), compression))
        with pytest.raises(Cancelled):
            local.resolve(f"docker-archive:{tmp_path}/y.tar")


def test_no_scratch_folder(local, docker, tmp_path):
    """In a dry run there may be no store yet."""
    local.scratch.rmdir()
    (tmp_path / "x.tar.gz").write_bytes(compress(docker.read_bytes()))
    assert local.layers(f"docker-archive:{tmp_path}/x.tar.gz") == [ONE, TWO]
    local.scratch.mkdir()


def test_disk_full(local, docker, tmp_path, monkeypatch):
    class Full(io.RawIOBase):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", lambda **named: Full())
    (tmp_path / "x.tar.gz").write_bytes(compress(docker.read_bytes()))
    assert "no space left" in local.refused(LocalError, f"docker-archive:{tmp_path}/x.tar.gz")


COMPRESSIONS = {"gzip": compress, "zstd": lambda data: compress(data, "zstd")}


@pytest.fixture(params=["gzip", "zstd", "bzip2", "xz"])
def squeeze(request):
    """Compresses, as one stream."""
    if request.param == "bzip2":
        return bz2.compress
    if request.param == "xz":
        return lzma.compress
    return COMPRESSIONS[request.param]


def test_whole_archive_compressed(local, docker, tmp_path, squeeze):
    (tmp_path / "x").write_bytes(squeeze(docker.read_bytes()))
    assert local.layers(f"docker-archive:{tmp_path}/x") == [ONE, TWO]


def test_several_streams_and_padding(local, docker, tmp_path, squeeze):
    """pigz, pzstd and `cat` make files of several streams; tapes and block devices add zeros."""
    data = docker.read_bytes()
    (tmp_path / "x").write_bytes(squeeze(data[:5000]) + squeeze(b"") + squeeze(data[5000:]) + bytes(10_000))
    assert local.layers(f"docker-archive:{tmp_path}/x") == [ONE, TWO]


@pytest.mark.parametrize("rest", [b"x", b"\0\0x", b"\x1f\x8b", bytes(2 << 20) + b"x"])
def test_garbage_after_the_stream(local, docker, tmp_path, squeeze, rest):
    (tmp_path / "x").write_bytes(squeeze(docker.read_bytes()) + rest)
    assert "stream is" in local.refused(ContentError, f"docker-archive:{tmp_path}/x")


def test_cut_and_damaged_streams(local, docker, tmp_path, squeeze):
    data = squeeze(docker.read_bytes())
    for cut in (len(data) - 1, len(data) // 2, 7):
        (tmp_path / "x").write_bytes(data[:cut])
        assert "stream is" in local.refused(ContentError, f"docker-archive:{tmp_path}/x")
    middle = len(data) // 2
    (tmp_path / "x").write_bytes(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
    local.refused(ContentError, f"docker-archive:{tmp_path}/x")


def test_memory_does_not_grow_with_what_is_inflated(local, tmp_path):
    """A gigabyte of zeros in a megabyte: to the temporary file, piece by piece."""
    bomb = compress(bytes(64 << 20)) * 4
    (tmp_path / "x").write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handle = spool.open_archive_file(str(tmp_path / "x"), "x", local.scratch, local.cancel)
    assert os.fstat(handle).st_size == 256 << 20
    os.close(handle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000


# Damaged archives


def test_truncated_anywhere(local, docker, tmp_path):
    """Every byte that an image needs: cut off before it, the archive is refused, and never read in part."""
    data = docker.read_bytes().rstrip(b"\0")
    file = tmp_path / "x.tar"
    for cut in [*range(1, 600, 97), *range(len(data) - 1, 0, -1999)]:
        file.write_bytes(data[:cut])
        local.refused(ContentError, f"docker-archive:{file}")


def test_without_the_blocks_at_the_end(local, docker):
    data = docker.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    for tail in (b"", bytes(512), bytes(1024), bytes(512) + b"anything"):
        docker.write_bytes(data + tail)
        assert local.layers(f"docker-archive:{docker}") == [ONE, TWO]


def header_at(data: bytes, name: bytes) -> int:
    return next(at for at in range(0, len(data), 512) if data[at : at + len(name)] == name)


def with_field(data: bytes, name: bytes, field: slice, value: bytes) -> bytes:
    """The archive with one field of one header replaced, and the checksum right again."""
    at = header_at(data, name)
    header = bytearray(data[at : at + 512])
    header[field] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


SIZE, TYPE = slice(124, 136), slice(156, 157)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (SIZE, b"77777777777\0", "cut off"),
        (SIZE, b"\x80" + b"\x7f" * 11, "cut off"),
        (SIZE, b"\xff" * 12, "no valid size"),
        (SIZE, b"-0000000001\0", "no valid size"),
        (SIZE, b"0x000000010\0", "no valid size"),
        (SIZE, b"00000000009\0", "no valid size"),
        (TYPE, b"S", "--sparse"),
        (TYPE, b"x", "extended header"),
        (TYPE, b"1", "is no"),
        (TYPE, b"5", "not a regular file"),
        (TYPE, b"3", "not a regular file"),
        (TYPE, b"Z", "not a regular file"),
    ],
)
def test_hostile_headers(local, docker, field, value, says):
    docker.write_bytes(with_field(docker.read_bytes(), b"manifest.json", field, value))
    said = local.refused(ContentError, f"docker-archive:{docker}")
    assert says in said or (value == b"1" and "not in the archive" in said) or (field == TYPE and "damaged" in said)


def test_damaged_header(local, docker):
    data = docker.read_bytes()
    at = header_at(data, b"manifest.json")
    docker.write_bytes(data[: at + 3] + b"X" + data[at + 4 :])
    assert f"damaged at byte {at}" in local.refused(ContentError, f"docker-archive:{docker}")
    docker.write_bytes(b"X" + data[1:])
    assert "not a tar archive" in local.refused(ContentError, f"docker-archive:{docker}")


@pytest.mark.parametrize("data", [b"x", b"\0" * 100, random.Random(3).randbytes(5000), b"PK\3\4" * 500])
def test_no_archive(local, tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert "not a tar archive" in local.refused(ContentError, f"docker-archive:{tmp_path}/x")


def test_old_checksums_and_large_sizes(local, docker, tmp_path):
    """Sums of signed bytes, sizes in base 256 and in PAX headers."""
    data = with_field(docker.read_bytes(), b"manifest.json", slice(265, 271), b"\xe9\xe9\xe9\xe9\xe9\xe9")
    at = header_at(data, b"manifest.json")
    signed = sum(x - 256 if x > 127 else x for x in data[at : at + 148] + b" " * 8 + data[at + 156 : at + 512])
    docker.write_bytes(data[: at + 148] + b"%06o\0 " % signed + data[at + 156 :])
    assert len(local.layers(f"docker-archive:{docker}")) == 2
    size = int(data[at + 124 : at + 135], 8)
    docker.write_bytes(with_field(data, b"manifest.json", SIZE, b"\x80" + size.to_bytes(11, "big")))
    assert len(local.layers(f"docker-archive:{docker}")) == 2
    members = docker_members(DockerImage([ONE]))
    for info, content in members:
        info.pax_headers = {"size": str(len(content)), "comment": "x" * 2000}
    plain = archive_bytes(members)
    for info, _ in members:
        plain = with_field(plain, info.name.encode(), SIZE, b"00000000000\0")
    docker.write_bytes(plain)
    assert local.layers(f"docker-archive:{docker}") == [ONE]


def test_long_names(local, tmp_path):
    name = "/".join(["folder" * 12] * 5) + "/layer.tar"
    members = [x for x in docker_members(DockerImage([ONE])) if x[0].name != LAYER]
    listed = [*changed(members, Layers=[name]), regular(name, ONE)]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert local.layers(f"docker-archive:{write(tmp_path / 'x.tar', listed, format)}") == [ONE]
    linked = [*changed(members, Layers=["l"]), link("l", name), regular(name, ONE)]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert local.layers(f"docker-archive:{write(tmp_path / 'x.tar', linked, format)}") == [ONE]


@pytest.mark.parametrize(
    "payload", [b"x", b"5 a=b\n", b"999 path=x\n", b"-1 path=x\n", b"0 path=x\n", b"10 path=x", b" path=x\n", b"3 =\n"]
)
def test_malformed_extended_headers(local, tmp_path, payload):
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, len(payload)
    file = write(tmp_path / "x.tar", [(extended, payload), *docker_members(DockerImage([ONE]))], tarfile.USTAR_FORMAT)
    said = local.refused(ContentError, f"docker-archive:{file}")
    assert "malformed" in said or "cut off" in said


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_layers_in_formats_that_are_not_read_are_named(local, tmp_path, pack):
    members = [
        regular(info.name, pack(data) if info.name == LAYER else data)
        for info, data in docker_members(DockerImage([ONE]))
    ]
    said = local.refused(ContentError, f"docker-archive:{write(tmp_path / 'x.tar', members)}")
    assert "bzip2 or xz" in said and LAYER in said


def test_many_records_are_read_without_copying_what_follows():
    longest = []

    class Watched(bytes):
        def __getitem__(self, key):
            found = super().__getitem__(key)
            longest.append(len(found))
            return found

    many = 10_000
    assert len(list(records(Watched(b"6 a=b\n" * many)))) == many
    assert max(longest) < 10


def test_of_several_extended_headers_the_last_counts(local, tmp_path):
    def extended(payload):
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, len(payload)
        return info, payload

    name = "elsewhere"
    members = [x for x in docker_members(DockerImage([ONE])) if x[0].name != LAYER]
    members = [*changed(members, Layers=[name]), extended(b"11 path=zz\n"), extended(b"6 a=b\n")]
    file = write(tmp_path / "x.tar", [*members, regular(name, ONE)], tarfile.USTAR_FORMAT)
    assert local.layers(f"docker-archive:{file}") == [ONE]


def test_huge_extended_header(local, tmp_path):
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, 2 << 20
    file = write(tmp_path / "x.tar", [(extended, bytes(2 << 20))], tarfile.USTAR_FORMAT)
    assert "2097152 bytes" in local.refused(ContentError, f"docker-archive:{file}")


def test_too_many_members(local, tmp_path, monkeypatch):
    monkeypatch.setattr(tarindex, "_MAX_MEMBERS", 50)
    file = write(tmp_path / "x.tar", [regular(str(n), b"") for n in range(60)])
    assert "more than 50 members" in local.refused(ContentError, f"docker-archive:{file}")


def test_links_in_a_circle(local, layout, tmp_path):
    file = write(tmp_path / "x.tar", [link("index.json", "b"), link("b", "c"), link("c", "index.json")])
    assert "circle" in local.refused(ContentError, f"oci-archive:{file}")


GOOD = archive_bytes(docker_members(DockerImage([ONE])))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes(local, tmp_path_factory, data):
    """Wherever it is hit, an archive gives ContentError or an image; nothing else, and never a wrong digest."""
    broken = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "flipped.tar"
    file.write_bytes(broken)
    source = local.source(f"docker-archive:{file}", "x")
    try:
        resolved = source.resolve(AMD64, explicit=False)
        for layer in resolved.manifest.layers:
            read(source, layer)
        assert sha256(resolved.manifest_bytes) == str(resolved.digest)
    except (ContentError, NotFoundError):
        pass
    finally:
        source.close()


# What other programs make


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_skopeo(local, layout, tmp_path, transport):
    need("skopeo")
    target = f"{transport}:{tmp_path}/made:example.com/team/app:1"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{layout}:3.11", target], check=True, timeout=60)
    resolved = local.resolve(f"{transport}:{tmp_path}/made")
    assert str(resolved.reference) == "example.com/team/app:1"
    assert [str(x) for x in resolved.config.diff_ids] == [sha256(ONE), sha256(TWO)]
    assert len(local.layers(target)) == 2
    if transport != "docker-archive":
        assert str(resolved.digest) == json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]


def test_skopeo_into_one_layout(local, layout, tmp_path):
    need("skopeo")
    for tag in ("a", "b"):
        command = ["skopeo", "copy", "-q", f"oci:{layout}:3.11", f"oci:{tmp_path}/made:{tag}"]
        subprocess.run(command, check=True, timeout=60)
    assert str(local.resolve(f"oci:{tmp_path}/made:b").reference) == "localhost/made:b"


def test_names_are_what_annotations_say(local, tmp_path):
    made = LayoutBuilder(tmp_path / "layout")
    made.entries.append(made.image([ONE]) | {"annotations": {REF_NAME: "docker.io/library/alpine:3"}})
    (tmp_path / "layout" / "index.json").write_text(json.dumps(index_document(made.entries)))
    file = oci_archive(tmp_path / "layout", tmp_path / "x.tar")
    assert str(local.resolve(f"oci-archive:{file}:3").reference) == "docker.io/library/alpine:3"
    assert (tmp_path / "layout" / blob_name(made.entries[0]["digest"])).exists()


def test_errors_are_ours(local, tmp_path):
    """Random files through every way in."""
    generator = random.Random(11)
    for start in (b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0", b"\x50\x2a\x4d\x18"):
        for length in (0, 1, 5, 100, 2000):
            (tmp_path / "x").write_bytes(start + generator.randbytes(length))
            with pytest.raises(MsbPullError):
                local.resolve(f"docker-archive:{tmp_path}/x")


@pytest.mark.parametrize("step", [1, 5, 11, 1000])
def test_gzip_headers_with_a_name_may_come_in_pieces(step):
    """ISA-L forgets the flags of a header that it gets in pieces."""
    name = io.BytesIO()
    with gzip.GzipFile("a-file-name.tar", "wb", fileobj=name) as member:
        member.write(b"content")
    blob = name.getvalue() * 2
    assert blob[3] == 8
    inflate = spool._Inflater("gzip", "x")
    found = b"".join(x for at in range(0, len(blob), step) for x in inflate.feed(blob[at : at + step]))
    inflate.finish()
    assert found == b"content" * 2


def zstd_of_two_gibibytes() -> bytes:
    return b"\x28\xb5\x2f\xfd\0" + bytes([(31 - 10) << 3]) + bytes(20)


def xz_of_gibibytes() -> bytes:
    small = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}])
    # The block header: its size, flags, filter, size of properties, dictionary, padding, CRC32 (xz file format, 3.1).
    header = small[12:16] + bytes([37]) + small[17:20]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "little") + small[24:]


@pytest.mark.parametrize(("name", "made"), [("zstd", zstd_of_two_gibibytes), ("xz", xz_of_gibibytes)])
def test_a_compressed_archive_that_wants_much_memory(local, tmp_path, name, made):
    (tmp_path / "x").write_bytes(made())
    said = local.refused(ContentError, f"docker-archive:{tmp_path}/x")
    assert f"its {name} stream wants more memory than an archive may take" in said
    assert said.endswith("unpack the archive first")
