"""Two pulls at once that want the same layers in awkward moments: both end, whatever each of them holds (D1, D2)."""

from __future__ import annotations

import io
import os
import random
import threading

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, ContentError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.store import Store
from msb_pull.work.pull.fetch import LayerFetcher
from msb_pull.work.pull.plan import Policy, PullOptions
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.pull.transfer import Transfer
from msb_pull.work.save import Format, save_images
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import verify_images
from tests.support.imagebuild import LayoutBuilder, compress, sha256
from tests.support.make_sample import file, folder, layer_tar

PATIENCE = 20


def tar(name: str, size: int) -> bytes:
    return layer_tar([file(name, random.Random(name).randbytes(size))])


SMALL, MIDDLE, LARGE = tar("small", 100), tar("middle", 5_000), tar("large", 50_000)
OWN = tar("own", 200)


def digest(layer: bytes) -> str:
    return sha256(compress(layer))


class Pull:
    """One pull in a thread, through a store object of its own, so that only flock keeps it from the others."""

    def __init__(self, home, layout, tag: str, jobs: int) -> None:
        self.cancel = Cancel()
        self.seen: list[events.Event] = []
        self.error: BaseException | None = None
        self.result = None
        self._arguments = (parse_argument(f"oci:{layout}:{tag}"), Store.open(home), None)
        self._options = PullOptions(policy=Policy.ALWAYS, name=f"localhost/{tag}:1")
        self.waiting = threading.Event()
        self._job = Job(self._observe, self.cancel, jobs)
        self.thread = threading.Thread(target=self._run, name=f"{tag}-{jobs}")
        self.thread.start()

    def _observe(self, event: events.Event) -> None:
        self.seen.append(event)
        if isinstance(event, events.LayerWaiting):
            self.waiting.set()

    def _run(self) -> None:
        try:
            self.result = pull_image(*self._arguments, self._options, self._job)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.thread.join(PATIENCE)
        stuck = self.thread.is_alive()
        self.cancel.set()
        self.thread.join(PATIENCE)
        assert not stuck, f"{self.thread.name} waits for ever"
        if self.error is not None:
            raise self.error


@pytest.fixture
def layout(tmp_path):
    made = LayoutBuilder(tmp_path / "layout")
    made.add(made.image([SMALL, LARGE, MIDDLE]), "one")
    made.add(made.image([OWN, LARGE, MIDDLE]), "other")
    return made.write()


class Script:
    """Makes a fetch of the layer wait until an event is set, and sets one when a fetch begins."""

    def __init__(self, monkeypatch) -> None:
        self.begun: dict[str, threading.Event] = {}
        self.held: dict[str, threading.Event] = {}
        real = LayerFetcher.fetch

        def fetch(fetcher, task, resources):
            name = str(task.descriptor.digest)
            if name in self.begun:
                self.begun[name].set()
            if name in self.held:
                assert self.held[name].wait(PATIENCE)
            return real(fetcher, task, resources)

        monkeypatch.setattr(LayerFetcher, "fetch", fetch)


@pytest.mark.parametrize("second", ["one", "other"])
@pytest.mark.parametrize("jobs", [(1, 2), (2, 2), (1, 1), (2, 1)])
def test_d1_neither_waits_for_a_layer_that_the_other_cannot_finish(tmp_path, layout, monkeypatch, second, jobs):
    """The first holds the large layer; the second, meanwhile, the middle one; the lowest is still to come."""
    script = Script(monkeypatch)
    script.begun = {digest(x): threading.Event() for x in (LARGE, MIDDLE)}
    script.held[digest(LARGE)] = script.begun[digest(MIDDLE)]
    home = tmp_path / "home"
    first = Pull(home, layout, "one", jobs[0])
    assert script.begun[digest(LARGE)].wait(PATIENCE)
    other = Pull(home, layout, second, jobs[1])
    if jobs[0] == jobs[1] == 1 or jobs == (2, 1):
        script.held[digest(LARGE)].set()
    first.end()
    other.end()
    store = Store.open(home)
    with store.database(create=False) as database:
        for image in database.images():
            assert all(store.has_layer(layer.key) for layer in image.layers)
    fetched = sum(layer.fetched > 0 for pull in (first, other) for layer in pull.result.layers)
    assert fetched == len({x.digest for pull in (first, other) for x in pull.result.layers})


@pytest.mark.parametrize("whole", [False, True], ids=["from_below", "whole"])
def test_d1_the_same_layers_the_other_way_round(tmp_path, monkeypatch, whole):
    """Each holds the layer that the other one waits for: the end of both, were nothing let go.

    Layers that are whole in themselves get their names at once, so that none is fetched twice.
    """
    top = [folder("./")] if whole else []
    low, high = (layer_tar([*top, file(x, random.Random(x).randbytes(size))]) for x, size in (("l", 100), ("h", 9000)))
    made = LayoutBuilder(tmp_path / "layout")
    made.add(made.image([low, high]), "there")
    made.add(made.image([high, low]), "back")
    layout = made.write()
    script = Script(monkeypatch)
    script.begun = {digest(x): threading.Event() for x in (low, high)}
    script.held[digest(high)] = script.begun[digest(low)]
    home = tmp_path / "home"
    first = Pull(home, layout, "there", 1)
    assert script.begun[digest(high)].wait(PATIENCE)
    other = Pull(home, layout, "back", 1)
    first.end()
    other.end()
    store = Store.open(home)
    report = verify_images(store, [], Job())
    assert [x.verdict for x in report.layers] == [Verdict.PROVEN] * len(report.layers)
    assert len(report.images) == 2
    assert os.listdir(store.own / "staging") == []
    fetched = sum(layer.fetched > 0 for pull in (first, other) for layer in pull.result.layers)
    assert fetched == 2 or not whole


def test_a_failure_ends_a_pull_that_also_waits_for_somebody(tmp_path, monkeypatch):
    made = LayoutBuilder(tmp_path / "layout")
    made.add(made.image([SMALL, LARGE]), "one")
    made.add(made.image([SMALL]), "other")
    layout = made.write()
    made.path(digest(LARGE)).write_bytes(b"x" * made.path(digest(LARGE)).stat().st_size)
    script = Script(monkeypatch)
    script.begun[digest(SMALL)] = threading.Event()
    script.held[digest(SMALL)] = threading.Event()
    home = tmp_path / "home"
    other = Pull(home, layout, "other", 1)
    assert script.begun[digest(SMALL)].wait(PATIENCE)
    broken = Pull(home, layout, "one", 2)
    try:
        with pytest.raises(ContentError):
            broken.end()
    finally:
        script.held[digest(SMALL)].set()
    other.end()


def test_a_pull_takes_over_what_another_gave_up(tmp_path, layout, monkeypatch):
    script = Script(monkeypatch)
    script.begun[digest(LARGE)] = threading.Event()
    script.held[digest(LARGE)] = threading.Event()
    first = Pull(tmp_path / "home", layout, "one", 1)
    assert script.begun[digest(LARGE)].wait(PATIENCE)
    other = Pull(tmp_path / "home", layout, "one", 2)
    assert other.waiting.wait(PATIENCE)
    assert [x.digest for x in other.seen if isinstance(x, events.LayerWaiting)] == [digest(LARGE)]
    first.cancel.set()
    script.held[digest(LARGE)].set()
    with pytest.raises(Cancelled):
        first.end()
    other.end()
    assert all(layer.fetched for layer in other.result.layers)


def test_a_layer_that_is_swapped_this_moment_is_waited_for(tmp_path, layout, monkeypatch):
    """Its notes are away meanwhile, though it was there when the pull looked."""
    home = tmp_path / "home"
    Pull(home, layout, "one", 1).end()
    store = Store.open(home)
    before = sorted(path.name for path in store.layers.iterdir())
    key = next(x for x in stored_layers(store) if x.digest.hex in digest(LARGE))
    notes = store.notes_path(key)
    aside = notes.with_name("aside")
    real = Transfer._plan

    def plan_and_then(transfer):
        missing = real(transfer)
        notes.rename(aside)
        return missing

    monkeypatch.setattr(Transfer, "_plan", plan_and_then)
    with store.lock_layer(key.digest, lambda holder: None, threading.Event()):
        pull = Pull(home, layout, "one", 1)
        assert pull.waiting.wait(PATIENCE)
        assert [x.digest for x in pull.seen if isinstance(x, events.LayerWaiting)] == [digest(LARGE)]
        aside.rename(notes)
    pull.end()
    assert sorted(path.name for path in store.layers.iterdir()) == before
    assert not pull.result.changed


def test_a_layer_that_is_swapped_this_moment_can_be_saved(tmp_path, layout):
    home = tmp_path / "home"
    Pull(home, layout, "one", 1).end()
    store = Store.open(home)
    key = next(x for x in stored_layers(store) if x.digest.hex in digest(LARGE))
    notes = store.notes_path(key)
    waiting = threading.Event()
    saved = []

    def save():
        def seen(event):
            if isinstance(event, events.LayerWaiting):
                waiting.set()

        words = (Store.open(home), ["localhost/one:1"], io.BytesIO(), Format.OCI)
        saved.append(save_images(*words, Job(seen)))

    with store.lock_layer(key.digest, lambda holder: None, threading.Event()):
        notes.rename(notes.with_name("aside"))
        thread = threading.Thread(target=save)
        thread.start()
        assert waiting.wait(PATIENCE)
        notes.with_name("aside").rename(notes)
    thread.join(PATIENCE)
    assert [image.layers for image in saved[0].images] == [3]


def stored_layers(store):
    with store.database(create=False) as database:
        return [layer.key for image in database.images() for layer in image.layers]
