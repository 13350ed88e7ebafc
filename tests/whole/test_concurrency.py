"""Eight pulls of overlapping images at once, with prune, rm, verify and the rest in loops beside them (D1, D27, D28).

Every command is a process of the installed program. What must hold: each ends, and with a right exit code; each tree
that stands under its final name is whole at any moment; and of each layer the number of unpackings is the number of its
removals, plus one if it is there in the end. ``CONCURRENCY_SECONDS=600`` runs the long form.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager

import pytest

from msb_pull.store.store import Store
from tests.support.fault_registry import FaultRegistry
from tests.support.home import LINUX, Home, unread
from tests.support.make_sample import BASE, TOP, file, folder, layer_tar
from tests.support.program import run_program
from tests.support.treecompare import describe, differences

# The environment of a test is cleaned before it runs, so this is read here.
SECONDS = float(os.environ.get("CONCURRENCY_SECONDS", "8"))
PULLS = 8
# A command that takes so long waits for something that never comes.
FOREVER = 120
DOCUMENT = ("--format", "json", "--progress", "none")


def many(name: str, count: int, size: int) -> bytes:
    files = [file(f"{name}/f{i}", random.Random(f"{name}{i}").randbytes(size)) for i in range(count)]
    return gzip.compress(layer_tar([folder("./"), folder(name), *files]), 6, mtime=0)


STACKS = {
    "one": "abcd",
    "two": "abce",
    "three": "acfa",  # a layer twice
    "four": "efcba",  # the same layers the other way round
    "five": "dcba",
    "six": "gb",  # facts of a parent folder from other layers below
    "seven": "ab" + "gh",
    "eight": "h",
}


def images(registry: FaultRegistry) -> dict[str, str]:
    """Name to pull for each tag."""
    sizes = {"a": (60, 800), "b": (10, 40_000), "c": (1, 200), "d": (30, 9000), "e": (120, 300), "f": (4, 90_000)}
    layers = {name: many(name, *size) for name, size in sizes.items()}
    layers["g"] = gzip.compress(layer_tar([*BASE, file("a/implied", "takes its parent from below")]), 6, mtime=0)
    layers["h"] = gzip.compress(layer_tar([*TOP, file("b/implied", "so does this")]), 6, mtime=0)
    for tag, stack in STACKS.items():
        registry.add_image("acme/app", tag, [layers[x] for x in stack])
    return {tag: f"{registry.host}/acme/app:{tag}" for tag in STACKS}


class Beside:
    """Commands in threads on one store, until the time is over; everything that went wrong is kept."""

    def __init__(self, home: Home, names: dict[str, str], seconds: float, seed: int) -> None:
        self.home = home
        self.names = names
        self.end = time.monotonic() + seconds
        self.chance = random.Random(seed)
        self.guard = threading.Lock()
        self.failures: list[str] = []
        self.codes: Counter[tuple[str, int]] = Counter()
        self.longest: Counter[str] = Counter()
        self.unpacked: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        # Of those that were unpacked, what was made from another form that was here.
        self.reused: Counter[str] = Counter()
        # What was asked for early by pulls that did not come to make it.
        self.unread: Counter[str] = Counter()

    def choose(self, things):
        with self.guard:
            return self.chance.choice(things)

    def fail(self, text: str) -> None:
        with self.guard:
            self.failures.append(text)

    def command(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Runs one command; returns what it printed if it ended well, else an empty text."""
        kind = arguments[0]
        started = time.monotonic()
        try:
            done = run_program([*arguments, *self.home.command], cwd=self.home.folder, timeout=FOREVER)
        except subprocess.TimeoutExpired as error:
            self.fail(str(error))
            return ""
        code, out, error = done.returncode, done.stdout, done.stderr
        with self.guard:
            self.unread += unread(error)
            self.codes[kind, code] += 1
            self.longest[kind] = max(self.longest[kind], round(time.monotonic() - started, 1))
        if code not in codes or "Traceback" in error:
            self.fail(f"{arguments} ended with {code}\n{out}{error}")
        return out if code == 0 else ""

    def pull(self) -> None:
        wanted = [self.choose(list(self.names)) for _ in range(self.choose((1, 1, 2)))]
        wanted = list(dict.fromkeys(wanted))
        options = ("--policy", self.choose(("missing", "missing", "always")), "--jobs", self.choose("124"), "-vv")
        out = self.command("pull", *DOCUMENT, *LINUX, *options, *(self.names[x] for x in wanted))
        if not out:
            return
        found = json.loads(out)["images"]
        if [x["reference"] for x in found] != [self.names[x] for x in wanted]:
            self.fail(f"asked for {wanted}, told of {found}")
        # By image: between two of them a layer may be removed, and then be made again.
        made = [{os.path.basename(y["path"]) for y in x["layers"] if y["fetched_bytes"] or y["reused"]} for x in found]
        reused = [{os.path.basename(y["path"]) for y in x["layers"] if y["reused"]} for x in found]
        with self.guard:
            for counter, names in [(self.unpacked, x) for x in made] + [(self.reused, x) for x in reused]:
                counter.update(names)

    def taken(self, out: str) -> None:
        if out:
            with self.guard:
                self.removed.update(f"{x['name']}.extracted" for x in json.loads(out)["layers"])

    def remove(self) -> None:
        self.taken(self.command("rm", *DOCUMENT, self.names[self.choose(list(self.names))], codes=(0, 3)))
        time.sleep(0.2)

    def prune(self) -> None:
        more = self.choose(((), ("--all",), ("--no-wait",), ("--all", "--filter", f"reference={self.names['two']}")))
        self.taken(self.command("prune", *DOCUMENT, "--yes", *more, codes=(0, 7) if "--no-wait" in more else (0,)))
        time.sleep(0.2)

    def verify(self) -> None:
        what = self.choose(((), ("--quick",), (self.names["one"],)))
        self.command("verify", *DOCUMENT, *what, codes=(0, 3) if what and what[0][0] != "-" else (0,))

    def look(self) -> None:
        name = self.names[self.choose(list(self.names))]
        kind = self.choose((("ls",), ("inspect", name), ("save", name, "-o", "/dev/null"), ("prune", "--dry-run")))
        self.command(*kind, codes=(0,) if kind[0] in ("ls", "prune") else (0, 3))

    def loop(self, work) -> None:
        while time.monotonic() < self.end:
            try:
                work()
            except Exception as error:
                self.fail(f"{work.__name__}: {error!r}")
                return

    def run(self, watch) -> None:
        """All loops, and ``watch`` now and then between them."""
        loops = [self.pull] * PULLS + [self.remove, self.prune, self.verify, self.look]
        threads = [threading.Thread(target=self.loop, args=(x,), name=x.__name__) for x in (*loops, watch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, self.end - time.monotonic()) + 3 * FOREVER)
        assert not any(x.is_alive() for x in threads)


@contextmanager
def nothing_removed(home: Home):
    """Holds the store as a pull does, so that nothing is taken away meanwhile."""
    with open(home.layers / ".msb-pull" / "locks" / "store.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def expected_trees(folder, names: dict[str, str]) -> dict[str, dict]:
    """Every layer as a pull with nobody beside it makes it, for each image in a store of its own.

    A layer may have several forms, each under the digest alone or with its base's name behind it, depending on which
    image came first: listed are all that occur.
    """
    found: dict[str, list[dict]] = {}
    for tag, name in names.items():
        (folder / tag).mkdir(parents=True)
        alone = Home(folder / tag)
        run = alone.pull("-q", name)
        assert run.returncode == 0, run.stderr
        for path in alone.layers.glob("*.extracted"):
            found.setdefault(digest_of(path.name), []).append(describe(path))
    return found


def digest_of(name: str) -> str:
    return name.removesuffix(".extracted").partition("+")[0]


@pytest.mark.timeout(180 + 2 * SECONDS + 4 * FOREVER)
def test_d1_pulls_and_removals_side_by_side(tmp_path):
    with FaultRegistry() as registry:
        names = images(registry)
        expected = expected_trees(tmp_path / "alone", names)
        registry.requests.clear()
        registry.set_total_rate(4_000_000)
        (tmp_path / "shared").mkdir()
        home = Home(tmp_path / "shared")
        assert home.run("ls").returncode == 0
        beside = Beside(home, names, SECONDS, seed=5)
        checked = Counter()

        def check_trees() -> None:
            if not (home.store / "oci.db").exists():
                time.sleep(0.2)
                return
            with nothing_removed(home):
                for path in home.layers.glob("*.extracted"):
                    tree = describe(path)
                    checked["trees"] += 1
                    if not any(differences(tree, known) == [] for known in expected[digest_of(path.name)]):
                        beside.fail(f"{path.name} is wrong")
                with closing(Store.open(home.store, create=False).database(create=False)) as database:
                    for image in database.images():
                        checked["images"] += 1
                        for layer in image.layers:
                            if not (home.layers / f"{layer.key}.extracted").is_dir():
                                beside.fail(f"{image.reference} is recorded without {layer.key}")
            time.sleep(1)

        beside.run(check_trees)
        registry.set_total_rate(None)
        told = f"{sum(beside.codes.values())} commands in {SECONDS:.0f} s, {len(beside.failures)} failures"
        print(f"\n{told}\n(command, exit code): {dict(sorted(beside.codes.items()))}")
        print(f"longest, seconds: {dict(beside.longest)}; looked at meanwhile: {dict(checked)}")
        counts = beside.unpacked.total(), beside.removed.total(), beside.unread.total()
        print("unpacked {}, removed {}, asked for and not read {}".format(*counts))
        assert not beside.failures, "\n\n".join(beside.failures[:10])
        there = {x.name for x in home.layers.glob("*.extracted")}
        for name in {*beside.unpacked, *beside.removed, *there}:
            assert beside.unpacked[name] == beside.removed[name] + (name in there), name
        # Not one was fetched in vain either.
        fetches = Counter(x.path.rpartition("/")[2] for x in registry.asked("/blobs/", "GET"))
        layers = {digest_of(x) for x in beside.unpacked}
        for digest in layers:
            fetched = beside.unpacked - beside.reused
            made = sum(count for name, count in fetched.items() if digest_of(name) == digest)
            # Of a request that was given up it is not known whether it was sent.
            assert made <= fetches[digest] <= made + beside.unread[digest.partition(":")[2][:12]], digest
        assert home.pull("-q", *names.values()).returncode == 0
        assert home.run("verify", "-q").returncode == 0
        assert os.listdir(home.layers / ".msb-pull" / "staging") == []
        assert os.listdir(home.layers / ".msb-pull" / "partial") == []
