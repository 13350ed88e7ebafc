"""Layers are asked for beside the config, which changes nothing but how long that takes."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from dataclasses import replace

import pytest

from msb_pull.ground.errors import Cancelled, LocalError, MsbPullError
from msb_pull.ground.events import Logged
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.manifest import Descriptor
from msb_pull.image.platform import Platform
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
from msb_pull.source.registry.routes import EndpointRoute
from msb_pull.store.store import Store
from msb_pull.work.pull.coming import Allowance
from msb_pull.work.pull.images import pull_images
from msb_pull.work.pull.plan import Pin, PullOptions
from tests.support.counting import wait_for
from tests.support.fault_registry import OCI_CONFIG, OCI_LAYER_GZIP, Fault, FaultRegistry, digest_of
from tests.support.home import gz
from tests.support.make_sample import file, folder, layer_tar
from tests.support.registries import describe

pytestmark = pytest.mark.timeout(120)
AMD64 = Platform("linux", "amd64")


def tar(name: str, size: int) -> bytes:
    return layer_tar([folder("./"), file(name, random.Random(name).randbytes(size))])


class Command:
    """Pulls of ``acme/app`` into a store of its own."""

    def __init__(self, home, registry: FaultRegistry) -> None:
        self.store = Store.open(home)
        self.registry = registry
        self.cancel = Cancel()
        self.seen: list = []

    def add(self, tag: str, *sizes: int, **more):
        return self.registry.add_image("acme/app", tag, [gz(tar(f"{tag}{x}", x)) for x in sizes], **more)

    def pull(self, *tags: str, jobs: int | None = None, limit_rate: int | None = None, retries: int = 0, **options):
        """The outcomes, results or errors."""
        job = Job(self.seen.append, self.cancel, jobs)
        arguments = [parse_argument(f"{self.registry.host}/acme/app:{tag}") for tag in tags]
        settled = PullOptions(**{"platform": AMD64, **options})
        client = RegistryClient(RegistryOptions(retries=retries, limit_rate=limit_rate), CredentialStore.nobody(), job)
        with contextlib.closing(client):
            return pull_images(arguments, self.store, lambda: client, settled, job)

    def layers_asked(self, image) -> list[str]:
        asked = [x.path.rpartition("/")[2] for x in self.registry.asked("/blobs/")]
        return [x for x in asked if x in image.layer_digests]

    def listing(self) -> set[str]:
        """All files of the home, without locks, which stay."""
        found = {os.path.join(top, x) for top, _, files in os.walk(self.store.home) for x in files}
        return {x for x in found if not x.endswith(".lock")}

    def asked_by_the_config(self, image, *tags: str, count: int, **options):
        """How many layers had been asked for when the config was about to be answered, which waits for ``count``."""
        noted = []

        def note() -> None:
            wait_for(lambda: len(self.layers_asked(image)) >= count)
            noted.append(len(self.layers_asked(image)))

        self.registry.script(image.config_digest, Fault(before=note))
        outcomes = self.pull(*tags, **options)
        assert not [x for x in outcomes if isinstance(x, MsbPullError)]
        return noted[0]


@pytest.fixture
def command(tmp_path):
    with FaultRegistry() as registry:
        yield Command(tmp_path / "home", registry)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [x for x in threading.enumerate() if x.name == "early"]


def test_layers_are_asked_for_before_the_config_is_there(command):
    image = command.add("a", 3000, 200, 1000)
    assert command.asked_by_the_config(image, "a", count=3) == 3
    assert sorted(command.layers_asked(image)) == sorted(image.layer_digests)


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_config_and_layers_together_are_no_more_than_are_fetched_at_once(command, jobs):
    """A server may allow so many connections only, which is what some people say ``--jobs 1`` for."""
    image = command.add("a", *range(1000, 6000, 1000))
    early = jobs - 1
    assert command.asked_by_the_config(image, "a", count=early, jobs=jobs) == early
    assert sorted(command.layers_asked(image)[:early]) == sorted(image.layer_digests[5 - early :])
    assert sorted(command.layers_asked(image)) == sorted(image.layer_digests)
    # One more asks whether TLS is spoken here, and what is prepared may come later than the request that it is for.
    assert len(command.registry.connections) <= jobs + 1 + (jobs > 1)


def test_each_of_several_images_has_a_place_for_its_config_and_a_layer():
    layers = [Descriptor(OCI_LAYER_GZIP, describe(bytes([x])).digest, 1000) for x in range(9)]
    places = Allowance(Job(jobs=7))
    assert places.enter() and places.enter()
    assert len(places.take(layers)) == 4
    assert len(places.take(layers)) == 1
    assert not places.enter()


def test_a_local_image_takes_no_place_of_another_one(command, tmp_path):
    asked = []
    image = command.add("a", 3000, 200)
    job = Job(asked.append, command.cancel, 2)
    client = RegistryClient(RegistryOptions(retries=0), CredentialStore.nobody(), job)
    command.registry.script(image.config_digest, Fault(before=lambda: wait_for(lambda: command.layers_asked(image))))
    arguments = [parse_argument(f"oci:{tmp_path}/none"), parse_argument(f"{command.registry.host}/acme/app:a")]
    with contextlib.closing(client):
        missing, result = pull_images(arguments, command.store, lambda: client, PullOptions(platform=AMD64), job)
    assert isinstance(missing, MsbPullError) and not isinstance(result, MsbPullError)


def test_of_large_layers_fewer_are_asked_for():
    layers = [Descriptor(OCI_LAYER_GZIP, describe(bytes([x])).digest, 1 << (30 if x < 9 else 10)) for x in range(30)]
    job = Job()
    allowance = Allowance(job)
    assert allowance.enter()
    first = allowance.take(layers)
    # The last one is that of the config.
    assert len(first) == job.at_once - 1
    assert sum(x.size > 1 << 20 for x in first) == min(job.large_at_once, job.at_once - 1)
    assert not allowance.enter()


@pytest.mark.parametrize("options", [{}, {"force": True}])
def test_what_is_here_is_not_asked_for(command, options):
    """Nor what is recorded for a lost directory alone; ``--force`` wants it all the same."""
    shared = gz(tar("shared", 5000))
    command.registry.add_image("acme/app", "a", [shared])
    image = command.registry.add_image("acme/app", "b", [shared, gz(tar("more", 300))])
    command.pull("a")
    command.registry.forget()
    wanted = image.layer_digests[1:] if not options else image.layer_digests
    assert command.asked_by_the_config(image, "b", count=len(wanted), **options) == len(wanted)
    assert sorted(command.layers_asked(image)) == sorted(wanted)


def test_where_a_layer_might_be_made_from_another_one_only_connections_are_opened(command):
    command.add("a", 700)
    image = command.add("b", 3000, 2000, 1000)
    command.pull("a")
    command.registry.forget()
    before = len(command.registry.connections)

    def opened() -> None:
        # That of the question for TLS, that of the manifest, and one for each layer but one.
        wait_for(lambda: len(command.registry.connections) - before == 4)
        assert not command.layers_asked(image)

    command.registry.script(image.config_digest, Fault(before=opened))
    (result,) = command.pull("b")
    assert result.changed
    assert len({x.connection for x in command.registry.asked()}) <= 3


def test_while_another_command_unpacks_nothing_is_asked_for_early(command):
    """What it brings need not be fetched."""
    image = command.add("a", 3000, 200)
    command.store.begin()
    (command.store.places.folder / "somebody" / "tree").mkdir(parents=True)
    assert command.asked_by_the_config(image, "a", count=0) == 0


def test_what_is_staged_but_no_layer_keeps_nobody_from_asking_early(command):
    """Such as the probe of the file system that another image of the same command makes."""
    image = command.add("a", 3000, 200)
    with command.store.places.private("probe") as place:
        place.mkdir(parents=True)
        assert command.asked_by_the_config(image, "a", count=2) == 2


def test_two_commands_that_begin_at_once_bring_the_same(tmp_path, command):
    image = command.add("a", *range(1000, 9000, 1000))
    commands = [command, Command(tmp_path / "home", command.registry)]
    command.registry.always(image.config_digest, Fault(before=threading.Barrier(2).wait))
    found: list = [[], []]
    threads = [threading.Thread(target=lambda n=n: found[n].extend(commands[n].pull("a"))) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [x.digest for outcomes in found for x in outcomes] == [image.manifest_digest] * 2
    # Each may have asked for what the other one then has, but only once.
    assert max(command.layers_asked(image).count(x) for x in image.layer_digests) <= 2


def pinned(command: Command, image) -> dict:
    return {"pins": {f"{command.registry.host}/acme/app:a": Pin()}}


@pytest.mark.parametrize(
    "options",
    [lambda *_: {"dry_run": True}, pinned, lambda *_: {"limit_rate": 1 << 30}],
    ids=["dry run", "lock file", "limited rate"],
)
def test_where_something_else_comes_first_nothing_is_asked_for_early(command, options):
    image = command.add("a", 3000, 200)
    assert command.asked_by_the_config(image, "a", count=0, **options(command, image)) == 0


def test_what_has_arrived_in_part_is_resumed(command):
    image = command.add("a", 100_000)
    command.registry.script(image.layer_digests[0], Fault(cut_after=50_000))
    (error,) = command.pull("a")
    assert isinstance(error, MsbPullError)
    command.registry.forget()
    assert command.asked_by_the_config(image, "a", count=0) == 0
    (asked,) = command.registry.asked(image.layer_digests[0])
    assert asked.headers["range"] == "bytes=50000-"


def other_config(command: Command, image, config: bytes, size: int | None = None) -> str:
    """Gives the image another config; returns its digest."""
    layers = [
        {"mediaType": OCI_LAYER_GZIP, "digest": x, "size": len(command.registry.blobs[x])} for x in image.layer_digests
    ]
    digest = command.registry.add_blob(config)
    described = {"mediaType": OCI_CONFIG, "digest": digest, "size": len(config) if size is None else size}
    command.registry.add_manifest("acme/app", "a", {"schemaVersion": 2, "config": described, "layers": layers})
    return digest


ONE_DIFF_ID = b'{"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ["%s"]}}' % digest_of(b"").encode()
BAD_CONFIGS = {
    "for another platform": b'{"os": "linux", "architecture": "s390x", "rootfs": {"diff_ids": ["%s", "%s"]}}'
    % ((digest_of(b"").encode(),) * 2),
    "a diff_id too few": ONE_DIFF_ID,
    "a bad diff_id": b'{"rootfs": {"diff_ids": ["sha256:1", "sha256:2"]}}',
    "no diff_ids": b'{"os": "linux", "architecture": "amd64"}',
    "not JSON": b"<html>",
    "not an object": b"[]",
}
BAD_ANSWERS = {
    "other digest": Fault(flip=10),
    "cut": Fault(cut_after=20),
    "short": Fault(end_after=20),
    "long": Fault(extra=b"x"),
    "missing": Fault(status=404),
    "refused": Fault(status=403),
    "server error": Fault(status=500),
    "hangs up": Fault(drop=True),
    "web page": Fault(status=200, body=b"<html>login", headers={"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("bad", [*BAD_CONFIGS, *BAD_ANSWERS])
def test_a_config_that_is_refused_while_layers_are_half_here(tmp_path, command, bad, monkeypatch):
    image = command.add("a", 300_000, 200_000)
    config = other_config(command, image, BAD_CONFIGS.get(bad, image.config_bytes))
    for digest in image.layer_digests:
        command.registry.always(digest, Fault(stall_after=70_000))
    half = [lambda: all(command.registry.sent[f"/v2/acme/app/blobs/{x}"] >= 70_000 for x in image.layer_digests)]
    late = replace(BAD_ANSWERS.get(bad, Fault()), before=lambda: [wait_for(x) for x in half])
    command.registry.always(config, late)
    before = command.listing()
    (error,) = command.pull("a")
    assert isinstance(error, MsbPullError)
    assert len(command.layers_asked(image)) == 2 and command.listing() == before
    logged = [x.text for x in command.seen if isinstance(x, Logged) and "beside the config" in x.text]
    assert sorted(logged) == sorted(
        f"blob {x[7:19]} was asked for beside the config, and not read" for x in image.layer_digests
    )
    # It says what is said where the config is asked for first.
    half.clear()
    command.registry.requests.clear()
    monkeypatch.setattr("msb_pull.work.pull.coming.expected", lambda *_, **more: None)
    (same,) = Command(tmp_path / "other", command.registry).pull("a")
    assert not command.layers_asked(image)
    assert told(error) == told(same)


def told(error: MsbPullError) -> tuple:
    return type(error), error.exit_code, error.message, error.cause, error.hint


def test_a_config_that_is_too_large_is_not_asked_for_and_no_layer_either(command):
    image = command.add("a", 300_000)
    other_config(command, image, b"{}", size=(4 << 20) + 1)
    (error,) = command.pull("a")
    assert "config is larger" in str(error) and not command.registry.asked("/blobs/")


def test_a_config_that_hangs_ends_with_the_pull(command):
    image = command.add("a", 300_000, 200_000)
    command.registry.always(image.config_digest, Fault(stall_after=10))
    command.registry.always(image.layer_digests[0], Fault(stall_after=10))
    before = command.listing()

    def stop() -> None:
        wait_for(lambda: command.registry.sent and len(command.layers_asked(image)) == 2)
        command.cancel.set()

    thread = threading.Thread(target=stop)
    thread.start()
    (error,) = command.pull("a")
    thread.join()
    assert isinstance(error, Cancelled)
    assert command.listing() == before


def test_an_answer_that_does_not_begin_ends_with_a_refused_config(command):
    image = command.add("a", 300_000, diff_ids=[])
    gate = threading.Event()
    command.registry.always(image.layer_digests[0], Fault(before=lambda: gate.wait(60)))
    (error,) = command.pull("a")
    gate.set()
    assert "0 diff_ids" in str(error)


@pytest.mark.parametrize(
    "fault", [Fault(status=404), Fault(status=403), Fault(status=500), Fault(drop=True), Fault(content_length=7)]
)
def test_a_layer_that_is_refused_says_what_it_always_said(tmp_path, command, fault, monkeypatch):
    image = command.add("a", 3000, 200)
    command.registry.always(image.layer_digests[0], fault)
    (error,) = command.pull("a")
    asked = command.layers_asked(image).count(image.layer_digests[0])
    command.registry.requests.clear()
    monkeypatch.setattr("msb_pull.work.pull.coming.expected", lambda *_, **more: None)
    (same,) = Command(tmp_path / "other", command.registry).pull("a")
    assert told(error) == told(same)
    assert asked == command.layers_asked(image).count(image.layer_digests[0])


@pytest.mark.parametrize("fault", [Fault(flip=100), Fault(cut_after=1000), Fault(end_after=1000)])
def test_a_layer_that_breaks_off_or_is_damaged_is_mended(command, fault):
    image = command.add("a", 50_000, 200)
    command.registry.script(image.layer_digests[0], fault)
    job = Job(command.seen.append, command.cancel)
    with contextlib.closing(RegistryClient(RegistryOptions(), CredentialStore.nobody(), job)) as client:
        argument = parse_argument(f"{command.registry.host}/acme/app:a")
        (result,) = pull_images([argument], command.store, lambda: client, PullOptions(platform=AMD64), job)
    assert result.changed
    assert command.layers_asked(image).count(image.layer_digests[0]) == 2


def test_of_several_images_one_has_a_bad_config(command):
    """The layers that it has asked for come to the others all the same."""
    common = gz(tar("common", 90_000))
    bad = command.registry.add_image("acme/app", "bad", [common], diff_ids=[])
    good = [command.registry.add_image("acme/app", x, [common, gz(tar(x, 700))]) for x in ("b", "c")]
    error, *others = command.pull("bad", "b", "c")
    assert "0 diff_ids" in str(error)
    assert not [x for x in others if isinstance(x, MsbPullError)]
    assert {x.digest for x in others[0].layers} == set(good[0].layer_digests)
    assert command.layers_asked(bad)


def test_what_several_images_have_in_common_is_asked_for_once(command):
    common = [gz(tar(f"common{x}", x * 1000)) for x in range(1, 4)]
    images = [command.registry.add_image("acme/app", x, [*common, gz(tar(x, 700))]) for x in "abc"]
    assert not [x for x in command.pull(*"abc") if isinstance(x, MsbPullError)]
    asked = [x.path for x in command.registry.asked("/blobs/")]
    assert len(asked) == len(set(asked)) == len(common) + 2 * len(images)


def none_wait() -> None:
    """Until no thread asks for anything early, or keeps what was answered."""
    wait_for(lambda: not [x for x in threading.enumerate() if x.name == "early"])


def test_an_answer_that_waited_for_too_long_is_ended_and_asked_for_anew(command, monkeypatch):
    """It may be what keeps the config back, where a server gives only so many answers at a time."""
    monkeypatch.setattr("msb_pull.source.registry.early._LIFE", 0.01)
    image = command.add("a", 3000, 200)

    def wait() -> None:
        wait_for(lambda: len(command.layers_asked(image)) == 2)
        none_wait()

    command.registry.script(image.config_digest, Fault(before=wait))
    (result,) = command.pull("a")
    assert result.changed and len(command.layers_asked(image)) == 4


@pytest.mark.parametrize("status", [503, 429])
def test_where_the_config_is_refused_for_now_early_answers_are_ended(command, status, monkeypatch):
    monkeypatch.setattr("msb_pull.source.registry.early._LIFE", 60)
    image = command.add("a", 3000, 200)
    asked = Fault(status=status, before=lambda: wait_for(lambda: len(command.layers_asked(image)) == 2))
    command.registry.script(image.config_digest, asked, Fault(before=none_wait))
    (result,) = command.pull("a", retries=1)
    assert result.changed and len(command.layers_asked(image)) == 4


@pytest.mark.parametrize("trouble", [LocalError("too many open files"), OSError(24, "no"), MemoryError()])
def test_what_keeps_an_early_request_from_being_made_here_may_pass(command, trouble, monkeypatch):
    real = EndpointRoute.open

    def fail(self, *arguments, **named):
        if threading.current_thread().name == "early":
            raise trouble
        return real(self, *arguments, **named)

    monkeypatch.setattr(EndpointRoute, "open", fail)
    image = command.add("a", 3000, 200)
    (result,) = command.pull("a")
    assert result.changed and sorted(command.layers_asked(image)) == sorted(image.layer_digests)


def test_what_one_registry_sends_is_not_taken_for_what_another_one_would(command):
    """Two may know the same layer; one of them may lie, which is not to harm an image of the other one."""
    layer = gz(tar("common", 3000))
    image = command.registry.add_image("acme/app", "a", [layer])
    with FaultRegistry() as liar:
        liar.add_image("acme/app", "a", [layer], diff_ids=[])
        liar.always(image.layer_digests[0], Fault(chunked=True, extra=b"x"))
        job = Job(command.seen.append, command.cancel)
        with contextlib.closing(RegistryClient(RegistryOptions(), CredentialStore.nobody(), job)) as client:
            lies, truth = (
                client.source(
                    Reference.parse(f"{x.host}/acme/app:a"), expect=lambda manifest: (list(manifest.layers), True)
                )
                for x in (liar, command.registry)
            )
            with contextlib.closing(lies), contextlib.closing(truth):
                with pytest.raises(MsbPullError):
                    lies.resolve(AMD64, explicit=True)
                wait_for(lambda: liar.asked(image.layer_digests[0]))
                with truth.open_blob(describe(layer), 0) as stream:
                    assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == layer
    assert len(command.layers_asked(image)) == 1


def test_where_there_can_be_no_more_threads_all_is_asked_in_turn(command, monkeypatch):
    def none(*_):
        raise LocalError("no more threads")

    monkeypatch.setattr("msb_pull.source.registry.early.start_thread", none)
    image = command.add("a", 3000)
    (result,) = command.pull("a")
    assert result.changed and command.layers_asked(image) == image.layer_digests


def test_a_store_that_cannot_be_read_asks_for_the_config_first(command, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("msb_pull.work.pull.coming.layers_noted", refuse)
    image = command.add("a", 3000)
    assert command.asked_by_the_config(image, "a", count=0) == 0


def test_the_digest_of_the_blob_is_that_of_a_layer_and_of_the_config(command):
    """Nobody makes that; it is one blob, which each reads for itself."""
    image = command.add("a", 3000)
    same = {"mediaType": OCI_LAYER_GZIP, "digest": image.config_digest, "size": len(image.config_bytes)}
    config = {"mediaType": OCI_CONFIG, "digest": image.config_digest, "size": len(image.config_bytes)}
    command.registry.add_manifest("acme/app", "a", {"schemaVersion": 2, "config": config, "layers": [same]})
    (error,) = command.pull("a")
    assert digest_of(image.config_bytes)[7:19] in str(error)
