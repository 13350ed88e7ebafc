"""What ``save`` writes is taken by other programs, and what those write in turn is pulled back, layer for layer.

skopeo, umoci and podman come from the distribution; current Microsandbox's ``msb`` from the measuring rig or PATH.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, RIG, need, program, program_environment
from tests.support.home import LINUX, Home
from tests.support.treecompare import describe, differences

SAMPLE = REPOSITORY / "tests" / "sample"
NAME = "registry.example/acme/sample:1"


@pytest.fixture
def home(tmp_path):
    """A store that holds the sample."""
    made = Home(tmp_path)
    run = made.pull("-q", f"oci:{SAMPLE}:1", "--as", NAME)
    assert run.returncode == 0, run.stderr
    return made


def saved(home: Home, form: str) -> Path:
    archive = home.folder / f"{form}.tar"
    run = home.run("save", "--format", form, NAME, "-o", str(archive))
    assert run.returncode == 0, run.stderr
    return archive


def layers(home: Home, name: str = NAME) -> list[Path]:
    run = home.run("inspect", "--layers", name)
    assert run.returncode == 0, run.stderr
    return [Path(line) for line in run.stdout.splitlines()]


def comes_back(home: Home, *source: str, feed: list[str] | None = None) -> None:
    """Pulls the image into a new store, through a pipe from ``feed`` if there is one: the layers must be the same."""
    (home.folder / "back").mkdir()
    back = Home(home.folder / "back")
    line = shlex.join([*program(), "pull", "-q", *LINUX, *source, "--as", NAME, *back.command])
    if feed:
        line = f"{shlex.join(feed)} | {line}"
    taken = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], env=program_environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    ours, theirs = layers(home), layers(back)
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        wrong = differences(describe(one), describe(other))
        # What marks a removed file has no content and no mode that counts; Microsandbox writes its own.
        assert [x for x in wrong if not (".wh." in x and ": mode " in x)] == []
    assert back.run("verify", "-q").returncode == 0


def test_skopeo(home):
    need("skopeo")
    layout = home.folder / "layout"
    copy = ["skopeo", "copy", "-q", f"oci-archive:{saved(home, 'oci')}", f"oci:{layout}:x"]
    subprocess.run(copy, check=True, timeout=60)
    comes_back(home, f"oci:{layout}:x")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_skopeo_writes_archives(home, kind):
    need("skopeo")
    archive = home.folder / "copied.tar"
    copy = ["skopeo", "copy", "-q", f"oci-archive:{saved(home, 'oci')}", f"{kind}:{archive}:{NAME}"]
    subprocess.run(copy, check=True, timeout=60)
    comes_back(home, f"{kind}:{archive}")


@pytest.mark.skipif(os.geteuid() != 0, reason="umoci sets owners")
def test_umoci(home):
    """The tree that umoci makes of the archive is the one it makes of the original."""
    need("umoci")
    layout = home.folder / "layout"
    layout.mkdir()
    subprocess.run(["tar", "-x", "-C", layout, "-f", saved(home, "oci")], check=True)
    trees = []
    for number, image in enumerate((f"{SAMPLE}:1", f"{layout}:{NAME}")):
        where = home.folder / f"bundle{number}"
        subprocess.run(["umoci", "unpack", "--image", image, where], check=True, capture_output=True, timeout=60)
        trees.append(describe(where / "rootfs"))
    assert differences(*trees) == []
    comes_back(home, f"oci:{layout}:{NAME}")


@pytest.fixture
def podman(tmp_path):
    """podman with a store of its own; as root, since elsewhere it may not map users."""
    need("podman")
    if os.geteuid() != 0:
        pytest.skip("podman's storage needs root or mapped users")
    # podman takes no long path for what it keeps while it runs.
    with tempfile.TemporaryDirectory() as run:
        yield ["podman", "--root", f"{tmp_path}/podman", "--runroot", run, "--storage-driver", "vfs"]


@pytest.mark.parametrize("form", ["oci", "docker"])
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_podman(home, podman, form, kind):
    load = subprocess.run([*podman, "load", "-i", saved(home, form)], capture_output=True, text=True, timeout=60)
    assert load.returncode == 0 and NAME in load.stdout, load.stderr
    comes_back(home, f"{kind}:-", feed=[*podman, "save", "-q", "--format", kind, NAME])


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_microsandbox(home, form, monkeypatch):
    msb = next(iter(RIG.glob("venv/lib/python3*/site-packages/microsandbox/_bundled/bin/msb")), shutil.which("msb"))
    if msb is None:
        pytest.skip("no msb, neither in the rig nor on PATH (no package brings it)")
    monkeypatch.setenv("MSB_HOME", str(home.folder / "msb"))
    load = subprocess.run([msb, "load", "-i", saved(home, form)], capture_output=True, text=True, timeout=60)
    assert load.returncode == 0, load.stderr
    again = home.folder / "again.tar"
    subprocess.run([msb, "save", "--format", form, "-o", again, NAME], check=True, capture_output=True, timeout=60)
    comes_back(home, f"{form}-archive:{again}")
