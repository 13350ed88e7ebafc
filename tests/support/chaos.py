"""Everything at once on one store: commands side by side, signals, files damaged under them; and what must hold after.

A round is drawn from a seed before it begins, so that it can be run again, though never with the same timing. It starts
and ends with a store that holds all images and is sound.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import program, program_environment
from tests.support.counting import wait_for
from tests.support.fault_registry import FaultRegistry
from tests.support.home import LINUX, Home
from tests.support.make_sample import BASE, TOP, file, folder, layer_tar
from tests.support.processes import children, gone
from tests.support.program import run_program

WORKERS = 4
# A command that takes so long waits for something that never comes.
FOREVER = 60
RATE = 4_000_000
# The same layers in orders that contradict each other, one of them twice, and two that take facts from below.
STACKS = {"one": "abcd", "two": "dcba", "three": "agbh", "four": "hbga", "five": "cac"}


def images(registry: FaultRegistry) -> dict[str, str]:
    """What is printed for each image, by the name to pull."""
    layers = {"g": layer_tar([*BASE, file("a/implied", "x")]), "h": layer_tar([*TOP, file("b/implied", "y")])}
    # The last one is large enough for two processes.
    for name, count, size in (("a", 60, 800), ("b", 8, 20_000), ("c", 1, 200), ("d", 30, 45_000)):
        files = [file(f"{name}/f{i}", random.Random(f"{name}{i}").randbytes(size)) for i in range(count)]
        layers[name] = layer_tar([folder("./"), folder(name), *files])
    packed = {name: gzip.compress(tar, 6, mtime=0) for name, tar in layers.items()}
    found = {}
    for tag, stack in STACKS.items():
        added = registry.add_image("acme/app", tag, [packed[x] for x in stack])
        name = f"{registry.host}/acme/app:{tag}"
        found[name] = f"{name}@{added.manifest_digest}"
    return found


# What is damaged, each without anything running. A store without a file that could be is left alone.


def _pick(chance: random.Random, place: Path, pattern: str) -> Path | None:
    files = sorted(x for x in place.glob(pattern) if x.is_file() and not x.is_symlink())
    return chance.choice(files) if files else None


def _spoil(chance: random.Random, path: Path | None) -> None:
    """Removed, emptied, cut, one byte changed, or longer."""
    if path is None:
        return
    data, how = path.read_bytes(), chance.randrange(5)
    place = chance.randrange(max(len(data), 1))
    path.chmod(0o600)
    if how == 0:
        path.unlink()
    else:
        flipped = data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :] if data else b"x"
        path.write_bytes((b"", data[:place], flipped, data + b"more")[how - 1])


def _tree(home: Home, chance: random.Random) -> None:
    _spoil(chance, _pick(chance, home.layers, "*.extracted/**/*"))


def _layer(home: Home, chance: random.Random) -> None:
    """A whole layer is gone, or empty."""
    trees = sorted(home.layers.glob("*.extracted"))
    if not trees:
        return
    tree = chance.choice(trees)
    shutil.rmtree(tree)
    if chance.random() < 0.5:
        tree.mkdir()


def _own(pattern: str) -> Callable[[Home, random.Random], None]:
    return lambda home, chance: _spoil(chance, _pick(chance, home.layers / ".msb-pull", pattern))


def _database(home: Home, chance: random.Random) -> None:
    """Garbage, nothing at all, or other values in its rows; what SQLite keeps beside it stays or goes."""
    path = home.store / "oci.db"
    if not path.is_file():
        return
    if chance.random() < 0.3:
        with closing(sqlite3.connect(path)) as database, suppress(sqlite3.DatabaseError):
            table = chance.choice(("layers", "manifest_layers", "msb_pull_images"))
            database.execute(f"DELETE FROM {table} WHERE rowid % 2 = 0")
            database.commit()
        return
    for beside in ("-wal", "-shm"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    data, how = path.read_bytes(), chance.randrange(4)
    if how == 0:
        path.unlink()
    else:
        path.write_bytes((b"", chance.randbytes(100) + data[100:], data[: len(data) // 2])[how - 1])


def _leftovers(home: Home, chance: random.Random) -> None:
    """What a crash leaves: a staging folder that nobody holds, half a download, a lock of somebody long gone."""
    own = home.layers / ".msb-pull"
    left = own / "staging" / f"0123456789ab-1-{chance.randrange(1 << 32):08x}"
    (left / "tree" / "d").mkdir(parents=True)
    left.with_name(left.name + ".lock").touch()
    for tree in home.layers.glob("*.extracted"):
        (own / "partial" / tree.name.partition("+")[0].removesuffix(".extracted")).write_bytes(chance.randbytes(1000))
        (own / "locks" / f"{tree.name.removesuffix('.extracted')}.lock").write_text("999999999 since x\n")


DAMAGES = {
    "a file of a layer": _tree,
    "a layer": _layer,
    "notes": _own("records/*.json"),
    "a record": _own("records/*.tar"),
    "the copy of an image's row": _own("images/*.json"),
    "the database": _database,
    "leftovers": _leftovers,
}


@dataclass
class Step:
    """One command of a worker: what it does, and what is done to it after ``delay`` seconds (None: nothing)."""

    words: tuple[str, ...]
    codes: set[int]
    harm: str | None = None
    number: int = 0
    delay: float = 0.0
    pause: float = 0.0

    def __str__(self) -> str:
        harm = f" [{self.harm} {self.number} after {self.delay:.2f} s]" if self.harm else ""
        return f"{' '.join(self.words)}{harm}"


@dataclass
class Round:
    """What happens in one round."""

    damage: str | None
    workers: list[list[Step]]
    removed: set[str] = field(default_factory=set)  # images that a command of it may remove

    def __str__(self) -> str:
        lines = [f"damaged: {self.damage or 'nothing'}"]
        return "\n".join([*lines, *(f"worker {i}: {'; '.join(map(str, w))}" for i, w in enumerate(self.workers))])


def drawn(seed: str, number: int, names: list[str], folder: Path) -> Round:
    """The round of this number."""
    chance = random.Random(f"{seed}/{number}")
    result = Round(chance.choice([*DAMAGES, *[None] * 5]), [])
    for worker in range(WORKERS):
        steps = []
        for _ in range(chance.choice((1, 1, 2))):
            step = _command(chance, names, folder / f"saved{worker}.tar", result)
            if result.damage is not None:
                step.codes |= {6, 7}
            _harm(chance, step)
            steps.append(step)
        result.workers.append(steps)
    return result


def _command(chance: random.Random, names: list[str], archive: Path, result: Round) -> Step:
    name = chance.choice(names)
    kind = chance.choice(("pull", "pull", "pull", "force", "verify", "repair", "rm", "rm", "prune", "save", "ls"))
    if kind in ("pull", "force"):
        more = ("--force",) if kind == "force" else ("--policy", chance.choice(("missing", "always", "newer")))
        wanted = dict.fromkeys((name, chance.choice(names)))
        # Two that fail in different ways end with 1.
        return Step(("pull", "-q", *LINUX, *more, *wanted), {0} | ({1} if result.damage and len(wanted) > 1 else set()))
    if kind in ("verify", "repair"):
        what = chance.choice(((), (), (name,)))
        return Step(("verify", *(("--repair",) if kind == "repair" else ()), *what), {0, 3} if what else {0})
    if kind == "rm":
        result.removed.add(name)
        return Step(("rm", name), {0, 3})
    if kind == "prune":
        more = chance.choice(((), (), ("--all",), ("--keep", chance.choice(("1kB", "200kB", "400kB")))))
        result.removed |= set(names) if more else set()
        return Step(("prune", "-y", *more), {0})
    if kind == "save":
        return Step(("save", "-q", name, "-o", str(archive)), {0, 3})
    return Step(("ls",), {0})


def _harm(chance: random.Random, step: Step) -> None:
    harm = chance.choice((None, None, "signal", "signal", "group", "stop", "child"))
    if harm is None:
        return
    step.harm, step.delay, step.pause = harm, chance.uniform(0, 0.5), chance.uniform(0.1, 0.8)
    step.number = chance.choice((signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP))
    if harm == "stop":
        step.number = signal.SIGSTOP
    elif harm == "child":
        step.number = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP))
        step.codes |= {7} | ({1} if step.words[0] == "pull" else set())
    else:
        # Before the program has begun to listen, a signal does what it does to any program.
        step.codes |= {-step.number} if step.number == signal.SIGKILL else {-step.number, 128 + step.number}


class Chaos:
    """One store, its registry, and all that went wrong."""

    def __init__(self, place: Path, registry: FaultRegistry, seed: str) -> None:
        self.home = Home(place)
        self.registry = registry
        self.names = images(registry)
        self.seed = seed
        self.codes: Counter[tuple[str, int]] = Counter()
        self.failures: list[str] = []
        self.longest = (0.0, "")
        self.guard = threading.Lock()

    def round(self, number: int) -> None:
        """Raises AssertionError with all that was found and how it came to it."""
        self.failures.clear()
        plan = drawn(self.seed, number, list(self.names), self.home.folder)
        if not self.home.store.exists():
            self._must("pull", "-q", *LINUX, *self.names)
        before = self.listed()
        if plan.damage is not None:
            DAMAGES[plan.damage](self.home, random.Random(f"{self.seed}/{number}/damage"))
        self.registry.set_total_rate(RATE)
        threads = [threading.Thread(target=self._work, args=(steps,)) for steps in plan.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.registry.set_total_rate(None)
        self._settle(plan, before)
        if self.failures:
            shutil.rmtree(self.home.store)  # so that the next round begins with what is sound
            raise AssertionError(f"seed {self.seed}, round {number}\n{plan}\n" + "\n".join(self.failures))

    def listed(self) -> set[str]:
        """The names of all images, as ``ls`` says them."""
        return set(self._must("ls", "-q").split())

    def _settle(self, plan: Round, before: set[str]) -> None:
        if plan.damage is not None:
            self._must("verify", "-q", "--repair")
        if lost := before - plan.removed - self.listed():
            self.failures.append(f"lost: {lost}")
        if plan.damage is None:
            # Whoever was killed, what is listed is sound.
            self._must("verify", "-q")
        said = self._must("pull", "-q", *LINUX, *self.names)
        if said.split() != list(self.names.values()):
            self.failures.append(f"pulled: {said}")
        if missing := self.names.keys() - self.listed():
            self.failures.append(f"not listed after a pull: {missing}")
        # A pull believes a layer that is there, also one that nothing on the list had needed and so nothing looked at.
        if plan.damage is None or self._must("verify", "-q", "--repair"):
            self._must("verify", "-q")
        staging = self.home.layers / ".msb-pull" / "staging"
        if os.listdir(staging):
            # A pull that finds all in place does not look for leftovers.
            self._must("prune", "-q", "-y")
            self.failures += [f"staging holds {left}" for left in os.listdir(staging)]

    def _must(self, *words: str) -> str:
        return self._undisturbed(Step(words, {0}))

    def _work(self, steps: list[Step]) -> None:
        for step in steps:
            try:
                if step.harm is None:
                    self._undisturbed(step)
                    continue
                process = self._start(step.words)
                left = self._harmed(step, process)
                self._ended(step, process)
                wait_for(lambda left=left: all(map(gone, left)), 10)
            except BaseException as error:
                with self.guard:
                    self.failures.append(f"{step}: {error!r}")

    def _start(self, words: tuple[str, ...]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*program(), *words, *self.home.command],
            env=program_environment(), cwd=self.home.folder, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def _harmed(self, step: Step, process: subprocess.Popen[str]) -> list[int]:
        """Does to a process what is planned; returns the processes that may not outlive it."""
        time.sleep(step.delay)
        below = children(process.pid)
        with suppress(ProcessLookupError, PermissionError):
            if step.harm == "child":
                for _ in range(100):
                    if below or process.poll() is not None:
                        break
                    time.sleep(0.005)
                    below = children(process.pid)
                for child in below[:1]:
                    os.kill(child, step.number)
                    if step.number == signal.SIGSTOP:
                        time.sleep(step.pause)
                        os.kill(child, signal.SIGCONT)
            elif step.harm == "group":
                os.killpg(process.pid, step.number)
            else:
                process.send_signal(step.number)
                if step.harm == "stop":
                    time.sleep(step.pause)
                    process.send_signal(signal.SIGCONT)
        return below

    def _undisturbed(self, step: Step) -> str:
        began = time.monotonic()
        try:
            done = run_program([*step.words, *self.home.command], cwd=self.home.folder, timeout=FOREVER)
        except subprocess.TimeoutExpired as error:
            return self._judged(step, began, -signal.SIGKILL, "", str(error))
        return self._judged(step, began, done.returncode, done.stdout, done.stderr)

    def _ended(self, step: Step, process: subprocess.Popen[str]) -> str:
        began = time.monotonic()
        try:
            out, error = process.communicate(timeout=FOREVER)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, error = process.communicate()
            error += f"\nit did not end in {FOREVER} s"
            step.codes.clear()
        return self._judged(step, began, process.returncode, out, error)

    def _judged(self, step: Step, began: float, code: int, out: str, error: str) -> str:
        """What a command printed, after a look at how it ended."""
        with self.guard:
            self.longest = max(self.longest, (time.monotonic() - began, str(step)))
            self.codes[step.words[0], code] += 1
            if (code not in step.codes and not _is_pythons_own(step, error)) or _mistaken(step, error):
                self.failures.append(f"{step} ended with {code}\n{out}{error}")
        return out


def _mistaken(step: Step, error: str) -> bool:
    """Whether a traceback was printed, other than Python's own."""
    if _is_pythons_own(step, error):
        return False
    return "Traceback" in error or "bug in msb-pull" in error


def _is_pythons_own(step: Step, error: str) -> bool:
    """Whether Ctrl-C came before the program's ``main`` was called; what Python makes of that is not ours.

    It ends with 1 or 130, or loses the interruption in a callback of its own and goes on.
    """
    if step.number != signal.SIGINT or "KeyboardInterrupt" not in error:
        return False
    return not re.search(r'/msb_pull/(?!__main__\.py)|/msb_pull/__main__\.py", line \d+, in [a-z_]', error)
