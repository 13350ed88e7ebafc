"""What is still to fetch, and which of it is waited for alone in the end."""

from __future__ import annotations

import contextlib
import gzip
import random
import threading
from typing import TYPE_CHECKING

import pytest

from msb_pull.ground.running import Job
from msb_pull.image.digest import Digest
from msb_pull.image.platform import Platform
from msb_pull.image.reference import parse_argument
from msb_pull.layer.report import UnpackOptions
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
from msb_pull.store.store import Store
from msb_pull.work.pull import fetch
from msb_pull.work.pull.coming import Coming
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image
from tests.support.fault_registry import FaultRegistry
from tests.support.make_sample import file, layer_tar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

A, B, C = (Digest.parse("sha256:" + letter * 64) for letter in "abc")


def coming(**sizes: int) -> Coming:
    found = Coming()
    for name, size in sizes.items():
        found.add({"a": A, "b": B, "c": C}[name], size)
    return found


@pytest.mark.parametrize(
    ("sizes", "leader"),
    [
        ({}, None),
        ({"a": 1}, A),
        ({"a": 2, "b": 1}, A),
        ({"a": 1, "b": 1}, None),
        ({"a": 1, "b": 5, "c": 3}, B),
        ({"a": 3, "b": 5, "c": 3}, None),
        ({"a": 0}, None),
    ],
)
def test_the_leader_is_larger_than_all_others_together(sizes, leader):
    assert coming(**sizes).leader() == leader


@pytest.mark.parametrize(("processors", "fewer"), [(1, False), (2, False), (3, True), (16, True)])
def test_a_processor_is_free_where_there_are_fewer_layers(processors, fewer):
    layers = coming(a=1, b=9)
    assert layers.fewer_than(processors) is fewer
    assert coming().fewer_than(1)


def test_what_is_done_counts_no_more_and_what_is_named_twice_counts_once():
    layers = coming(a=3, b=5, c=3)
    layers.add(A, 3)
    layers.done(C)
    assert layers.leader() == B
    layers.done(B)
    layers.done(B)
    assert layers.leader() == A


def pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: Sequence[int], processors: int) -> list[UnpackOptions]:
    """Pulls an image of layers of such sizes; returns how each was to be unpacked."""
    asked = []
    # What has been fetched does not count, and so the next one might lead.
    all_asked = threading.Barrier(len(sizes))

    class Process(fetch.LayerProcess):
        def __init__(self, staging, record, options: UnpackOptions, start) -> None:
            asked.append(options)
            all_asked.wait(20)
            super().__init__(staging, record, options, start)

    monkeypatch.setattr(fetch, "LayerProcess", Process)
    monkeypatch.setattr(fetch, "processors", lambda: processors)
    layers = [gzip.compress(layer_tar([file("f", random.Random(size).randbytes(size))]), 1) for size in sizes]
    with FaultRegistry() as registry:
        registry.add_image("acme/app", "1", layers)
        job = Job(jobs=len(sizes))
        client = RegistryClient(RegistryOptions(retries=0), CredentialStore.nobody(), job)
        with contextlib.closing(client):
            argument = parse_argument(f"{registry.host}/acme/app:1")
            options = PullOptions(platform=Platform("linux", "amd64"))
            pull_image(argument, Store.open(tmp_path), lambda: client, options, job)
    return asked


@pytest.mark.parametrize("processors", [1, 2])
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((3_000_000, 1_200_000, 1000), {3_000_000: (True, False), 1_200_000: (False, True), 1000: (False, True)}),
        ((2_000_000, 1_500_000, 600_000), dict.fromkeys((2_000_000, 1_500_000, 600_000), (False, False))),
        ((500_000, 1000), {500_000: (False, False), 1000: (False, True)}),
    ],
    ids=["one_leads", "none_leads", "too_small_for_two"],
)
def test_the_leader_gets_two_processes_and_goes_before_the_others(tmp_path, monkeypatch, sizes, expected, processors):
    asked = [(options.filler, options.behind) for options in pull(tmp_path, monkeypatch, sizes, processors)]
    assert sorted(asked) == sorted((filler and processors > 1, behind) for filler, behind in expected.values())


@pytest.mark.parametrize(
    ("sizes", "processors", "apart"),
    [
        ((1_200_000, 1_250_000, 1_300_000), 2, [False, False, False]),
        ((1_200_000, 1_250_000, 1_300_000), 4, [True, True, True]),
        ((500_000, 2_000_000), 2, [False, True]),
        ((2_000_000,), 1, [False]),
    ],
)
def test_a_thread_hashes_what_another_inflates_where_a_processor_is_free(
    tmp_path, monkeypatch, sizes, processors, apart
):
    inflating, hashing = threading.local(), []
    inflate, pass_on = fetch._Pipe.inflate, fetch._Pipe.pass_on

    def inflated(pipe, *arguments):
        inflating.here = True
        inflate(pipe, *arguments)

    def passed(pipe, piece):
        hashing.append((pipe._task.descriptor.size, not hasattr(inflating, "here")))
        pass_on(pipe, piece)

    monkeypatch.setattr(fetch._Pipe, "inflate", inflated)
    monkeypatch.setattr(fetch._Pipe, "pass_on", passed)
    pull(tmp_path, monkeypatch, sizes, processors)
    assert [otherwise for _, otherwise in sorted(set(hashing))] == apart
