"""A store on a small file system that fills up at every stage: exit 7, a message that says what is free, and the next
run with space goes on where the last one stopped (D9, D32, D34, A77). Root on Linux, with loop devices."""

from __future__ import annotations

import errno
import gzip
import os
import random
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from msb_pull.ground.errors import local_error
from tests.conftest import lacking, program, program_environment
from tests.support.fault_registry import AddedImage, Fault, FaultRegistry
from tests.support.home import LINUX, Home
from tests.support.imagebuild import oci_archive, simple_layout
from tests.support.make_sample import BASE, file, folder, layer_tar
from tests.support.mounts import mounted
from tests.support.treecompare import describe, differences

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting needs root on Linux"
)

EXT4 = ("-F", "-m", "0", "-b", "4096")
FREE = re.compile(r"(\d+) bytes and (\d+) inodes are free")


@contextmanager
def disk(tmp_path: Path, size: str = "24M", *options: str):
    """A small file system of its own, without what it keeps back for root."""
    place = tmp_path / f"disk{len(list(tmp_path.glob('disk*')))}"
    place.mkdir()
    with mounted(place, "ext4", size, *EXT4, *options) as where:
        yield where


def free(where: Path) -> int:
    facts = os.statvfs(where)
    return facts.f_bavail * facts.f_frsize


@contextmanager
def filled(where: Path, left: int = 0, name: str = "ballast"):
    """Leaves so many bytes free."""
    ballast = where / name
    size = free(where) - left
    with open(ballast, "wb") as out:
        while size > 0:
            try:
                os.posix_fallocate(out.fileno(), 0, size)
                break
            except OSError:
                size -= 4096
    # What the ballast's own bookkeeping took.
    while free(where) < left and size > 4096:
        size -= 4096
        os.truncate(ballast, size)
    while left == 0:
        try:
            with open(ballast, "ab") as out:
                out.write(bytes(4096))
        except OSError:
            break
    try:
        yield
    finally:
        ballast.unlink()


class Small(Home):
    """A home on the small file system; the configuration stays outside."""

    def __init__(self, folder: Path, where: Path) -> None:
        super().__init__(folder)
        self.store = where / "store"
        self.command = ["--home", str(self.store), "--config", str(self.config)]


def told(run: subprocess.CompletedProcess, where: Path | str) -> None:
    """The message names a place and says how much is free there."""
    assert (run.returncode, run.stdout) == (7, ""), (run.returncode, run.stdout, run.stderr)
    assert "Traceback" not in run.stderr
    error, cause, *_ = [x for x in run.stderr.splitlines() if x.startswith(("error: ", "  cause: "))]
    assert str(where) in error and ("no space left" in error or "not enough space" in error), run.stderr
    assert re.search(r"\d+ bytes", cause) and "free" in cause, run.stderr
    assert "  hint: " in run.stderr


def text(seed: str, size: int) -> bytes:
    """Content that shrinks to a tenth."""
    words = [random.Random(f"{seed}{i}").randbytes(40).hex().encode() for i in range(10)]
    chance = random.Random(seed)
    return b"".join(chance.choice(words) for _ in range(size // 80))


def shrunk(entries) -> bytes:
    return gzip.compress(layer_tar(entries), 6, mtime=0)


def bulky() -> list[bytes]:
    """Layers of which one is as large packed as unpacked, one grows a lot, and one has a record as large as itself."""
    packed = [file(f"p/{i}", random.Random(i).randbytes(60_000)) for i in range(20)]
    grown = [folder("g"), *(file(f"g/{i}", text(str(i), 100_000)) for i in range(20))]
    said = []
    for number in range(4):
        info, content = file(f"r{number}", "x")
        info.pax_headers = {"comment": random.Random(number).randbytes(150_000).hex()}
        said.append((info, content))
    return [shrunk(BASE), shrunk(packed), shrunk(grown), shrunk(said)]


@pytest.fixture
def registry():
    with FaultRegistry() as running:
        yield running


def added(registry: FaultRegistry, layers: list[bytes]) -> tuple[str, AddedImage]:
    return f"{registry.host}/acme/app:1", registry.add_image("acme/app", "1", layers)


def trees(home: Home) -> dict[str, dict]:
    return {x.name: describe(x) for x in home.layers.glob("*.extracted")}


def same(found: dict[str, dict], expected: dict[str, dict]) -> None:
    assert found.keys() == expected.keys()
    for name, tree in found.items():
        assert differences(tree, expected[name]) == [], name


def no_leftovers(home: Home) -> None:
    own = home.layers / ".msb-pull"
    for place in ("staging", "partial"):
        assert not (own / place).exists() or os.listdir(own / place) == [], place


@pytest.fixture
def expected(tmp_path, registry):
    """The trees of a pull with room for everything."""
    (tmp_path / "roomy").mkdir()
    roomy = Home(tmp_path / "roomy")
    name, _ = added(registry, bulky())
    assert roomy.pull(name).returncode == 0
    return trees(roomy)


# From nothing at all to nearly enough; a pull of this image needs some 6 MB at its widest.
STEPS = (0, 4096, 12_288, 24_576, 65_536, 262_144, 1_000_000, 1_900_000, 2_300_000, 2_900_000, 3_800_000, 5_000_000)


def test_d9_whatever_is_free_the_next_run_with_space_works(tmp_path, registry, expected):
    name, image = added(registry, bulky())
    places = Counter()
    for left in STEPS:
        with disk(tmp_path) as where:
            home = Small(tmp_path, where)
            with filled(where, left):
                registry.requests.clear()
                run = home.pull("-q", name)
                if run.returncode == 0:
                    same(trees(home), expected)
                    places["fitted"] += 1
                    continue
                told(run, where)
                error = next(x for x in run.stderr.splitlines() if x.startswith("error: "))
                places[next((x for x in ("/partial/", "/tree", "/record", "not enough") if x in error), error)] += 1
                for path in home.layers.glob("*.extracted"):
                    assert differences(describe(path), expected[path.name]) == []
                staging = home.layers / ".msb-pull" / "staging"
                assert not staging.exists() or os.listdir(staging) == []
            kept = {x.name: x.stat().st_size for x in home.partials()}
            registry.requests.clear()
            run = home.pull("-q", name)
            assert run.returncode == 0, run.stderr
            same(trees(home), expected)
            no_leftovers(home)
            for digest in image.layer_digests:
                asked = [x.headers.get("range") for x in registry.asked(digest)]
                if kept.get(digest):
                    assert asked in ([f"bytes={kept[digest]}-"], []), (digest, kept, asked)
    print(f"\nfull at: {dict(places)}")
    assert places["fitted"] < len(STEPS) - 3


def test_a77_what_cannot_fit_says_how_much_is_needed(tmp_path, registry):
    name, image = added(registry, bulky())
    needed = sum(len(registry.blobs[x]) for x in image.layer_digests)
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        with filled(where, 1_000_000):
            run = home.pull(name)
            told(run, where)
            assert f"{needed} bytes compressed" in run.stderr
            assert re.search(r"\d+ bytes are free", run.stderr)
            assert not any(registry.asked(x) for x in image.layer_digests)
        assert home.pull(name).returncode == 0


def test_d9_full_while_downloading(tmp_path, registry):
    """What has arrived stays, and only the rest is asked for."""
    content = random.Random(1).randbytes(20_000_000)
    name, image = added(registry, [shrunk([file("big", content)])])
    (digest,) = image.layer_digests
    with disk(tmp_path, "64M") as where:
        home = Small(tmp_path, where)
        with filled(where, 21_000_000):
            told(home.pull(name), where)
            assert list(home.layers.glob("*.extracted")) == []
            assert os.listdir(home.layers / ".msb-pull" / "staging") == []
            (partial,) = home.partials()
            kept = partial.stat().st_size
            # Receiving is some ten megabytes ahead of unpacking at the most.
            assert 3_000_000 < kept < 20_000_000
        registry.requests.clear()
        run = home.pull(name)
        assert run.returncode == 0, run.stderr
        assert [x.headers.get("range") for x in registry.asked(digest)] == [f"bytes={kept}-"]
        assert (home.layers / f"{digest}.extracted" / "big").read_bytes() == content
        no_leftovers(home)


def test_d9_full_while_unpacking(tmp_path, registry):
    """The blob is small and its files are not."""
    name, image = added(registry, [shrunk([file(f"{i}", text(str(i), 1_000_000)) for i in range(40)])])
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        run = home.pull(name)
        told(run, where)
        assert "/tree" in run.stderr or "/staging/" in run.stderr
        assert os.listdir(home.layers / ".msb-pull" / "staging") == []
        # The message was about the moment of the trouble, not about what the cleaning gave back.
        assert int(FREE.search(run.stderr)[1]) < 4_000_000, run.stderr
        (partial,) = home.partials()
        assert partial.read_bytes() == registry.blobs[image.layer_digests[0]][: partial.stat().st_size]


def test_d9_full_while_the_record_is_written(tmp_path, registry):
    """The blob is here already, its tree is tiny, and its headers are long."""
    entries = []
    for number in range(9):
        info, content = file(f"r{number}", "x")
        info.pax_headers = {"comment": text(str(number), 900_000).decode()}
        entries.append((info, content))
    blob = shrunk(entries)
    name, image = added(registry, [blob])
    (digest,) = image.layer_digests
    (tmp_path / "roomy").mkdir()
    roomy = Home(tmp_path / "roomy")
    assert roomy.pull(name).returncode == 0
    size = (roomy.layers / ".msb-pull" / "records" / f"{digest}.tar").stat().st_size
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        partial = home.layers / ".msb-pull" / "partial" / digest
        partial.parent.mkdir(parents=True)
        partial.write_bytes(blob)
        assert len(blob) < size - 30_000, "free space between the two would be refused at once, or suffice"
        # The database is made first, with 20 pages.
        with filled(where, max(len(blob), size - 60_000) + 30_000 + 100_000):
            run = home.pull(name)
            told(run, where)
            assert "not enough" not in run.stderr
            assert list(home.layers.glob("*.extracted")) == []
            assert partial.read_bytes() == blob
        registry.requests.clear()
        run = home.pull(name)
        assert run.returncode == 0, run.stderr
        assert not registry.asked(digest)
        no_leftovers(home)


@pytest.mark.parametrize("first", [True, False])
def test_d9_full_at_the_database(tmp_path, registry, first):
    """The layers have room elsewhere: they stay, and the next run writes down what is there without a blob."""
    # A config that no free page of the database holds, since some are free as soon as there is an image.
    name = f"{registry.host}/acme/app:1"
    environment = {"config": {"Env": [f"A{number}={text(str(number), 4_000).decode()}" for number in range(100)]}}
    image = registry.add_image("acme/app", "1", bulky(), config=environment)
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        home.command += ["--layers-dir", str(tmp_path / "layers")]
        if not first:
            other = registry.add_image("acme/other", "1", [shrunk([file("x", "x")])])
            assert home.pull(f"{registry.host}/acme/other:1").returncode == 0
            assert other.layer_digests
        home.store.mkdir(exist_ok=True)
        with filled(where):
            run = home.pull(name)
            told(run, where)
            ls = home.run("ls", "-q")
            assert (ls.returncode, ls.stdout.count("\n")) == (0, 0 if first else 1), ls.stderr
        registry.requests.clear()
        run = home.pull(name)
        assert run.returncode == 0, run.stderr
        assert not any(registry.asked(x) for x in image.layer_digests)
        names = {".msb-pull-home", "oci.db"}
        assert set(os.listdir(home.store)) in (names, names | {"oci.db-shm", "oci.db-wal"})
        assert home.sql("PRAGMA integrity_check") == [("ok",)]


def test_d34_without_inodes_from_the_start(tmp_path, registry):
    """Not even a lock or a probe can be made."""
    name, image = added(registry, bulky())
    with disk(tmp_path, "24M", "-N", "256") as where:
        home = Small(tmp_path, where)
        for laid_out in (False, True):
            if laid_out:
                assert home.pull(name).returncode == 0
                assert home.run("rm", name).returncode == 0
            used = used_up(where)
            registry.requests.clear()
            run = home.pull(name)
            assert (run.returncode, run.stdout) == (7, ""), run.stderr
            # One may be back by the time that they are counted.
            assert "no inodes left" in run.stderr and re.search(r" [01] inodes are free", run.stderr), run.stderr
            assert "Traceback" not in run.stderr
            assert not any(registry.asked(x) for x in image.layer_digests)
            for path in used:
                path.unlink()
        assert home.pull(name).returncode == 0


def test_d34_inodes_run_out_while_unpacking(tmp_path, registry):
    name, _ = added(registry, [shrunk([file(f"d/{i}", str(i)) for i in range(400)])])
    with disk(tmp_path, "24M", "-N", "512") as where:
        home = Small(tmp_path, where)
        used = used_up(where, 200)
        run = home.pull(name)
        assert (run.returncode, run.stdout) == (7, ""), run.stderr
        assert "no inodes left" in run.stderr and " 0 inodes are free" in run.stderr, run.stderr
        assert os.listdir(home.layers / ".msb-pull" / "staging") == []
        for path in used:
            path.unlink()
        run = home.pull(name)
        assert run.returncode == 0, run.stderr
        no_leftovers(home)


def used_up(where: Path, left: int = 0) -> list[Path]:
    """Takes all inodes but so many; returns the files that hold them."""
    (where / "ballast").mkdir(exist_ok=True)
    made: list[Path] = []
    # The file system may give those of removed files back a moment later.
    while os.statvfs(where).f_favail > left:
        made.append(where / "ballast" / f"{len(made)}")
        made[-1].touch()
    assert os.statvfs(where).f_favail == left
    return made


def test_d32_without_attributes_nothing_is_fetched(tmp_path, registry):
    name, image = added(registry, bulky())
    where = tmp_path / "ram"
    where.mkdir()
    if subprocess.run(["mount", "-t", "ramfs", "none", str(where)], capture_output=True).returncode != 0:
        lacking("cannot mount a ramfs")
    try:
        with pytest.raises(OSError, match="not supported"):
            os.setxattr(where, "user.test", b"x")
        home = Small(tmp_path, where)
        run = home.pull(name)
        assert (run.returncode, run.stdout) == (7, ""), run.stderr
        assert "no user attributes" in run.stderr and "--allow-no-xattr" in run.stderr
        assert not any(registry.asked(x) for x in image.layer_digests)
        assert list(home.layers.glob("*.extracted")) == []
        run = home.pull("--allow-no-xattr", name)
        assert run.returncode == 0, run.stderr
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("left", [0, 70_000, 90_000, 110_000, 150_000])
def test_a_full_disk_can_be_looked_at_and_given_back(tmp_path, registry, left):
    """What the advice says must work when there is not one free block, or too few for the database's log."""
    name, _ = added(registry, bulky())
    registry.add_image("acme/other", "1", [shrunk([file("x", random.Random(5).randbytes(100_000))])])
    other = f"{registry.host}/acme/other:1"
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        assert home.pull(name, other).returncode == 0
        with filled(where, left):
            for arguments in (("ls",), ("inspect", name), ("verify",), ("prune", "--dry-run"), ("pull", *LINUX, name)):
                run = home.run(*arguments)
                assert run.returncode == 0, (arguments, run.stderr)
            run = home.run("rm", other)
            assert run.returncode == 0, run.stderr
            assert free(where) > 90_000
        with filled(where, left):
            run = home.run("prune", "--all", "--yes")
            assert run.returncode == 0, run.stderr
            assert free(where) > 3_000_000
            assert list(home.layers.glob("*.extracted")) == []
        assert home.pull(name).returncode == 0


def test_an_archive_from_a_pipe_that_finds_no_room(tmp_path):
    layout = simple_layout(tmp_path / "layout", [layer_tar([file("f", random.Random(3).randbytes(6_000_000))])])
    archive = oci_archive(layout, tmp_path / "archive.tar")
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        command = [*program(), "pull", *LINUX, "oci-archive:-", "--as", "localhost/a:1", *home.command]

        def run() -> subprocess.CompletedProcess:
            with open(archive, "rb") as data:
                return subprocess.run(
                    command, stdin=data, capture_output=True, text=True, timeout=60, env=program_environment()
                )

        with filled(where, 2_000_000):
            told(run(), where)
            assert os.listdir(home.layers / ".msb-pull" / "staging") == []
        assert run().returncode == 0
        no_leftovers(home)


def test_an_archive_is_saved_whole_or_not_at_all(tmp_path, registry):
    name, _ = added(registry, bulky())
    (tmp_path / "roomy").mkdir()
    roomy = Home(tmp_path / "roomy")
    assert roomy.pull(name).returncode == 0
    with disk(tmp_path) as where, filled(where, 1_000_000):
        run = roomy.run("save", name, "-o", str(where / "saved.tar"))
        told(run, where)
        assert sorted(os.listdir(where)) == ["ballast", "lost+found"]


def test_a_repair_without_room_leaves_what_was_there(tmp_path, registry):
    name, image = added(registry, bulky())
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        assert home.pull(name).returncode == 0
        victim = home.layers / f"{image.layer_digests[1]}.extracted" / "p" / "3"
        victim.write_bytes(b"damaged")
        with filled(where, 100_000):
            run = home.run("verify", "--repair")
            assert run.returncode == 6 and "not enough space" in run.stderr, run.stderr
            assert victim.read_bytes() == b"damaged"
        assert home.run("verify", "--repair").returncode == 0
        assert home.run("verify").returncode == 0


def test_a_broken_download_on_a_nearly_full_disk(tmp_path, registry):
    """The connection breaks, the disk has just room: both together are no reason to fail."""
    name, image = added(registry, [shrunk([file("f", random.Random(9).randbytes(3_000_000))])])
    registry.script(image.layer_digests[0], Fault(cut_after=1_000_000))
    with disk(tmp_path) as where:
        home = Small(tmp_path, where)
        with filled(where, 7_000_000):
            run = home.pull(name)
            assert run.returncode == 0, run.stderr
        no_leftovers(home)


def test_of_two_names_the_one_that_was_to_be_made_is_told(tmp_path):
    """A symlink's target may look like any path; what could not be made is the link."""
    link = tmp_path / "there" / "link"
    error = local_error(OSError(errno.ENOSPC, "No space left on device", "../target", None, str(link)), "/elsewhere")
    assert error.message == f"{link}: no space left"
    assert FREE.search(error.cause or "")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert FREE.search(local_error(OSError(errno.ENOSPC, "", str(tmp_path / "dangling")), "/elsewhere").cause or "")
