"""Every image of the measuring rig from its real registry: exit 0, the pinned line, the same tree in every form."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.support.home import LINUX, Home

REGISTRY = "127.0.0.1:5005"
IMAGES = ("debian:bookworm", "multi:1", "bigblob:1", "node:20")
PYTHON = ("python:3.11", "python:zstd", "python:docker")
ACCEPT = ", ".join(
    [f"application/vnd.oci.image.{x}.v1+json" for x in ("manifest", "index")]
    + ["application/vnd.docker.distribution.manifest.v2+json"]
)

pytestmark = [pytest.mark.rig, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def running():
    host, _, port = REGISTRY.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except ConnectionRefusedError:
        pytest.skip(f"no registry of real images at {REGISTRY}")


def digest_of(image: str) -> str:
    """What the registry says of the image itself: of an index, the entry for this platform."""
    repository, _, tag = image.partition(":")
    address = f"http://{REGISTRY}/v2/rig/{repository}/manifests/{tag}"
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": ACCEPT}), timeout=10) as answer:
        document, digest = json.load(answer), answer.headers["Docker-Content-Digest"]
    wanted = {"os": "linux", "architecture": "amd64"}
    found = [x["digest"] for x in document.get("manifests", []) if wanted.items() <= x.get("platform", {}).items()]
    return found[0] if found else digest


def pulled(place: Path, image: str) -> Home:
    place.mkdir()
    home = Home(place)
    name = f"{REGISTRY}/rig/{image}"
    run = home.run("pull", "-q", *LINUX, name)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{name}@{digest_of(image)}\n", "")
    assert home.run("verify", "-q").returncode == 0
    return home


@pytest.mark.parametrize("image", IMAGES)
def test_pull(tmp_path, image):
    pulled(tmp_path / "home", image)


def test_compressions_and_manifest_formats_make_one_tree(tmp_path):
    listed = []
    for number, image in enumerate(PYTHON):
        home = pulled(tmp_path / f"home{number}", image)
        run = home.run("inspect", "--files", f"{REGISTRY}/rig/{image}")
        assert run.returncode == 0, run.stderr
        listed.append(run.stdout)
    assert listed[0].count("\n") > 30_000
    assert listed[1] == listed[0] and listed[2] == listed[0]


def test_a_push_in_another_compression_moves_no_layer(tmp_path):
    home = pulled(tmp_path / "home", "python:3.11")
    name = f"{REGISTRY}/rig/python:zstd"
    run = home.run("pull", "-vv", "--format", "json", *LINUX, name)
    assert run.returncode == 0
    # The config.
    assert run.stderr.count("/blobs/") == 1
    (image,) = json.loads(run.stdout)["images"]
    assert image["fetched_bytes"] == 0 and all(layer["reused"] for layer in image["layers"])
    assert home.run("verify", "-q", name).returncode == 0
