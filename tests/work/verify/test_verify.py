"""verify finds every change of a layer and names its path, and reports nothing once it is undone.

    MUTATIONS=1000 pytest tests/work/verify/test_verify.py
                                                   that many random changes (default 100), the same ones each time
    MUTATION_SEED=n                                where their seeds begin (default 0)

A failure names its seed: ``MUTATIONS=1 MUTATION_SEED=n`` makes that change alone.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest

from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.store import Store
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import verify_images
from tests.support.archive import END, OVERRIDE, WHEN, directory, hardlink, hdr, reg, symlink, xattr
from tests.support.imagebuild import simple_layout

COUNT = int(os.environ.get("MUTATIONS", "100"))
FIRST = int(os.environ.get("MUTATION_SEED", "0"))
BATCH = 50

LARGE = random.Random(1).randbytes(700_000)
LAYERS = [
    b"".join(
        (
            directory(b"./"),
            directory(b"etc", mtime=5),
            reg(b"etc/passwd", b"root:x:0:0\n", mode=0o4755, uid=7, gid=8),
            reg(b"etc/equal", b"root:x:0:0\n", mode=0o4755, uid=7, gid=8),
            reg(b"etc/shadow", b"secret\n", mode=0),
            reg(b"etc/empty"),
            directory(b"usr", mode=0o1777),
            directory(b"usr/bin", uid=1),
            reg(b"usr/bin/one", b"content" * 300, mode=0o755),
            hardlink(b"usr/bin/two", b"usr/bin/one"),
            hardlink(b"usr/three", b"usr/bin/one"),
            symlink(b"bin", b"usr/bin"),
            symlink(b"usr/absolute", b"/etc/passwd"),
            reg(b"usr/large", LARGE),
            reg(b"usr/exactly", bytes(512)),
            xattr(b"user.kept", b"value"),
            reg(b"usr/attribute", b"with one of its own"),
            xattr(b"security.capability", b"\1\0\0\2" + bytes(16)),
            reg(b"usr/capable", b"x"),
            reg(b"implied/deep/file", b"in directories without an entry"),
            reg(b"usr/" + b"long" * 40, b"a name that takes a PAX header"),
            reg(b"usr/\xff\xfe", b"a name that is no text"),
            hdr(b"null", typ=b"3", major=1, minor=3),
            hdr(b"fifo", typ=b"6"),
            END,
        )
    ),
    b"".join(
        (
            directory(b"etc", mode=0o700),
            hdr(b"etc/.wh.equal"),
            directory(b"var"),
            hdr(b"var/.wh..wh..opq"),
            reg(b"var/new", b"of the second layer", mtime=WHEN + 1),
            hardlink(b"var/lower", b"etc/passwd"),
            END,
        )
    ),
]
# Nothing is said of their times.
IMPLIED = (b"", b"implied", b"implied/deep")


class World:
    """A store with one image, and what lies in its layers."""

    def __init__(self, folder: Path) -> None:
        simple_layout(folder / "layout", LAYERS)
        self.store = Store.open(folder / "home")
        self.aside = folder / "aside"
        self.aside.mkdir()
        result = pull_image(
            parse_argument(f"oci:{folder / 'layout'}"),
            self.store,
            lambda: pytest.fail("a layout needs no registry"),
            PullOptions(name="localhost/image:1"),
            Job(),
        )
        self.roots = [os.fsencode(layer.path) for layer in result.layers]
        self.entries = [(root, path) for root in self.roots for path in paths_below(root)]

    def verify(self, *, quick: bool = False):
        return verify_images(self.store, [], Job(jobs=1), quick=quick).layers

    def damaged(self, *, quick: bool = False) -> set[tuple[bytes, bytes]]:
        """Layer and path of each damage."""
        reports = zip(self.roots, self.verify(quick=quick), strict=True)
        return {(root, damage.path) for root, report in reports for damage in report.damages}


def paths_below(root: bytes) -> list[bytes]:
    found = [b""]
    for folder, folders, files in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, name), root) for name in sorted(folders + files)]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("verify"))


# Mutations: each takes the world, a source of randomness and a place, changes it, yields and changes it back. Those
# that are to be found under another name than that of the place yield what may be named.


@contextmanager
def times_kept(*paths: bytes):
    """Nothing but the change itself is to be found."""
    before = [(path, os.lstat(path)) for path in paths]
    yield
    for path, facts in before:
        if os.path.lexists(path):
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)


@contextmanager
def replaced(world: World, path: bytes, make):
    """Moves what is at ``path`` aside while something else, if ``make`` makes anything, has its place."""
    aside = os.path.join(os.fsencode(world.aside), b"entry")
    parent = os.path.dirname(path)
    facts = os.lstat(path)
    with times_kept(parent, path):
        os.rename(path, aside)
        make(aside)
        if os.path.lexists(path):
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)
    with times_kept(parent):
        yield
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        os.rename(aside, path)


@contextmanager
def content(path: bytes, change):
    """Changes the bytes of a file; its time stays as it was."""
    before = Path(os.fsdecode(path)).read_bytes()
    with times_kept(path):
        Path(os.fsdecode(path)).write_bytes(change(bytearray(before)))
    yield
    with times_kept(path):
        Path(os.fsdecode(path)).write_bytes(before)


def flip(world, rng, path):
    def change(data):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return data

    return content(path, change)


def truncate(world, rng, path):
    return content(path, lambda data: data[: rng.randrange(len(data))])


def grow(world, rng, path):
    return content(path, lambda data: data + bytes(rng.randint(1, 1000)))


@contextmanager
def chmod(world, rng, path):
    before = stat.S_IMODE(os.lstat(path).st_mode)
    mode = before
    while mode == before:
        mode = before ^ 1 << rng.randrange(12)
    os.chmod(path, mode)
    yield
    os.chmod(path, before)


@contextmanager
def attribute(world, rng, path):
    """Removes or changes an attribute, or adds one."""
    name = rng.choice([*os.listxattr(path), OVERRIDE, "user.stranger"])
    before = os.getxattr(path, name) if name in os.listxattr(path) else None
    if before is not None and rng.random() < 0.5:
        os.removexattr(path, name)
    else:
        os.setxattr(path, name, rng.choice([b"", b"0:0:0100600", (before or b"") + b"0"]))
    yield
    if before is not None:
        os.setxattr(path, name, before)
    else:
        os.removexattr(path, name)


@contextmanager
def time(world, rng, path):
    facts = os.lstat(path)
    shift = rng.choice([-1, 1, 1_000, -1_000_000_000, 86_400_000_000_000])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + shift), follow_symlinks=False)
    yield
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)


def retarget(world, rng, path):
    target = os.readlink(path)
    other = rng.choice([target + b"x", target[:-1], b"/" + target, b"../" * 9 + b"etc", target.upper()])
    return replaced(world, path, lambda aside: os.symlink(other, path))


def unlink(world, rng, path):
    """A hard link that is a copy now, the same in all else."""

    def copy(aside):
        shutil.copy2(aside, path)

    return replaced(world, path, copy)


def delete(world, rng, path):
    return replaced(world, path, lambda aside: None)


def retype(world, rng, path):
    kind = stat.S_IFMT(os.lstat(path).st_mode)
    makers = {
        stat.S_IFREG: lambda aside: Path(os.fsdecode(path)).write_bytes(b"root:x:0:0\n"),
        stat.S_IFDIR: lambda aside: os.mkdir(path),
        stat.S_IFLNK: lambda aside: os.symlink(b"usr/bin", path),
        stat.S_IFIFO: lambda aside: os.mkfifo(path),
    }
    return replaced(world, path, makers[rng.choice(sorted(makers.keys() - {kind}))])


@contextmanager
def extra(world, rng, path):
    """Something new in the directory ``path``."""
    new = os.path.join(path, rng.choice([b"new", b".wh.new", b"\xff", b"\x1b[2J", b"n" * 255, b".wh..wh..opq"]))
    if os.path.lexists(new):
        new += b"2"
    make = rng.choice([os.mkdir, os.mkfifo, lambda x: os.symlink(b"passwd", x), lambda x: Path(os.fsdecode(x)).touch()])
    with times_kept(path):
        make(new)
    yield (new,)
    with times_kept(path):
        os.rmdir(new) if os.path.isdir(new) else os.unlink(new)


@contextmanager
def merge(world, rng, path):
    """Two equal files that are one inode now: either may be called the stranger."""
    other = os.path.join(os.path.dirname(path), b"passwd")
    with replaced(world, path, lambda aside: os.link(other, path)):
        yield path, other


def kinds(root: bytes, path: bytes):
    """The mutations that change this entry."""
    facts = os.lstat(os.path.join(root, path))
    if path:
        yield from (delete, retype)
    if path not in IMPLIED:
        yield time
    if stat.S_ISLNK(facts.st_mode):
        yield retarget
        return
    yield from (chmod, attribute)
    if stat.S_ISDIR(facts.st_mode):
        yield extra
        return
    yield grow
    if facts.st_size:
        yield from (flip, truncate)
    if facts.st_nlink > 1:
        yield unlink
    if path == b"etc/equal":
        yield merge


ALL = {flip, truncate, grow, chmod, attribute, time, retarget, unlink, delete, retype, extra, merge}


def places(world: World):
    """Every mutation with all the entries it can change, in the order of their names."""
    found: dict = {}
    for root, path in world.entries:
        for kind in kinds(root, path):
            found.setdefault(kind, []).append((root, path))
    return sorted(found.items(), key=lambda item: item[0].__name__)


def aliases(root: bytes, path: bytes) -> set[tuple[bytes, bytes]]:
    """All names of one inode: what is wrong with it is told once, under any of them."""
    inode = os.lstat(os.path.join(root, path)).st_ino
    return {(root, x) for x in paths_below(root) if os.lstat(os.path.join(root, x)).st_ino == inode}


def mutate(world: World, number: int) -> str:
    """One change, looked for, undone, and looked for again; returns its kind."""
    rng = random.Random(number)
    kind, where = rng.choice(places(world))
    root, path = rng.choice(where)
    told = f"seed {number}: {kind.__name__} of {path!r}"
    names = aliases(root, path)
    with kind(world, rng, os.path.join(root, path)) as new:
        if new is not None:
            names = {(root, os.path.relpath(x, root)) for x in new}
        found = world.damaged()
        assert found & names, f"{told} was not found, but {found}"
        if kind is not flip:
            assert world.damaged(quick=True) & names, f"{told} was not found by --quick"
        beside = {x for x in found - names if not x[1].startswith(path + b"/" if path else b"")}
        # Of a group of hard links any may be the one that is called another.
        assert not beside or kind in (merge, unlink), f"{told} was found, and also {beside}"
    assert world.damaged() == set(), f"{told} was undone"
    return kind.__name__


@pytest.mark.timeout(600)
@pytest.mark.parametrize("start", range(FIRST, FIRST + COUNT, BATCH))
def test_every_change_is_found_and_nothing_else(world, start):
    for number in range(start, min(start + BATCH, FIRST + COUNT)):
        mutate(world, number)


@pytest.mark.parametrize("kind", sorted(ALL, key=lambda kind: kind.__name__))
def test_every_kind_of_change_on_every_entry(world, kind):
    """Not by chance: each kind on each entry that it can change."""
    chosen = dict(places(world))[kind]
    for number, (root, path) in enumerate(chosen):
        rng = random.Random(f"{kind.__name__} {number}")
        names = aliases(root, path)
        with kind(world, rng, os.path.join(root, path)) as new:
            names = names if new is None else {(root, os.path.relpath(x, root)) for x in new}
            assert world.damaged() & names, f"{kind.__name__} of {path!r} was not found"
    assert world.damaged() == set()


def test_an_untouched_store_is_proven(world):
    reports = world.verify()
    assert {report.verdict for report in reports} == {Verdict.PROVEN}, reports
    assert {report.verdict for report in world.verify(quick=True)} == {Verdict.UNCHANGED}


def test_a_changed_time_hides_no_changed_content(world):
    path = os.path.join(world.roots[0], b"usr/attribute")
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"W")
    try:
        os.utime(path, ns=(0, 0))
        kinds = [damage.kind for report in world.verify() for damage in report.damages]
        assert kinds == ["time", "content"]
    finally:
        with open(path, "r+b") as file:
            file.write(b"w")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
