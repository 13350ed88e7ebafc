"""Pulls over networks and registries that fail at random, and a pull that is killed in the middle of a large layer.

Every round draws faults for every address of a three-layer image and pulls it. It must end with the tree and the
database of an undisturbed pull, or with the exit code of what went wrong more often than the retries allow; then, with
the faults gone, the same store must end like the undisturbed one. ``MSB_TEST_ROUNDS=500`` runs the long form,
``MSB_TEST_SEED`` other faults, ``MSB_TEST_ONLY=17`` round 17 alone.
"""

from __future__ import annotations

import faulthandler
import gzip
import itertools
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from statistics import median

import pytest

from msb_pull.ground.errors import MsbPullError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.platform import Platform
from msb_pull.image.reference import parse_argument
from msb_pull.source.http.retry import Clock
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.body import GATHER_BYTES
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
from msb_pull.store.store import Store
from msb_pull.work.pull.plan import Policy, PullOptions
from msb_pull.work.pull.pull import pull_image
from tests.support.counting import wait_for
from tests.support.fault_auth import TokenService, errors
from tests.support.fault_registry import AddedImage, Fault, FaultRegistry
from tests.support.home import LINUX, Home
from tests.support.make_sample import BASE, TOP, file, folder, layer_tar
from tests.support.processes import State, rows
from tests.support.program import run_program
from tests.support.treecompare import describe, differences

# The environment of a test is cleaned before it runs, so these are read here.
ROUNDS = int(os.environ.get("MSB_TEST_ROUNDS", "12"))
SEED = os.environ.get("MSB_TEST_SEED", "1")
ONLY = os.environ.get("MSB_TEST_ONLY")
RETRIES = 3
TIMEOUT = 1.0
WATCHDOG = 60.0
# So many rounds run the installed program; the others pull in this process, where pauses need not be waited for.
PROGRAM_EVERY = 4

COUNTED = (
    "break", "short", "stall", "late", "drop", "429", "5xx", "wrong start", "416", "expired redirect",
)  # fmt: skip
FREE = ("slow", "redirect", "whole", "gzip", "chunked")
FINAL = ("long", "length", "wait too long", "501")
# What a fault that never goes away ends with; a manifest by its tag has no digest that could tell a byte from another.
FOR_EVER = {
    **dict.fromkeys(COUNTED, 5),
    "401": 4, "byte": 6, "long": 6, "wait too long": 5, "501": 5,
}  # fmt: skip


@dataclass
class Address:
    """One thing that is asked for, and what goes wrong with it, request by request."""

    match: str
    size: int
    is_manifest: bool = False
    kinds: list[str] = field(default_factory=list)

    def codes(self) -> set[int]:
        """The exit codes that these faults may lead to; empty when they must all be survived."""
        kinds, found = self.kinds, set()
        if sum(x in COUNTED for x in kinds) > RETRIES or {"wait too long", "501"} & set(kinds):
            found.add(5)
        if any(one == other == "401" for one, other in itertools.pairwise(kinds)):
            found.add(4)
        spoiled = sum(x == "byte" for x in kinds)
        if spoiled > (0 if self.is_manifest else 1) or {"long", "length"} & set(kinds):
            found.add(6)
        if self.is_manifest and "length" in kinds:
            # A manifest that claims to be longer is a connection that broke.
            found.add(5)
        return found


class Trouble:
    """A registry and a content network that serve one image, each request as it was drawn."""

    def __init__(self, registry: FaultRegistry, cdn: FaultRegistry, image: AddedImage) -> None:
        self.registry, self.cdn, self.image = registry, cdn, image
        cdn.blobs, cdn.manifests = registry.blobs, registry.manifests
        TokenService(registry)
        registry.authorize = None  # the registry is open; only single requests are refused
        self.name = f"{registry.host}/acme/app:1"

    def addresses(self) -> list[Address]:
        sizes = {digest: len(self.registry.blobs[digest]) for digest in self.image.layer_digests}
        sizes[self.image.config_digest] = len(self.image.config_bytes)
        found = [Address("/manifests/1", len(self.image.manifest_bytes), is_manifest=True)]
        return [*found, *(Address(f"/blobs/{digest}", size) for digest, size in sizes.items())]

    @property
    def image_bytes(self) -> int:
        return sum(len(self.registry.blobs[x]) for x in {*self.image.layer_digests, self.image.config_digest})

    def forget(self) -> None:
        self.registry.forget()
        self.cdn.forget()

    def sent(self) -> int:
        return self.registry.bytes_sent() + self.cdn.bytes_sent()

    def script(self, address: Address, chance: random.Random) -> None:
        for kind in address.kinds:
            self.add(address, kind, chance)

    def for_ever(self, address: Address, kind: str, chance: random.Random) -> None:
        self.add(address, kind, chance, times=1000, start=0)

    def add(
        self, address: Address, kind: str, chance: random.Random, *, times: int = 1, start: int | None = None
    ) -> None:
        """The next requests meet a fault of this kind, at byte ``start`` of the body or anywhere."""
        fault = self._fault(kind, address.size, chance, start=start)
        if fault.redirect is not None:
            gone = Fault(status=403, body=b"<Error>expired</Error>")
            self.cdn.script(address.match, gone if kind == "expired redirect" else Fault(), times=times)
        self.registry.script(address.match, fault, times=times)

    def _fault(self, kind: str, size: int, chance: random.Random, *, start: int | None) -> Fault:
        place = chance.choice((0, 1, chance.randrange(size), chance.randrange(size))) if start is None else start
        link = f"{self.cdn.url}{{path}}?X-Amz-Signature={chance.randbytes(8).hex()}"
        realm = f'Bearer realm="{self.registry.url}/token",service="test.registry",scope="repository:acme/app:pull"'
        after = chance.choice(("0", "1", "soon", "", formatdate(usegmt=True), "-1"))
        wait = {"Retry-After": after} if after else {}
        return {
            "break": lambda: Fault(cut_after=place),
            "short": lambda: Fault(end_after=min(place, size - 1)),
            "stall": lambda: Fault(stall_after=place),
            "late": lambda: Fault(delay=TIMEOUT + 1),
            "drop": lambda: Fault(drop=True),
            "401": lambda: Fault(status=401, headers={"WWW-Authenticate": realm}, body=errors("UNAUTHORIZED")),
            "429": lambda: Fault(status=429, headers=wait, body=errors("TOOMANYREQUESTS", "slow down")),
            "5xx": lambda: Fault(status=chance.choice((408, 500, 502, 503, 504, 522)), headers=wait, body=b"<html>"),
            "wrong start": lambda: chance.choice(
                (
                    Fault(status=206, content_range=f"bytes {place + 1}-{size}/{size + 1}"),
                    Fault(status=206, content_range=f"bytes 0-{size - 1}/{size}", ignore_range=True),
                )
            ),
            "416": lambda: Fault(status=416, content_range=f"bytes */{size}"),
            "expired redirect": lambda: Fault(redirect=link),
            "slow": lambda: Fault(rate=size / 0.3),
            "redirect": lambda: Fault(redirect=link, redirect_status=chance.choice((301, 302, 303, 307, 308))),
            "whole": lambda: Fault(ignore_range=True),
            "gzip": lambda: Fault(gzip=True),
            "chunked": lambda: Fault(chunked=True),
            "byte": lambda: Fault(flip=place),
            "long": lambda: Fault(extra=chance.randbytes(chance.choice((1, 1000)))),
            "length": lambda: Fault(content_length=max(1, size + chance.choice((-1, 1, 1000)))),
            "wait too long": lambda: Fault(status=429, headers={"Retry-After": "86400"}),
            "501": lambda: Fault(status=501),
        }[kind]()


def drawn(addresses: list[Address], chance: random.Random, *, most: int, kinds: tuple[str, ...]) -> None:
    """Gives every address some faults; with ``most`` not above the retries, only such as must be survived."""
    for address in addresses:
        count = chance.randrange(most + 1)
        for _ in range(count):
            address.kinds.append(chance.choice(kinds))
            if most <= RETRIES and address.codes():
                address.kinds.pop()


def three_layers() -> list[bytes]:
    """What images hold, and enough bytes that a connection can break in the middle."""
    many = [file(f"many/{n}", random.Random(n).randbytes(2000)) for n in range(80)]
    tars = [
        layer_tar([*BASE, file("usr/lib/noise", random.Random("noise").randbytes(90_000))]),
        layer_tar([folder("many"), *many]),
        layer_tar([*TOP, file("app/data", random.Random("data").randbytes(400_000))]),
    ]
    return [gzip.compress(x, 6, mtime=0) for x in tars]


@pytest.fixture
def trouble():
    with FaultRegistry() as registry, FaultRegistry() as cdn:
        yield Trouble(registry, cdn, registry.add_image("acme/app", "1", three_layers()))


class Leaps:
    """A clock that jumps over pauses instead of waiting for them."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._lock = threading.Lock()

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: time.monotonic() + self._ahead, wait=self._wait)

    def _wait(self, cancel: Cancel, seconds: float) -> bool:
        with self._lock:
            self._ahead += seconds
        # The others get a turn, and what they have begun a little time.
        return cancel.wait(0.005)


def new_home(folder: Path) -> Home:
    folder.mkdir()
    home = Home(folder)
    home.config.write_text(f"[pull]\nretries = {RETRIES}\ntimeout = {TIMEOUT}\n")
    return home


def pulled_here(home: Home, name: str, timeout: float = TIMEOUT) -> int:
    """Pulls in this process and returns what the program's exit code would be; fails on a hang or a stray error."""
    cancel, ended = Cancel(), []

    def run() -> None:
        try:
            _pull(home, name, cancel, timeout)
            ended.append(0)
        except MsbPullError as error:
            one_line = error.message and "\n" not in error.message + (error.cause or "") + (error.hint or "")
            ended.append(int(error.exit_code) if one_line else error)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WATCHDOG)
    if thread.is_alive():
        faulthandler.dump_traceback(all_threads=True)
        cancel.set()
        thread.join(5)
        raise AssertionError(f"still pulling after {WATCHDOG:g} seconds")
    assert isinstance(ended[0], int), f"a mistake: {ended[0]!r}"
    return ended[0]


def _pull(home: Home, name: str, cancel: Cancel, timeout: float) -> None:
    options = RegistryOptions(retries=RETRIES, timeout=timeout)
    store = Store.open(home.store, home.layers)
    client = RegistryClient(options, CredentialStore.nobody({}), Job(cancel=cancel), clock=Leaps().clock())
    try:
        wanted = PullOptions(policy=Policy.MISSING, platform=Platform.parse("linux/amd64"))
        pull_image(parse_argument(name), store, lambda: client, wanted, Job(cancel=Cancel(cancel)))
    finally:
        client.close()


def pulled_by_the_program(home: Home, name: str) -> int:
    done = run_program(["pull", "-q", *LINUX, name, *home.command], timeout=WATCHDOG)
    assert "Traceback" not in done.stdout + done.stderr, done
    assert "bug in msb-pull" not in done.stderr, done
    assert (done.returncode == 0) == bool(done.stdout), done
    assert done.returncode == 0 or "error: " in done.stderr, done
    return done.returncode


def nothing_wrong_inside(home: Home, expected: State) -> None:
    """After a pull that failed: what is published is right, and no image is recorded."""
    for layer in home.layers.glob("*.extracted"):
        assert differences(describe(layer), expected.trees[layer.name]) == [], layer.name
    if (home.store / "oci.db").exists():
        assert rows(home)["images"] == []


@dataclass
class Figures:
    """What the rounds add up to."""

    codes: Counter[int] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ratios: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)  # those of pulls that ended right
    longest: float = 0.0

    def __str__(self) -> str:
        pulls = sum(self.codes.values())
        failed = {code: count for code, count in sorted(self.codes.items()) if code}
        return (
            f"{pulls} pulls ({dict(self.ways)}), {self.codes[0]} right, failures by exit code {failed}; "
            f"bytes served: median {median(self.ratios):.3f} of the image "
            f"({median(self.right or [0]):.3f} where it ended right), most {max(self.ratios):.2f}; "
            f"longest {self.longest:.1f} s; "
            f"faults drawn: {dict(self.kinds.most_common())}"
        )


def one_round(number: int, folder: Path, trouble: Trouble, expected: State, figures: Figures) -> None:
    chance = random.Random(f"{SEED}/{number}")
    addresses = trouble.addresses()
    how = chance.choices(("survivable", "anything", "for ever"), (65, 20, 15))[0]
    allowed = {0}
    trouble.forget()
    if how == "for ever":
        victim = chance.choice(addresses)
        kind = chance.choice(list(FOR_EVER))
        allowed = {FOR_EVER[kind]}
        trouble.for_ever(victim, kind, chance)
        figures.kinds[f"{kind} for ever"] += 1
    else:
        kinds = (*COUNTED, *FREE, "401", "byte", *(FINAL if how == "anything" else ()))
        drawn(addresses, chance, most=RETRIES if how == "survivable" else 3 * RETRIES, kinds=kinds)
        allowed |= set().union(*(x.codes() for x in addresses))
        for address in addresses:
            trouble.script(address, chance)
            figures.kinds.update(address.kinds)
    home = new_home(folder)
    by_program = number % PROGRAM_EVERY == 0
    pull = pulled_by_the_program if by_program else pulled_here
    started = time.monotonic()
    try:
        code = pull(home, trouble.name)
        took = time.monotonic() - started
        figures.longest = max(figures.longest, took)
        figures.codes[code] += 1
        figures.ways["by the program" if by_program else "in this process"] += 1
        figures.ratios.append(trouble.sent() / trouble.image_bytes)
        if not code:
            figures.right.append(figures.ratios[-1])
        assert code in allowed, f"ended with {code}"
        if code:
            nothing_wrong_inside(home, expected)
            trouble.forget()
            assert pull(home, trouble.name) == 0
        State(home).compare(expected)
    except AssertionError as error:
        faults = {x.match[-12:]: x.kinds for x in addresses if x.kinds} or f"{victim.match}: {kind} for ever"
        what = f"round {number} ({how}, {pull.__name__}, allowed {allowed}): {faults}"
        raise AssertionError(f"{what}\n{error}") from error


@pytest.mark.timeout(180 + 10 * ROUNDS)
def test_pulls_with_random_faults(trouble, tmp_path, record_property):
    whole = new_home(tmp_path / "whole")
    assert pulled_by_the_program(whole, trouble.name) == 0
    expected, figures, failures = State(whole), Figures(), []
    here = new_home(tmp_path / "here")
    assert pulled_here(here, trouble.name) == 0
    State(here).compare(expected)
    for number in [int(ONLY)] if ONLY else range(ROUNDS):
        place = tmp_path / f"round{number}"
        try:
            one_round(number, place, trouble, expected, figures)
        except AssertionError as error:
            failures.append(str(error))
        subprocess.run(["rm", "-rf", place], check=True)
    print(f"\n{len(failures)} wrong of {figures}")
    record_property("figures", str(figures))
    assert not failures, "\n\n".join(failures)
    assert median(figures.ratios) <= 2
    assert ONLY or median(figures.right) <= 2


@pytest.mark.parametrize("kind", ["short", "stall", "late", "5xx", "429", "416", "wrong start", "expired redirect"])
def test_as_many_faults_as_retries_are_survived_and_one_more_is_not(trouble, tmp_path, kind):
    """Without any progress in between, so that every one of them counts."""
    for count, code in ((RETRIES, 0), (RETRIES + 1, 5)):
        trouble.forget()
        layer = trouble.addresses()[1]
        trouble.add(layer, kind, random.Random(kind), times=count, start=0)
        assert pulled_here(new_home(tmp_path / str(count)), trouble.name) == code
        assert trouble.registry.count(layer.match) == RETRIES + 1


AFTER_A_BREAK = {
    **dict.fromkeys(("redirect", "expired redirect", "whole", "gzip", "chunked", "416", "401", "byte", "drop"), 0),
    # A part that is refused or wrong costs a whole download, never the image.
    **dict.fromkeys(("long", "length", "501"), 0),
    "wait too long": None,
    "another start": 0, "another total": 0,
}  # fmt: skip


@pytest.mark.parametrize("kind", AFTER_A_BREAK)
def test_a_pull_that_broke_is_resumed_whatever_the_answer(trouble, tmp_path, kind):
    """The second request of a layer asks for its second half; what is answered is right, useless or a lie."""
    whole, home = new_home(tmp_path / "whole"), new_home(tmp_path / "home")
    assert pulled_here(whole, trouble.name) == 0
    trouble.forget()
    layer = max(trouble.addresses(), key=lambda x: x.size)
    size, half = layer.size, layer.size // 2
    trouble.add(layer, "short", random.Random(kind), start=half)
    if kind == "another start":
        trouble.registry.script(
            layer.match, Fault(status=206, content_range=f"bytes 0-{size - 1}/{size}", ignore_range=True)
        )
    elif kind == "another total":
        trouble.registry.script(layer.match, Fault(content_range=f"bytes {half}-{size - 1}/{size + 1}"))
    else:
        trouble.add(layer, kind, random.Random(kind), start=half if kind == "byte" else 0)
    code = pulled_here(home, trouble.name)
    assert code == (FOR_EVER.get(kind, 6) if AFTER_A_BREAK[kind] is None else 0)
    asked = [x.headers.get("range") for x in trouble.registry.asked(layer.match)]
    assert asked[:2] == [None, f"bytes={half}-"]
    if code == 0:
        State(home).compare(State(whole))
    else:
        nothing_wrong_inside(home, State(whole))


def test_killed_at_half_of_a_large_layer_then_only_the_rest_is_fetched(tmp_path):
    """kill -9 when the first half has come and the network stalls: all but a piece of that lies on the disk."""
    noise = random.Random("large").randbytes(40_000_000)
    layer = gzip.compress(layer_tar([file("large", noise)]), 0, mtime=0)
    half = len(layer) // 2
    with FaultRegistry() as registry:
        image = registry.add_image("acme/large", "1", [layer])
        name, blob = f"{registry.host}/acme/large:1", image.layer_digests[0]
        registry.script(blob, Fault(stall_after=half))
        registry.always(blob, Fault(stall_after=0))  # more connections bring nothing either
        home = Home(tmp_path)
        process = home.start("pull", "-q", *LINUX, name)

        def kept() -> int:
            return sum(x.stat().st_size for x in home.partials())

        wait_for(lambda: process.poll() is not None or kept() > half - GATHER_BYTES, 60)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        here = kept()
        registry.forget()
        again = home.pull("-q", name)
        assert (again.returncode, again.stdout) == (0, f"{name}@{image.manifest_digest}\n"), again.stderr
        assert registry.bytes_sent(blob) == len(layer) - here
        (tree,) = home.layers.glob("*.extracted")
        assert (tree / "large").read_bytes() == noise
        assert home.partials() == []


def test_a_layer_that_fails_ends_one_whose_connection_says_nothing(trouble, tmp_path):
    """The other side may be silent for longer than a test of this file waits."""
    silent, gone, _ = trouble.image.layer_digests
    trouble.registry.always(f"/blobs/{silent}", Fault(stall_after=100))
    trouble.registry.always(f"/blobs/{gone}", Fault(status=404))
    assert pulled_here(new_home(tmp_path / "home"), trouble.name, timeout=100 * WATCHDOG) == 3
