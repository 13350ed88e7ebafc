"""Four processes pull, use and prune one store: it fits after each pruning, what is in use stays, and all is sound.

``BUDGET_ROUNDS=1000`` runs the long form, ``BUDGET_SEED`` other rounds.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import threading

import pytest

from msb_pull.ground.running import Job
from msb_pull.store.store import Store
from msb_pull.work.prune.apply import prune_to_fit
from msb_pull.work.prune.budget import Budget, Fit
from msb_pull.work.prune.usage import measure, remembered
from msb_pull.work.select import Selection
from msb_pull.work.verify.verify import verify_images
from tests.support.budgets import work
from tests.support.fault_registry import FaultRegistry
from tests.support.make_sample import BASE, TOP, file, folder, layer_tar

# The environment of a test is cleaned before it runs, so these are read here.
ROUNDS = int(os.environ.get("BUDGET_ROUNDS", "80"))
SEED = os.environ.get("BUDGET_SEED", "1")
PROCESSES = 4
EACH = 5
STACKS = {"one": "abc", "two": "abd", "three": "e", "four": "ef", "five": "gh", "six": "bgh", "seven": "d"}


def images(registry: FaultRegistry) -> list[str]:
    """The names to pull."""
    layers = {"g": layer_tar([*BASE, file("a/implied", "x")]), "h": layer_tar([*TOP, file("b/implied", "y")])}
    for name, count, size in (
        ("a", 4, 30_000),
        ("b", 20, 800),
        ("c", 1, 200),
        ("d", 2, 90_000),
        ("e", 9, 9000),
        ("f", 1, 1),
    ):
        files = [file(f"{name}/f{i}", random.Random(f"{name}{i}").randbytes(size)) for i in range(count)]
        layers[name] = layer_tar([folder("./"), folder(name), *files])
    packed = {name: gzip.compress(tar, 1, mtime=0) for name, tar in layers.items()}
    for tag, stack in STACKS.items():
        registry.add_image("acme/app", tag, [packed[x] for x in stack])
    return [f"{registry.host}/acme/app:{tag}" for tag in STACKS]


def look(store: Store, turn: int, budgets: list[int]) -> None:
    """What must hold while nobody is at work."""
    report = verify_images(store, [], Job())
    assert not report.damaged and not report.misrecorded, report
    with store.database(create=False) as database:
        for image in database.images():
            assert all(store.has_layer(layer.key) for layer in image.layers), image.reference
    keep = budgets[turn % len(budgets)]
    done = prune_to_fit(store, Fit(Budget(keep), Selection()), Job())
    assert done.over == 0 and measure(store).total == done.left <= keep
    assert measure(store, remembered(store)).total == done.left
    assert os.listdir(store.own / "staging") == []


@pytest.mark.timeout(120 + 5 * ROUNDS)
def test_d41_a_store_keeps_to_its_budget_whatever_goes_on(tmp_path):
    context = multiprocessing.get_context("spawn")
    turns = max(1, ROUNDS // (PROCESSES * EACH))
    barrier, answers = context.Barrier(PROCESSES + 1), context.Queue()
    with FaultRegistry() as registry:
        home, names = tmp_path / "home", images(registry)
        store = Store.open(home)
        budgets = [1, 150_000, 300_000, 600_000]
        given = (str(home), names, budgets)
        workers = [
            context.Process(target=work, args=(*given, f"{SEED}/{number}", turns, EACH, barrier, answers), daemon=True)
            for number in range(PROCESSES)
        ]
        for worker in workers:
            worker.start()
        try:
            for turn in range(turns):
                barrier.wait(120 + 10 * EACH)
                look(store, turn, budgets)
                barrier.wait()
        except threading.BrokenBarrierError:
            pytest.fail(answers.get(timeout=10))
        said = [json.loads(answers.get(timeout=60)) for _ in workers]
        for worker in workers:
            worker.join(60)
    print(f"\nseed {SEED}, {turns * EACH * PROCESSES} rounds: {said}")
    assert all(worker.exitcode == 0 for worker in workers), said
