"""Processes that pull, use and prune in one store with a budget, each looking at what must hold while it holds it."""

from __future__ import annotations

import io
import json
import random
import time
import traceback
from collections import Counter
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from msb_pull.api.clients import registry_options
from msb_pull.config import settings as config
from msb_pull.ground.errors import MsbPullError, NotFoundError
from msb_pull.ground.running import Job
from msb_pull.image.platform import Platform
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.store import Store
from msb_pull.store.uses import InUse
from msb_pull.work.export.export import ExportOptions, export_image
from msb_pull.work.listing import inspect_image
from msb_pull.work.prune import apply
from msb_pull.work.prune.apply import prune_to_fit
from msb_pull.work.prune.budget import Budget, Fit
from msb_pull.work.prune.usage import measure
from msb_pull.work.pull.images import prune_after, pull_images
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.select import Selection

OPTIONS = PullOptions(platform=Platform("linux", "amd64"))


class Worker:
    """One process: draws what it does next, and raises AssertionError where something does not hold."""

    def __init__(self, home: Path, names: list[str], budgets: list[int], seed: str) -> None:
        self._store = Store.open(home)
        self._names = names
        self._budgets = budgets
        self._chance = random.Random(seed)
        self._job = Job(jobs=2)
        self._settings = config.load({"home": str(home)}, {"HOME": str(home.parent)})
        self.done: Counter[str] = Counter()
        self._watch()

    def step(self) -> None:
        """One command."""
        kind = self._chance.choice(("pull", "pull", "pull and prune", "look", "export", "prune"))
        self.done[kind] += 1
        if kind == "prune":
            prune_to_fit(self._store, Fit(Budget(self._chance.choice(self._budgets)), Selection()), self._job)
        elif kind in ("look", "export"):
            # It may be gone, or just going.
            with suppress(NotFoundError):
                self._use(Reference.parse(self._chance.choice(self._names)), kind)
        else:
            self._pull(prune=kind != "pull")

    def _use(self, reference: Reference, kind: str) -> None:
        if kind == "look":
            inspect_image(self._store, reference).directories()
            self._store.uses.touch(str(reference))
        else:
            export_image(self._store, reference, io.BytesIO(), ExportOptions(), self._job)

    def _pull(self, *, prune: bool) -> None:
        names = self._chance.sample(self._names, self._chance.choice((1, 1, 2)))
        client = RegistryClient(registry_options(self._settings), CredentialStore.nobody(), self._job)
        with closing(client), InUse(self._store.uses, self._job) as in_use:
            arguments = [parse_argument(name) for name in names]
            outcomes = pull_images(arguments, self._store, lambda: client, OPTIONS, self._job, in_use=in_use)
            for outcome in outcomes:
                if isinstance(outcome, MsbPullError):
                    raise outcome
            time.sleep(self._chance.uniform(0, 0.02))
            if prune:
                keep = self._chance.choice(self._budgets)
                prune_after(self._store, outcomes, self._job, keep=keep, min_free=None)
            # The others have pruned meanwhile, and so has this one.
            for outcome in outcomes:
                assert Path(outcome.layers[0].path).is_dir(), f"{outcome.reference} went while it was in use"
                inspect_image(self._store, Reference.parse(outcome.reference)).directories()

    def _watch(self) -> None:
        """Looks at the store at the end of each pruning, while it is still held."""
        real, is_used, alone = apply._fit, self._store.uses.is_used, self._store.uses.alone
        used: set[str] = set()

        def watched_use(reference):
            if found := is_used(reference):
                used.add(reference)
            return found

        @contextmanager
        def watched_alone(reference, job):
            with alone(reference, job) as free:
                if not free:
                    used.add(reference)
                yield free

        def watched(store, fit, job, usage):
            used.clear()
            done = real(store, fit, job, usage)
            found = measure(store)
            assert found.total == done.left, f"{done} is said to leave {found}"
            assert done.over == max(done.left - fit.budget.keep, 0)
            if done.over:
                with store.database(create=False) as database:
                    left = database.images()
                may = [x for x in left if fit.may_remove(x.reference) and x.reference not in used]
                wrong = [x.reference for x in may if _costs(x, left, store)]
                assert not wrong, f"above the budget, though {wrong} might have gone"
                self.done["in use"] += 1
            return done

        apply._fit = watched
        self._store.uses.is_used, self._store.uses.alone = watched_use, watched_alone


def _costs(image, left, store) -> bool:
    """Whether an image has a layer that none of the others that are left has."""
    others = {key for x in left if x is not image for key in _reached(x)}
    return any(key not in others and store.has_layer(key) for key in _reached(image))


def _reached(image) -> set[LayerKey]:
    """Of a layer with a form of its own, Microsandbox takes the plain one."""
    return {key for layer in image.layers for key in (layer.key, LayerKey(layer.digest))}


def work(home, names, budgets, seed, turns, each, barrier, answers) -> None:
    """The whole of a process: ``each`` steps a turn, then all wait while the parent looks."""
    worker = Worker(Path(home), names, budgets, seed)
    try:
        for _ in range(turns):
            for _ in range(each):
                worker.step()
            barrier.wait()
            barrier.wait()
    except BaseException:
        answers.put(json.dumps([seed, traceback.format_exc()]))
        barrier.abort()
        raise
    answers.put(json.dumps([seed, worker.done]))
