"""The script for CI as a job runs it: a cold cache, a warm one, a broken one, and failures worth a retry or none."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, need, program, program_environment
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.home import gz
from tests.support.make_sample import BASE, TOP, layer_tar

SCRIPT = REPOSITORY / "examples" / "ci.sh"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the script keeps attributes by GNU tar")


class Runner:
    """A machine of a CI: its workspace is new for each job, but for the file that the cache keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir()
        (commands / "msb-pull").write_text(f'#!/bin/sh\nexec {shlex.join(program())} "$@"\n')
        (commands / "msb-pull").chmod(0o755)
        (folder / "config.toml").write_text("[pull]\nretries = 0\n")
        self.path = f"{commands}:{program_environment()['PATH']}"
        self.cache = folder / "kept.tar"

    def job(self, *images: str) -> subprocess.CompletedProcess[str]:
        workspace = self.folder / "workspace"
        (workspace / ".cache").mkdir(parents=True)
        if self.cache.exists():
            shutil.copy(self.cache, workspace / ".cache" / "msb.tar")
        more = {"PATH": self.path, "PAUSE": "0", "MSB_PULL_CONFIG": str(self.folder / "config.toml")}
        more["MSB_PULL_PLATFORM"] = "linux/amd64"
        done = subprocess.run(
            [str(SCRIPT), *images],
            env=program_environment(**more), cwd=workspace, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        shutil.copy(workspace / ".cache" / "msb.tar", self.cache)
        shutil.rmtree(workspace)
        return done


@pytest.fixture
def runner(tmp_path):
    need("bash", "tar")
    return Runner(tmp_path)


@pytest.fixture
def registry():
    with FaultRegistry() as running:
        running.add_image("acme/app", "1", [gz(layer_tar(BASE)), gz(layer_tar(TOP))])
        running.add_image("acme/tool", "1", [gz(layer_tar(BASE))])
        yield running


def pinned(done: subprocess.CompletedProcess[str]) -> list[str]:
    return sorted(line.partition("@sha256:")[0] for line in done.stdout.splitlines())


def test_the_cache_saves_every_request(runner, registry):
    images = [f"{registry.host}/acme/app:1", f"{registry.host}/acme/tool:1"]
    cold = runner.job(*images)
    assert (cold.returncode, pinned(cold)) == (0, images), cold.stderr
    asked = [request.path.rpartition("/")[2] for request in registry.asked("/blobs/")]
    # Two configs, two layers. Each pull is a process of its own, and both may ask early for the one that they share.
    assert len(set(asked)) == 4 and len(asked) <= 5
    seen = len(registry.requests)
    warm = runner.job(*images)
    assert (warm.returncode, sorted(warm.stdout.split())) == (0, sorted(cold.stdout.split())), warm.stderr
    assert len(registry.requests) == seen
    assert "\x1b" not in warm.stderr + cold.stderr


def test_a_cache_that_lost_its_attributes_is_left_aside(runner, registry):
    image = f"{registry.host}/acme/app:1"
    assert runner.job(image).returncode == 0
    folder = runner.folder / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "--no-xattrs", "-xf", runner.cache, "-C", folder], check=True)
    subprocess.run(["tar", "-cf", runner.cache, "-C", folder, "msb"], check=True)
    seen = registry.count("/blobs/")
    done = runner.job(image)
    assert done.returncode == 0, done.stderr
    assert registry.count("/blobs/") == seen + 3


def test_trouble_is_tried_again_and_nothing_else(runner, registry):
    image = f"{registry.host}/acme/app:1"
    registry.script("/manifests/", Fault(status=503), Fault(status=503))
    done = runner.job(image)
    assert (done.returncode, pinned(done)) == (0, [image]), done.stderr
    seen = len(registry.requests)
    done = runner.job(image, f"{registry.host}/acme/none:1")
    assert (done.returncode, pinned(done)) == (3, [image]), done.stderr
    assert len([x for x in registry.requests[seen:] if "/manifests/" in x.path]) == 1
    registry.script("/acme/other/manifests/", Fault(status=503), times=3)
    assert runner.job(f"{registry.host}/acme/other:1").returncode == 5
