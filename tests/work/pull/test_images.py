"""Several images in one command: what they share is fetched once, and each succeeds or fails by itself."""

from __future__ import annotations

import contextlib
import gzip
import random
import subprocess
import sys
import threading

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, MsbPullError, NotFoundError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.platform import Platform
from msb_pull.image.readers import DigestMismatch
from msb_pull.image.reference import parse_argument
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
from msb_pull.store.store import Store
from msb_pull.work.pull import transfer
from msb_pull.work.pull.fetch import LayerFetcher
from msb_pull.work.pull.images import pull_images
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import verify_images
from tests.support.counting import wait_for
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.make_sample import file, folder, layer_tar

pytestmark = pytest.mark.timeout(120)
OPTIONS = PullOptions(platform=Platform("linux", "amd64"))


def layer(name: str, size: int, *, whole: bool = False) -> bytes:
    """One that needs facts from the layers below, unless it is ``whole``."""
    top = [folder("./")] if whole else []
    return gzip.compress(layer_tar([*top, file(name, random.Random(name).randbytes(size))]), 6, mtime=0)


@pytest.fixture
def registry():
    with FaultRegistry() as served:
        yield served


class Command:
    """The images of one command on their way into a store of their own."""

    def __init__(self, home, registry: FaultRegistry, tags: list[str], *, jobs: int = 2) -> None:
        self.store = Store.open(home)
        self.cancel = Cancel()
        self.seen: list[events.Event] = []
        self.ended: list[int] = []
        self._job = Job(self.seen.append, self.cancel, jobs)
        self._registry = registry
        self._arguments = [parse_argument(f"{registry.host}/acme/{tag}") for tag in tags]

    def run(self):
        client = RegistryClient(RegistryOptions(retries=0), CredentialStore.nobody(), self._job)
        with contextlib.closing(client):
            return pull_images(self._arguments, self.store, lambda: client, OPTIONS, self._job, self._end)

    def _end(self, number, outcome) -> None:
        self.ended.append(number)


def failed(outcomes) -> list[MsbPullError]:
    return [outcome for outcome in outcomes if isinstance(outcome, MsbPullError)]


@pytest.mark.parametrize("whole", [False, True], ids=["from_below", "whole"])
@pytest.mark.parametrize("jobs", [1, 4])
def test_a_layer_of_several_images_is_fetched_once(tmp_path, registry, whole, jobs):
    common = [layer(f"c{number}", 3000 * number, whole=whole) for number in range(1, 5)]
    digests = []
    for tag in "abc":
        digests += registry.add_image("acme/app", tag, [*common, layer(tag, 500, whole=whole)]).layer_digests
    command = Command(tmp_path / "home", registry, ["app:a", "app:b", "app:c"], jobs=jobs)
    outcomes = command.run()
    assert not failed(outcomes)
    assert [outcome.reference[-1] for outcome in outcomes] == ["a", "b", "c"]
    assert {digest: registry.count(f"/blobs/{digest}") for digest in digests} == dict.fromkeys(digests, 1)
    assert sum(outcome.fetched for outcome in outcomes) == sum(len(registry.blobs[x]) for x in set(digests))
    assert {layer.verdict for layer in verify_images(command.store, [], Job()).layers} == {Verdict.PROVEN}


def test_what_one_image_lets_go_another_one_takes(tmp_path, registry, monkeypatch):
    """Each holds the lower layer of the other one: both must let go, and what is unpacked is not fetched again."""
    low, high = layer("low", 100), layer("high", 9000)
    there = registry.add_image("acme/app", "there", [low, high])
    registry.add_image("acme/app", "back", [high, low])
    upper = {"there": there.layer_digests[1], "back": there.layer_digests[0]}
    held = threading.Event()
    both = threading.Barrier(2, action=held.set)
    real = transfer.Transfer._fetch

    def fetch(self, fetcher, placing):
        """The first layer that an image comes to is its upper one, and it holds that when the other one does."""
        first = not held.is_set() and str(placing.digest) == upper[self._name.rpartition(":")[2]]
        assert first or held.wait(20)
        real(self, fetcher, placing)
        if first:
            both.wait(20)

    monkeypatch.setattr(transfer.Transfer, "_fetch", fetch)
    command = Command(tmp_path / "home", registry, ["app:there", "app:back"], jobs=4)
    assert not failed(command.run())
    assert registry.count("/blobs/" + upper["there"]) == registry.count("/blobs/" + upper["back"]) == 1


def test_the_largest_layer_of_all_images_goes_first(tmp_path, registry, monkeypatch):
    sizes = {"a": [20_000, 5000], "b": [9000, 40_000], "c": [30_000, 1000]}
    known = {}
    for tag, (one, other) in sizes.items():
        added = registry.add_image("acme/app", tag, [layer(tag + "1", one), layer(tag + "2", other)])
        known |= dict(zip(added.layer_digests, (one, other), strict=True))
    planned, begun = threading.Semaphore(0), []
    real, plan = LayerFetcher.fetch, transfer.Transfer._submit

    def fetch(self, wanted, resources):
        if not begun:
            for _ in known:
                assert planned.acquire(timeout=20)
        begun.append(known[str(wanted.descriptor.digest)])
        return real(self, wanted, resources)

    def submit(self, pool, placing):
        plan(self, pool, placing)
        planned.release()

    monkeypatch.setattr(LayerFetcher, "fetch", fetch)
    monkeypatch.setattr(transfer.Transfer, "_submit", submit)
    assert not failed(Command(tmp_path / "home", registry, ["app:a", "app:b", "app:c"], jobs=1).run())
    assert begun[1:] == sorted(begun[1:], reverse=True)
    assert len(begun) == len(known)


def test_each_image_fails_by_itself(tmp_path, registry):
    common = layer("common", 2000)
    registry.add_image("acme/app", "good", [common, layer("good", 900)])
    bad = registry.add_image("acme/app", "bad", [common, layer("bad", 700)])
    registry.blobs[bad.layer_digests[1]] = registry.blobs[bad.layer_digests[1]][:-1] + b"x"
    command = Command(tmp_path / "home", registry, ["app:bad", "app:good", "app:none"])
    wrong, right, none = command.run()
    assert (type(wrong), type(none)) == (DigestMismatch, NotFoundError)
    assert right.changed
    assert sorted(command.ended) == [0, 1, 2]


def test_a_layer_that_is_bad_is_the_failure_of_every_image_that_has_it(tmp_path, registry):
    common = layer("common", 2000)
    for tag in "ab":
        digest = registry.add_image("acme/app", tag, [common, layer(tag, 900)]).layer_digests[0]
    registry.blobs[digest] = registry.blobs[digest][:-1] + b"x"
    assert [type(x) for x in Command(tmp_path / "home", registry, ["app:a", "app:b"]).run()] == [DigestMismatch] * 2


def test_what_a_failed_image_has_unpacked_is_removed_however_long_that_takes(tmp_path, registry, monkeypatch):
    """Only a person who stops the command must not wait for that."""
    monkeypatch.setattr("msb_pull.store.staging._LAST_SECONDS", 0.0)
    folders = [
        entry for i in range(300) for entry in (folder(f"d{i}"), file(f"d{i}/f", random.Random(i).randbytes(5000)))
    ]
    large = gzip.compress(layer_tar(folders), 1, mtime=0)
    bad = registry.add_image("acme/app", "bad", [layer("bad", 700), large])
    registry.blobs[bad.layer_digests[0]] = registry.blobs[bad.layer_digests[0]][:-1] + b"x"
    command = Command(tmp_path / "home", registry, ["app:bad", "app:none"])
    unpacking = command.store.places.folder

    def until_unpacked() -> None:
        wait_for(lambda: any(unpacking.glob("*/tree/d*")))

    registry.always(bad.layer_digests[0], Fault(before=until_unpacked))
    registry.always(bad.layer_digests[1], Fault(rate=500_000))
    assert len(failed(command.run())) == 2
    assert list(unpacking.iterdir()) == []


def test_an_end_is_that_of_all(tmp_path, registry):
    for tag in "abc":
        registry.add_image("acme/app", tag, [layer(tag, 900)])
    registry.always("/blobs/", Fault(stall_after=100))
    command = Command(tmp_path / "home", registry, ["app:a", "app:b", "app:c"])
    threading.Timer(0.5, command.cancel.set).start()
    assert [type(x) for x in command.run()] == [Cancelled] * 3


def test_an_image_that_is_named_twice_is_pulled_once(tmp_path, registry):
    registry.add_image("acme/app", "a", [layer("a", 900)])
    one, other = Command(tmp_path / "home", registry, ["app:a", "app:a"]).run()
    assert (one.changed, other.changed, one.pinned) == (True, False, other.pinned)


@pytest.mark.parametrize("commands", [1, 2])
def test_twenty_images_with_the_same_layers_in_all_orders(tmp_path, registry, commands):
    """Nobody waits for ever; also not when a second command with a store object of its own does the same."""
    layers = [layer(f"l{number}", 200 * number, whole=number % 2 == 0) for number in range(7)]
    tags = []
    for number in range(20):
        dice = random.Random(number)
        chosen = dice.sample(layers, dice.randint(3, 7))
        registry.add_image("acme/app", f"t{number}", chosen if number % 2 else chosen[::-1])
        tags.append(f"app:t{number}")
    made = [Command(tmp_path / "home", registry, tags, jobs=2 + number) for number in range(commands)]
    found: list[list] = [[] for _ in made]
    threads = [
        threading.Thread(target=lambda number=number: found[number].extend(made[number].run()), daemon=True)
        for number in range(commands)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not any(thread.is_alive() for thread in threads)
    for outcomes in found:
        assert len(outcomes) == 20
        assert not failed(outcomes)
    assert {layer.verdict for layer in verify_images(made[0].store, [], Job()).layers} == {Verdict.PROVEN}


def test_the_rest_is_loaded_while_the_registry_is_asked(tmp_path):
    code = """
import sys, time
from msb_pull.ground.errors import NotFoundError
from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.store import Store
from msb_pull.work.pull import open as opening
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image

name = "msb_pull.work.pull.transfer"
assert name not in sys.modules

class Asked:
    def resolve(self, *words, **more):
        end = time.monotonic() + 20
        while not hasattr(sys.modules.get(name), "Transfer"):
            assert time.monotonic() < end
            time.sleep(0.01)
        raise NotFoundError("loaded")

    def close(self): ...

opening.open_source = lambda *words, **more: Asked()
try:
    pull_image(parse_argument("a.test/b:1"), Store.open(sys.argv[1]), None, PullOptions(), Job())
except NotFoundError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("loaded\n", "")
