"""podman itself with a view beside its own storage."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import RIG, need
from tests.support.archive import reg
from tests.support.exports import BOTTOM, NAME, TOP, by_umoci, layout, real_layout
from tests.support.podman import BASE, A, B, OrdinaryPodman, Podman, export, pull, remove, shown
from tests.support.treecompare import describe, differences
from tests.support.unprivileged import folder_of_nobody

# The store keeps no time before 1970, and no hard link leads into another layer of an overlay.
KNOWN = frozenset((b"before-1970", b"shared", b"second", b"third"))
DEVICES = frozenset((b"null", b"disk", b"pipe"))


@pytest.fixture
def podman(home, tmp_path):
    made = Podman(tmp_path / "podman", home / "podman")
    yield made
    made.remove()


def test_it_lists_inspects_and_mounts(home, podman):
    export(home, A, B)
    assert podman.images() == [A, B]
    (digest,) = podman.said("inspect", "--format", "{{.Digest}}", A)
    assert digest in (home / "podman/overlay-images/images.json").read_text()
    assert (podman.mount(A) / "etc" / "own").read_bytes() == b"a"
    assert (podman.mount(B) / "etc" / "base").read_bytes() == b"base"


def test_after_a_removal_it_lists_the_rest_without_a_word(home, podman):
    export(home, A, B)
    assert podman.images() == [A, B]
    remove(home, A)
    assert podman.images() == [B]
    remove(home, B)
    assert podman.images() == []
    assert "not known" in podman.run("inspect", "--type", "image", A, check=False).stderr


def test_an_image_that_it_pulls_itself_shares_the_layers_of_the_view(home, podman, tmp_path):
    export(home, A)
    more = layout(tmp_path / "more", BASE, [reg(b"etc/own", b"a")], [reg(b"etc/more", b"more")])
    (image,) = podman.said("pull", "-q", f"oci:{more}:1")
    (layer,) = (podman.folder / "s" / "overlay-layers").glob("*.tar-split.gz")
    assert (podman.mount(image) / "etc" / "own").read_bytes() == b"a"
    assert layer.name[:64] not in (home / "podman/overlay-layers/layers.json").read_text()
    podman.close()
    # Names of layers and links are the same each time, so what it made of an image works again with it.
    remove(home, A)
    assert podman.run("create", image, "true", check=False).returncode != 0
    pull(home, A, layout(tmp_path / "again", BASE, [reg(b"etc/own", b"a")]))
    export(home, A)
    assert (podman.mount(image) / "etc" / "more").read_bytes() == b"more"


@pytest.mark.parametrize("image", ["plain", "traps"])
def test_it_saves_and_pushes_what_was_pulled(home, podman, tmp_path, image):
    """It compares the digest of each layer."""
    if image == "traps":
        pull(home, A, layout(tmp_path / "traps", BOTTOM, TOP), force=True)
    export(home, A)
    podman.run("save", "--format", "oci-dir", "-o", str(tmp_path / "saved"), A)
    podman.run("push", "-q", A, f"dir:{tmp_path / 'pushed'}")
    config = json.loads(next((home / "podman" / "overlay-images").glob("*/=c2hhMjU2*")).read_bytes())
    streams = [
        gzip.decompress(path.read_bytes()) for path in (tmp_path / "saved/blobs/sha256").iterdir() if packed(path)
    ]
    assert {f"sha256:{hashlib.sha256(stream).hexdigest()}" for stream in streams} == set(config["rootfs"]["diff_ids"])
    assert len([path for path in (tmp_path / "pushed").iterdir() if packed(path) or uncompressed(path, streams)]) == 2


def packed(path: Path) -> bool:
    return path.read_bytes()[:2] == b"\x1f\x8b"


def uncompressed(path: Path, streams: list[bytes]) -> bool:
    return path.read_bytes() in streams


def test_what_is_read_only_podman_refuses_to_remove(home, podman):
    export(home, A)
    assert "read-only" in podman.run("rmi", A, check=False).stderr
    assert shown(home / "podman") == [A]


@pytest.mark.parametrize("devices", [False, True])
def test_the_image_of_traps_looks_as_umoci_makes_it(home, podman, tmp_path, devices):
    need("umoci")
    if devices and fuse_overlayfs() < (1, 15):
        pytest.skip("fuse-overlayfs shows devices of such layers since 1.15")
    bottom = BOTTOM if devices else [entry for entry in BOTTOM if not entry.startswith(tuple(DEVICES))]
    image = layout(tmp_path / "traps", bottom, TOP)
    pull(home, NAME, image)
    export(home, f"docker.io/{NAME}")
    theirs = by_umoci(image, "1", tmp_path / "theirs")
    ours = podman.mount(f"docker.io/{NAME}")
    assert len(describe(theirs)) > 20
    assert differences(describe(ours), describe(theirs), ignore=KNOWN) == []


def fuse_overlayfs() -> tuple[int, ...]:
    said = subprocess.run(["fuse-overlayfs", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"fuse-overlayfs: version (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (2, 0)


@pytest.mark.rig
@pytest.mark.timeout(600)
@pytest.mark.parametrize("image", ["debian:bookworm", "python:3.11"])
def test_real_images_look_as_umoci_makes_them(home, podman, tmp_path, image):
    source = RIG / "layouts" / image.partition(":")[0]
    if not source.is_dir():
        pytest.skip(f"no layouts of real images below {RIG}")
    need("umoci")
    pull(home, f"localhost/{image}", source)
    export(home, f"localhost/{image}")
    theirs = by_umoci(source, image.partition(":")[2], tmp_path / "theirs")
    assert differences(describe(podman.mount(f"localhost/{image}")), describe(theirs)) == []


# What podman puts into each container, and where it mounts something.
ADDED = re.compile(r"/(dev|proc|sys|run)(/.*)?|/etc/(hosts|hostname|mtab|resolv\.conf)|/")


@pytest.mark.rig
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [Podman, OrdinaryPodman])
def test_a_container_sees_what_umoci_makes(tmp_path, kind):
    source, tag = real_layout("debian")
    need("umoci", "crun")
    theirs = by_umoci(source, tag, tmp_path / "theirs")
    name = f"localhost/debian:{tag}"
    with folder_of_nobody() as folder:
        pull(folder / "home", name, source)
        export(folder / "home", name)
        podman = kind(folder, folder / "home" / "podman")
        try:
            assert podman.images() == [name]
            release = podman.contained(name, "cat", "/usr/lib/os-release")
            listed = podman.contained(name, "find", "/", "-xdev", "-printf", r"%y %U %G %m %p %l\n")
        finally:
            podman.remove()
    assert release == (theirs / "usr/lib/os-release").read_text()
    command = ["find", str(theirs), "-xdev", "-printf", r"%y %U %G %m /%P %l\n"]
    wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(facts(wanted)) > 5000
    assert facts(listed) == facts(wanted)


def facts(listed: str) -> set[str]:
    return {line for line in listed.splitlines() if not ADDED.fullmatch(line.split(" ")[4])}
