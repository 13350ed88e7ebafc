"""``pull --to microsandbox`` and ``export --to microsandbox``: what is asked for, what is loaded, what is left."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import signal
import tarfile
import threading

import pytest

import msb_pull
from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
from msb_pull.store.store import Store
from msb_pull.work.pull import fetch
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.pull.receiving import Taking
from tests.conftest import REPOSITORY
from tests.support.counting import wait_for
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.home import LINUX, Home
from tests.support.make_sample import BASE, TOP, file, folder, layer_tar
from tests.support.microsandbox import FakeMicrosandbox
from tests.support.processes import children, gone

pytestmark = pytest.mark.timeout(120)
# What it has read is there to be read once more.
AGAIN = "sys.stdin = io.TextIOWrapper(io.BytesIO(data))"
MANIFESTS, BLOBS = "/manifests/", "/blobs/"


def packed(entries) -> bytes:
    return gzip.compress(layer_tar(entries), 6, mtime=0)


def noise(name: str, size: int) -> bytes:
    return packed([folder("./"), file(name, random.Random(name).randbytes(size))])


BOTTOM, LARGE, THIRD = packed(BASE), noise("large", 1_500_000), packed(TOP)


class World:
    """A registry with one image, a home, and a stand-in for Microsandbox."""

    def __init__(self, folder, registry: FaultRegistry) -> None:
        self.folder, self.registry = folder, registry
        self.image = registry.add_image("acme/app", "1", [BOTTOM, LARGE, THIRD])
        self.name = f"{registry.host}/acme/app:1"
        self.home = Home(folder)
        self.fake = FakeMicrosandbox(folder / "msb")

    def behave(self, text: str) -> None:
        self.fake = FakeMicrosandbox(self.folder / "msb", text)

    def pull(self, *words: str):
        return self.home.pull("--to", "microsandbox", "--msb", str(self.fake.program), *(words or (self.name,)))

    def export(self, *words: str):
        return self.home.run("export", *self.fake.words, *(words or (self.name,)))

    def start(self):
        return self.home.start("pull", *LINUX, *self.fake.words, self.name)

    def blobs(self, *layers: int) -> list[int]:
        """How often each layer was asked for."""
        return [self.registry.count(self.image.layer_digests[number]) for number in layers or range(3)]

    @property
    def loaded(self) -> dict[str, str]:
        return {self.name: self.image.manifest_digest}

    def left(self) -> list[str]:
        own = self.home.layers / ".msb-pull"
        return [path.name for place in ("staging", "partial") for path in (own / place).iterdir()]


@pytest.fixture
def world(tmp_path):
    with FaultRegistry() as registry:
        yield World(tmp_path, registry)


def good(run):
    assert run.returncode == 0, run.stderr
    return run


def test_both_have_the_image_and_nothing_is_fetched_twice(world):
    run = good(world.pull())
    assert run.stdout == f"{world.name}@{world.image.manifest_digest}\n"
    assert "; loaded into Microsandbox\n" in run.stderr and f"loading {world.name} into microsandbox\n" in run.stderr
    assert world.fake.images() == world.loaded
    assert world.blobs() == [1, 1, 1]
    assert world.left() == []
    good(world.home.run("verify"))


def test_what_both_have_needs_no_request(world):
    good(world.pull())
    world.registry.forget()
    run = good(world.pull())
    assert "already here (3 layers)" in run.stderr and "; Microsandbox has it already" in run.stderr
    assert (world.registry.count(), world.fake.loads()) == (0, 1)


def test_force_loads_again(world):
    good(world.pull())
    good(world.pull("--force", world.name))
    assert world.fake.loads() == 2
    good(world.export("--force", world.name))
    assert world.fake.loads() == 3


def test_what_microsandbox_has_is_pulled_alone(world):
    good(world.pull())
    good(world.home.run("rm", world.name))
    good(world.home.run("prune", "-y"))
    assert "; Microsandbox has it already" in good(world.pull()).stderr
    assert world.fake.loads() == 1


def test_what_the_store_has_is_asked_for_by_its_digests(world):
    """Whatever the tag means by now."""
    good(world.home.pull(world.name))
    world.registry.add_image("acme/app", "1", [BOTTOM])
    world.registry.forget()
    run = good(world.pull())
    assert "already here (3 layers)" in run.stderr and "; loaded into Microsandbox" in run.stderr
    assert world.fake.images() == world.loaded
    assert (world.registry.count(MANIFESTS), world.blobs()) == (0, [1, 1, 1])


def test_layers_of_other_images_are_asked_for_again(world):
    world.registry.add_image("acme/base", "1", [BOTTOM])
    good(world.home.pull(f"{world.registry.host}/acme/base:1"))
    world.registry.forget()
    good(world.pull())
    assert world.fake.images() == world.loaded
    assert world.blobs() == [1, 1, 1]


def test_what_an_earlier_run_kept_is_not_fetched_again(world):
    world.registry.script(world.image.layer_digests[1], Fault(cut_after=700_000))
    world.registry.always(world.image.layer_digests[1], Fault(status=500))
    assert world.pull().returncode == 5
    # How much of what was sent has arrived before the connection broke, the system decides.
    kept = next(x for x in world.home.partials() if x.name == world.image.layer_digests[1]).stat().st_size
    assert kept
    world.registry.forget()
    good(world.pull())
    assert world.fake.images() == world.loaded
    assert world.registry.bytes_sent(world.image.layer_digests[1]) == len(LARGE) - kept


def test_a_layer_that_is_listed_twice_is_sent_once(world):
    added = world.registry.add_image("acme/twice", "1", [BOTTOM, LARGE, BOTTOM])
    name = f"{world.registry.host}/acme/twice:1"
    good(world.pull(name))
    assert world.fake.images() == {name: added.manifest_digest}


def test_several_images(world):
    added = world.registry.add_image("acme/other", "1", [LARGE, noise("more", 300_000)])
    other = f"{world.registry.host}/acme/other:1"
    run = good(world.pull(world.name, other))
    assert len(run.stdout.splitlines()) == 2
    assert world.fake.loads() == 2 and set(world.fake.images()) == {world.name, other}
    good(world.pull(world.name, other, "-q"))
    assert world.fake.images() == world.loaded | {other: added.manifest_digest}


def test_an_index_gives_the_digest_of_the_platform(world):
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": world.image.manifest_digest,
        "size": len(world.image.manifest_bytes),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    world.registry.add_index("acme/app", "multi", [entry])
    name = f"{world.registry.host}/acme/app:multi"
    good(world.pull(name))
    assert world.fake.images() == {name: world.image.manifest_digest}


def test_a_document_says_what_became_of_it(world):
    fields = [json.loads(good(world.pull(world.name, "--format", "json")).stdout)["images"][0] for _ in range(2)]
    for number, document in enumerate(fields):
        # The whole has the loading in it.
        assert document["seconds"] >= document["delivered"].pop("seconds") >= 0
        assert document["delivered"] == {
            "place": "microsandbox",
            "digest": world.image.manifest_digest,
            "changed": not number,
            "recreated": False,
        }
    assert "delivered" not in json.loads(good(world.home.pull(world.name, "--format", "json")).stdout)["images"][0]


def test_a_dry_run_loads_nothing(world):
    good(world.pull("--dry-run", world.name))
    assert world.fake.loads() == 0


# What goes wrong


def test_a_blob_that_is_changed_on_the_way_is_never_in_an_archive_that_ends(world):
    world.registry.script(world.image.layer_digests[1], Fault(flip=1000), times=2)
    run = world.pull()
    assert run.returncode == 6 and "does not match its digest" in run.stderr
    assert world.fake.images() == {}
    good(world.pull())
    assert world.fake.images() == world.loaded


def test_a_blob_that_is_changed_once_is_fetched_again(world):
    world.registry.script(world.image.layer_digests[1], Fault(flip=1000))
    assert "fetching it again" in good(world.pull()).stderr
    assert world.fake.images() == world.loaded


def test_a_blob_that_is_asked_for_again_is_verified_again(world):
    good(world.home.pull(world.name))
    world.registry.script(world.image.layer_digests[1], Fault(flip=1000))
    run = world.pull()
    assert run.returncode == 6 and "does not match its digest" in run.stderr
    assert world.fake.images() == {}


def test_a_blob_that_is_longer_than_its_descriptor_says(world):
    good(world.home.pull(world.name))
    world.registry.script(world.image.layer_digests[1], Fault(extra=bytes(2048)))
    assert world.pull().returncode == 6
    assert world.fake.images() == {}


def test_a_registry_that_fails_in_the_middle(world):
    world.registry.always(world.image.layer_digests[1], Fault(status=404))
    assert world.pull().returncode == 3
    assert world.fake.images() == {}


def test_a_layer_that_is_not_what_the_config_says(world):
    """Microsandbox would find that out as well; here it is still at work when the pull fails."""
    world.behave("time.sleep(60) if False else sys.stdin.buffer.read() and time.sleep(60)")
    world.registry.add_image("acme/app", "1", [BOTTOM, LARGE], diff_ids=["sha256:" + "0" * 64] * 2)
    run = world.pull()
    assert run.returncode == 6 and "diff_id" in run.stderr
    assert world.fake.images() == {}


@pytest.mark.parametrize("when", ["", "sys.stdin.buffer.read(1000); ", "sys.stdin.buffer.read(); "])
def test_a_program_that_fails(world, when):
    world.behave(f"{when}sys.exit('error: \\x1b[31mno room for it')")
    run = world.pull()
    assert (run.returncode, run.stdout) == (7, "")
    assert "error: msb load failed (status 1)\n  cause: error: " in run.stderr
    assert "no room for it\n" in run.stderr and "\x1b" not in run.stderr
    assert [name for name in world.left() if not name.startswith("sha256:")] == []
    world.behave("")
    good(world.pull())
    assert world.fake.images() == world.loaded
    good(world.home.run("verify"))


@pytest.mark.parametrize("stored", [False, True])
def test_a_program_that_loads_nothing_and_says_so_to_nobody(world, stored):
    if stored:
        good(world.home.pull(world.name))
    world.behave("sys.stdin.buffer.read(); sys.exit(0)")
    for run in [world.pull(), *([world.export(), world.pull("--policy", "never", world.name)] if stored else [])]:
        assert run.returncode == 7
        assert f"{world.name} is not in its list" in run.stderr


def test_a_program_that_is_killed(world):
    world.behave("os.kill(os.getpid(), 9)")
    run = world.pull()
    assert run.returncode == 7 and "error: msb load was killed by signal 9" in run.stderr


def test_no_program(world):
    run = world.home.pull("--to", "microsandbox", "--msb", "no-such-msb", world.name)
    assert (run.returncode, world.registry.count()) == (2, 0)
    assert "error: no-such-msb: no such program\n  hint: install Microsandbox (`curl " in run.stderr


def test_no_such_place(world):
    run = world.home.pull("--to", "docker", world.name)
    assert (run.returncode, world.registry.count()) == (2, 0)
    assert "error: --to: 'docker' is not one of microsandbox" in run.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["", "sys.stdin.buffer.read(); "])
def test_a_signal_ends_both(world, number, when):
    """Wherever the program is: it takes nothing, or works on the image."""
    note = world.folder / "pid"
    world.behave(f"{when}open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    process = world.start()
    wait_for(lambda: note.exists() and note.read_text())
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "interrupted" in errors
    assert gone(int(note.read_text()))
    assert [name for name in world.left() if not name.startswith("sha256:")] == []


def test_killed_while_it_feeds(world):
    """What Microsandbox has read by then is no archive, and what it kept of it goes with the next pull."""
    world.behave("open(os.environ['TMPDIR'] + '/.spool', 'wb').write(b'x')")
    world.registry.script(world.image.layer_digests[1], Fault(stall_after=500_000))
    process = world.start()
    wait_for(lambda: world.registry.bytes_sent(world.image.layer_digests[1]) and world.fake.loads())
    wait_for(lambda: any(path.suffix != ".lock" for path in (world.home.layers / ".msb-pull/staging").glob("load-*")))
    process.kill()
    process.communicate()
    world.registry.forget()
    world.behave("")
    good(world.pull())
    assert (world.fake.images(), world.left()) == (world.loaded, [])


def test_killed_when_the_store_has_all_of_it(world):
    world.behave("open(os.environ['TMPDIR'] + '/.spool', 'wb').write(b'x'); sys.stdin.buffer.read(); time.sleep(60)")
    process = world.start()
    wait_for(lambda: list((world.home.layers / ".msb-pull" / "images").glob("*")) and world.fake.loads())
    staging = world.home.layers / ".msb-pull" / "staging"
    wait_for(lambda: list(staging.glob("load-*/.spool")))
    left = children(process.pid)
    process.kill()
    process.communicate()
    # What has no parent any more would sleep on.
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert list(staging.glob("load-*/.spool"))
    world.behave("")
    good(world.pull())
    assert (world.fake.images(), world.left()) == (world.loaded, [])


# Other sources


def test_a_layout(world):
    sample = REPOSITORY / "tests" / "sample"
    run = good(world.pull(f"oci:{sample}:1", "--as", "sample:1"))
    digest = run.stdout.strip().partition("@")[2]
    assert world.fake.images() == {"docker.io/library/sample:1": digest}
    assert "has it already" in good(world.pull(f"oci:{sample}:1", "--as", "sample:1")).stderr
    good(world.pull(f"oci:{sample}:1", "--as", "other:1"))
    assert world.fake.images()["docker.io/library/other:1"] == digest


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_archives(world, form):
    good(world.home.pull(world.name))
    saved = world.folder / "saved.tar"
    good(world.home.run("save", world.name, "-o", str(saved), "--format", form))
    name = "docker.io/library/new:1"
    run = good(world.pull(f"{form}-archive:{saved}", "--as", "new:1"))
    assert world.fake.images() == {name: run.stdout.strip().partition("@")[2]}


def test_an_export_asks_the_registry(world):
    good(world.home.pull(world.name))
    world.registry.forget()
    run = good(world.export())
    assert (run.stdout, world.fake.images()) == ("", world.loaded)
    assert f"Loaded {world.name} into Microsandbox in " in run.stderr and "warning" not in run.stderr
    assert (world.registry.count(MANIFESTS), world.blobs()) == (0, [1, 1, 1])
    world.registry.forget()
    assert f"Microsandbox has {world.name} already" in good(world.export()).stderr
    assert world.registry.count() == 0


def recreated(world) -> str:
    assert list(world.fake.images()) == [world.name]
    digest = world.fake.images()[world.name]
    assert digest != world.image.manifest_digest
    return digest


@pytest.mark.parametrize("fault", [Fault(status=404), Fault(flip=7), Fault(status=401)])
def test_an_export_without_its_source_makes_the_layers_again(world, fault):
    good(world.home.pull(world.name))
    world.registry.always(BLOBS, fault)
    run = good(world.export())
    recreated(world)
    assert run.stderr.count("warning: ") == 2 and "so its digest is not the registry's" in run.stderr


def test_an_export_without_a_network_makes_the_layers_again(world):
    good(world.home.pull(world.name))
    world.registry.stop()
    document = json.loads(good(world.export(world.name, "--format", "json")).stdout)
    assert document["images"][0].pop("seconds") > 0
    assert document == {
        "status": "ok",
        "images": [
            {
                "status": "ok",
                "image": world.name,
                "place": "microsandbox",
                "digest": recreated(world),
                "changed": True,
                "recreated": True,
            }
        ],
    }


def test_a_pull_that_may_ask_nobody_makes_the_layers_again(world):
    good(world.home.pull(world.name))
    world.registry.forget()
    run = good(world.pull("--policy", "never", world.name))
    recreated(world)
    assert world.registry.count() == 0 and "so its digest is not the registry's" in run.stderr


def test_a_pull_that_cannot_have_the_blobs_again_fails(world):
    good(world.home.pull(world.name))
    world.registry.always(BLOBS, Fault(status=404))
    run = world.pull()
    assert (run.returncode, world.fake.images()) == (3, {})
    assert "msb-pull export --to microsandbox" in run.stderr


def test_an_export_from_a_layout_reads_it_again(world):
    sample = REPOSITORY / "tests" / "sample"
    digest = good(world.home.pull(f"oci:{sample}:1", "--as", "sample:1")).stdout.strip().partition("@")[2]
    assert "warning" not in good(world.export("sample:1")).stderr
    assert world.fake.images() == {"docker.io/library/sample:1": digest}


def test_an_export_of_damaged_layers_loads_nothing(world):
    good(world.home.pull(world.name))
    (world.home.layers / f"{world.image.layer_digests[1]}.extracted" / "large").write_bytes(b"other")
    world.registry.stop()
    run = world.export()
    assert (run.returncode, world.fake.images()) == (6, {})


def test_all_images_of_an_export_are_tried(world):
    good(world.home.pull(world.name))
    run = world.export("none:1", world.name)
    assert run.returncode == 3 and "docker.io/library/none:1: not in the store" in run.stderr
    assert world.fake.images() == world.loaded
    document = json.loads(world.export("none:1", world.name, "--format", "json").stdout)
    assert [image["status"] for image in document["images"]] == ["failed", "ok"]


def test_the_library_does_the_same(world):
    store = msb_pull.Store.open(world.home.store)
    linux = msb_pull.Platform("linux", "amd64")
    options = msb_pull.PullOptions(platform=linux, to="microsandbox", msb=str(world.fake.program))
    seen = []
    result = msb_pull.pull_image(world.name, store, options, observer=seen.append)
    assert result.delivered.digest == result.digest == world.image.manifest_digest
    assert any(isinstance(event, msb_pull.events.Delivering) for event in seen)
    again = store.deliver(world.name, "microsandbox", msb=str(world.fake.program))
    assert (again.changed, again.recreated) == (False, False)
    assert store.deliver(world.name, "microsandbox", msb=str(world.fake.program), force=True).changed
    with pytest.raises(msb_pull.UsageError):
        store.deliver(world.name, "elsewhere")
    with pytest.raises(msb_pull.UsageError):
        msb_pull.pull_image(world.name, store, msb_pull.PullOptions(platform=linux, to="elsewhere"))


def test_the_archive_is_one_for_everybody(world):
    """As tarfile reads it, with nothing behind its end."""
    out = world.folder / "archive.tar"
    world.behave(f"data = sys.stdin.buffer.read(); open({str(out)!r}, 'wb').write(data); {AGAIN}")
    good(world.pull())
    data = out.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
    digests = [*world.image.layer_digests, world.image.config_digest, world.image.manifest_digest]
    assert sorted(names) == sorted([*(f"blobs/sha256/{x[7:]}" for x in digests), "index.json", "oci-layout"])
    assert names[-2:] == ["index.json", "oci-layout"]
    assert len(data) % 512 == 0 and data.endswith(bytes(1024))


def test_a_blob_is_handed_over_before_it_is_unpacked(world, monkeypatch):
    """However large it is: what waits to be inflated does not keep the rest of it from arriving."""
    digest = world.registry.add_image("acme/app", "1", [noise("huge", 8 << 20)]).layer_digests[0]
    given = threading.Event()
    inflate = fetch._Pipe.inflate

    def wait(self, chunk, feeding):
        assert given.wait(60)
        inflate(self, chunk, feeding)

    monkeypatch.setattr(fetch._Pipe, "inflate", wait)

    @contextlib.contextmanager
    def receive(image, source, job):
        def arrived(which, handle):
            assert str(which) == digest and os.fstat(handle).st_size > 8 << 20
            given.set()

        yield Taking(job, arrived)

    job = Job()
    client = RegistryClient(RegistryOptions(retries=0), CredentialStore.nobody(), job)
    with contextlib.closing(client):
        options = msb_pull.PullOptions(platform=msb_pull.Platform("linux", "amd64"))
        store = Store.open(world.home.store)
        pulled = pull_image(parse_argument(world.name), store, lambda: client, options, job, receive=receive)
    assert given.is_set() and pulled.changed
