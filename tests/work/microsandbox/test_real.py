"""The real ``msb``: what it has after a pull into it is what it has after its own pull, and nothing shows a difference.

The rig brings one version of it, and the images; ``MSB_PROGRAMS`` names more. ``MSB_LOAD_ROUNDS`` kills more pulls.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.conftest import program, program_environment
from tests.support.counting import wait_for
from tests.support.fault_registry import FaultRegistry
from tests.support.home import LINUX, Home, gz, sample
from tests.support.make_sample import BASE, TOP, file, folder, layer_tar
from tests.support.microsandbox import Microsandbox, real_programs
from tests.support.processes import children
from tests.support.proxies import both_ways
from tests.support.raw import RawServer

# The environment of a test is cleaned before it runs, so this is read here.
ROUNDS = int(os.environ.get("MSB_LOAD_ROUNDS", "6"))
PROGRAMS = real_programs()
RIG_PORT = 5005
RIG_IMAGES = ["debian:bookworm", "python:3.11", "python:docker", "python:zstd", "node:20", "multi:1"]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PROGRAMS, reason="no msb: neither in the rig nor named by MSB_PROGRAMS"),
]


@pytest.fixture(autouse=True)
def emptied(tmp_path):
    """Four copies of a real image take gigabytes, and pytest keeps the folders of the last runs."""
    yield
    for path in tmp_path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


@pytest.fixture(params=PROGRAMS, ids=lambda path: path.parent.name)
def microsandbox(request, tmp_path, monkeypatch):
    made = Microsandbox(tmp_path / "msb", request.param)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def rig_registry():
    """A way to the rig's registry that can be closed."""
    try:
        socket.create_connection(("127.0.0.1", RIG_PORT), timeout=2).close()
    except ConnectionRefusedError:
        pytest.skip(f"no registry of real images at 127.0.0.1:{RIG_PORT}")

    def talk(connection: socket.socket, number: int) -> None:
        with socket.create_connection(("127.0.0.1", RIG_PORT)) as onward:
            both_ways(connection, onward)

    with RawServer(talk) as server:
        yield server


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture
def registry():
    with FaultRegistry() as served:
        yield served


def good(run):
    assert run.returncode == 0, run.stderr
    return run


def check(microsandbox: Microsandbox, name: str, digest: str, close) -> None:
    """Against another home of the same program that has pulled the image itself."""
    other = Microsandbox(microsandbox.home.with_name("other"), microsandbox.program)
    good(other.run("pull", "-q", "--insecure", name))
    assert microsandbox.images() == other.images() == {name: digest}
    assert microsandbox.inspect(name) == other.inspect(name)
    assert microsandbox.artefacts() == other.artefacts()
    assert microsandbox.saved(name) == other.saved(name)
    assert microsandbox.left() == []
    close()
    again = good(microsandbox.run("pull", "--insecure", name))
    assert "already cached" in again.stdout + again.stderr


@pytest.mark.rig
@pytest.mark.parametrize("image", RIG_IMAGES)
def test_real_images(microsandbox, home, rig_registry, image):
    name = f"{rig_registry.host}/rig/{image}"
    run = good(home.pull("-q", *microsandbox.words, name))
    digest = run.stdout.strip().partition("@")[2]
    check(microsandbox, name, digest, lambda: rig_registry.__exit__())
    assert "has it already" in good(home.pull(*microsandbox.words, name)).stderr


def test_the_sample(microsandbox, home, registry):
    name, added = sample(registry)
    good(home.pull(*microsandbox.words, name))
    check(microsandbox, name, added.manifest_digest, registry.stop)
    assert f"Microsandbox has {name} already" in good(home.run("export", *microsandbox.words, name)).stderr


def test_an_export_of_the_sample(microsandbox, home, registry):
    name, added = sample(registry)
    good(home.pull(name))
    good(home.run("export", *microsandbox.words, name))
    check(microsandbox, name, added.manifest_digest, registry.stop)


def test_an_export_without_a_network(microsandbox, home, registry):
    """Layers and metadata are the same; the manifest is another one."""
    name, added = sample(registry)
    good(home.pull(name))
    other = Microsandbox(microsandbox.home.with_name("other"), microsandbox.program)
    good(other.run("pull", "-q", "--insecure", name))
    registry.stop()
    assert "its digest is not the registry's" in good(home.run("export", *microsandbox.words, name)).stderr
    assert microsandbox.images().keys() == {name} and microsandbox.images()[name] != added.manifest_digest
    assert {x for x in microsandbox.artefacts().values() if x in other.artefacts().values()}
    again = good(microsandbox.run("pull", "--insecure", name))
    assert "already cached" in again.stdout + again.stderr


@pytest.mark.parametrize("form", ["tag and digest", "digest", "repository"])
def test_names(microsandbox, home, registry, form):
    name, added = sample(registry, "latest")
    repository = name.removesuffix(":latest")
    typed = {
        "tag and digest": f"{name}@{added.manifest_digest}",
        "digest": f"{repository}@{added.manifest_digest}",
        "repository": repository,
    }[form]
    good(home.pull("-q", *microsandbox.words, typed))
    registry.stop()
    again = good(microsandbox.run("pull", "--insecure", typed))
    assert "already cached" in again.stdout + again.stderr


def test_a_layer_that_is_not_what_the_config_says(microsandbox, home, registry):
    registry.add_image("acme/app", "1", [gz(layer_tar(BASE))], diff_ids=["sha256:" + "0" * 64])
    name = f"{registry.host}/acme/app:1"
    assert home.pull(*microsandbox.words, name).returncode == 6
    assert microsandbox.images() == {}


def test_microsandbox_pulls_the_same_at_the_same_time(microsandbox, home, registry):
    name, added = large_image(registry)
    good(microsandbox.run("image", "ls"))
    for _ in range(2):
        own = microsandbox.start("pull", "-q", "--insecure", name)
        good(home.pull("-q", *microsandbox.words, name))
        assert own.wait(120) == 0
        assert microsandbox.images() == {name: added.manifest_digest}
        good(home.run("verify", "-q"))
        good(home.run("rm", name))
        good(microsandbox.run("image", "rm", name))


def large_image(registry: FaultRegistry):
    noise = random.Random(7)
    many = [file(f"many/{number}", noise.randbytes(4000)) for number in range(800)]
    layers = [layer_tar(BASE), layer_tar([folder("many"), *many]), layer_tar(TOP)]
    return f"{registry.host}/acme/large:1", registry.add_image("acme/large", "1", [gz(layer) for layer in layers])


def victims(process: int, program: str) -> list[int]:
    """The running ``msb load`` of a process."""
    return [child for child in children(process) if program in command_of(child)]


def command_of(process: int) -> str:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as held:
            return held.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize("victim", ["msb-pull", "msb"])
def test_killed_at_any_moment(microsandbox, tmp_path, registry, victim):
    """Whichever is killed, the same command ends as if nothing had been."""
    name, added = large_image(registry)
    total = sum(len(registry.blobs[digest]) for digest in added.layer_digests)
    chance = random.Random(victim)
    ended = []
    for number in range(ROUNDS):
        made = tmp_path / str(number)
        made.mkdir()
        home = Home(made)
        registry.forget()
        registry.set_total_rate(total / chance.uniform(0.3, 0.8))
        process = subprocess.Popen(
            [*program(), "pull", "-q", *LINUX, *microsandbox.words, name, *home.command],
            env=program_environment(), cwd=made, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        share = chance.uniform(0, 1)
        wait_for(lambda: registry.bytes_sent() >= total * share or process.poll() is not None)  # noqa: B023
        time.sleep(chance.uniform(0, 0.6))
        targets = [process.pid] if victim == "msb-pull" else victims(process.pid, str(microsandbox.program))
        for target in targets if process.poll() is None else []:
            os.kill(target, signal.SIGKILL)
        ended.append(process.wait(60))
        registry.set_total_rate(None)
        # What it may have been working on alone by then is all of the image.
        assert microsandbox.images() in ({}, {name: added.manifest_digest})
        good(home.pull("-q", *microsandbox.words, name))
        assert microsandbox.images() == {name: added.manifest_digest}
        good(home.run("verify", "-q"))
        # Where both had all of it, there was nothing left to do.
        good(home.run("prune", "-y"))
        assert os.listdir(home.layers / ".msb-pull" / "staging") == []
        good(microsandbox.run("image", "rm", name))
    assert set(ended) - {0}, "nothing was killed"
