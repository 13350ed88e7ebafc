"""Several homes whose layers lie in one folder: none takes away what another needs, whatever becomes of the homes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
from typing import TYPE_CHECKING

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.ground.running import Job
from msb_pull.store.store import Store
from msb_pull.work.prune.apply import apply_prune
from msb_pull.work.prune.plan import plan_prune
from msb_pull.work.prune.remove import remove_images
from tests.conftest import program, program_environment
from tests.support.archive import END, reg
from tests.support.home import LINUX
from tests.support.imagebuild import simple_layout
from tests.support.program import run_program
from tests.support.stores import microsandbox_pull, names, pull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class World:
    """Two homes; ``kind`` says whose the layers folder is."""

    def __init__(self, tmp_path, kind: str) -> None:
        self.one, self.two = tmp_path / "one", tmp_path / "two"
        self.layers = {
            "neither's": tmp_path / "shared",
            "called layers": tmp_path / "data" / "layers",
            "the first's": self.one / "layers",
            "the second's": self.two / "layers",
        }[kind]

    def open(self, home, **options) -> Store:
        return Store.open(home, self.layers, **options)

    def there(self) -> set[str]:
        return set(names(path.name.removesuffix(".extracted") for path in self.layers.glob("*.extracted")))


@pytest.fixture(params=["neither's", "called layers", "the first's", "the second's"])
def world(tmp_path, request):
    return World(tmp_path, request.param)


@pytest.fixture
def apart(tmp_path):
    return World(tmp_path, "neither's")


def prune(store):
    plan = plan_prune(store, None)
    return apply_prune(store, plan, Job()), plan.remarks


def remove(store, *references):
    return remove_images(store, references, Job())


def references(store) -> list[str]:
    with store.database(create=False) as database:
        return database.references()


@pytest.mark.parametrize("order", ["one first", "two first"])
def test_what_another_home_needs_stays(world, order):
    homes = (world.one, world.two) if order == "one first" else (world.two, world.one)
    first, second = map(world.open, homes)
    pull(first, "localhost/a:1", "xy")
    pull(second, "localhost/b:1", "xz")
    assert references(first) == ["localhost/a:1"]
    assert references(second) == ["localhost/b:1"]
    for store in (first, second):
        removed, remarks = prune(store)
        assert (removed.layers, remarks) == ((), ())
    assert world.there() == set("xyz")
    remove(first, "localhost/a:1")
    assert world.there() == set("xz")
    remove(second, "localhost/b:1")
    assert world.there() == set()


def test_one_name_may_mean_another_image_in_each_home(world):
    one, two = world.open(world.one), world.open(world.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/a:1", "xz")
    remove(one, "localhost/a:1")
    assert world.there() == set("xz")
    two.database_path.unlink()
    with two.database(create=True) as database:
        image = database.find("localhost/a:1")
    assert image is not None
    assert names(layer.digest for layer in image.layers) == "xz"
    one.database_path.unlink()
    assert references(one) == []


def test_layers_that_no_home_needs_go(world):
    one, two = world.open(world.one), world.open(world.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/b:1", "xz")
    pull(one, "localhost/a:1", "w")
    removed, _ = prune(two)
    assert names(layer.name for layer in removed.layers) == "y"
    assert world.there() == set("xzw")


def test_what_microsandbox_recorded_in_another_home_stays(tmp_path):
    world = World(tmp_path, "the first's")
    one, two = world.open(world.one), world.open(world.two)
    pull(one, "localhost/a:1", "x")
    pull(two, "localhost/b:1", "xyz")
    microsandbox_pull(one.database_path, "localhost/c:1", "xy")
    remove(two, "localhost/b:1")
    assert world.there() == set("xy")
    removed, _ = prune(two)
    assert removed.layers == ()


def test_a_home_whose_layers_are_a_link_to_the_folder(apart):
    apart.layers.mkdir()
    for home in (apart.one, apart.two):
        home.mkdir()
        (home / "layers").symlink_to(apart.layers)
    one, two = Store.open(apart.one), Store.open(apart.two)
    pull(one, "localhost/a:1", "x")
    pull(two, "localhost/b:1", "xy")
    microsandbox_pull(one.database_path, "localhost/c:1", "y")
    remove(two, "localhost/b:1")
    assert apart.there() == set("xy")
    # Microsandbox keeps no copies: without the database nobody knows.
    shutil.move(apart.one, apart.one.with_name("away"))
    pull(two, "localhost/b:1", "xyz")
    with pytest.raises(LocalError, match="what it needs is unknown") as caught:
        remove(two, "localhost/b:1")
    assert "rm -r" in (caught.value.hint or "")
    assert references(two) == ["localhost/b:1"]
    pull(two, "localhost/b:1", "xy")
    with pytest.raises(LocalError):
        prune(two)
    assert apart.there() == set("xyz")


# What becomes of homes


def test_a_home_that_was_moved_is_still_the_same(apart):
    one, two = apart.open(apart.one), apart.open(apart.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/b:1", "xz")
    moved = apart.one.with_name("elsewhere")
    shutil.move(apart.one, moved)
    assert prune(two)[0].layers == ()
    again = apart.open(moved)
    assert prune(two)[1] == ()
    remove(again, "localhost/a:1")
    assert apart.there() == set("xz")


def test_a_home_is_known_wherever_it_and_the_layers_are_mounted(tmp_path):
    world = World(tmp_path, "the first's")
    one = world.open(world.one)
    pull(one, "localhost/a:1", "xy")
    shutil.move(world.one, tmp_path / "mounted")
    world.layers = tmp_path / "mounted" / "layers"
    remove(Store.open(tmp_path / "mounted"), "localhost/a:1")
    assert world.there() == set()


def test_a_copy_of_a_home_is_another_home(apart):
    one = apart.open(apart.one)
    pull(one, "localhost/a:1", "xy")
    shutil.copytree(apart.one, apart.two)
    copy = apart.open(apart.two)
    remove(copy, "localhost/a:1")
    assert apart.there() == set("xy")
    copy.database_path.unlink()
    assert references(copy) == []
    one.database_path.unlink()
    assert references(one) == ["localhost/a:1"]


@pytest.mark.parametrize("gone", ["home", "database", "mount", "another home there", "closed"])
def test_what_a_home_that_cannot_be_seen_needs_stays_until_it_is_forgotten(apart, gone, monkeypatch):
    one, two = apart.open(apart.one), apart.open(apart.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/b:1", "xz")
    if gone == "database":
        one.database_path.write_bytes(b"no database")
    else:
        shutil.rmtree(apart.one)
    if gone == "mount":
        apart.one.mkdir()
    elif gone == "another home there":
        # As in another container.
        assert references(apart.open(apart.one)) == []
    elif gone == "closed":
        close(apart.one, monkeypatch)
    removed, remarks = prune(two)
    assert removed.layers == ()
    assert apart.there() == set("xyz")
    if gone == "database":
        assert references(one) == ["localhost/a:1"], "rebuilt"
        return
    (remark,) = remarks
    assert remark.startswith(f"{apart.one}: 1 layer kept for another home")
    advice = remark.split("`")[1].split()
    subprocess.run(advice, check=True)
    removed, remarks = prune(two)
    assert (names(layer.name for layer in removed.layers), remarks) == ("y", ())


def close(home, monkeypatch):
    """As if another user's folder was on the way; root enters those, too."""
    real = os.stat

    def stat(path, *more, **options):
        if isinstance(path, (str, os.PathLike)) and str(home) in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *more, **options)

    monkeypatch.setattr(os, "stat", stat)


def test_a_home_that_comes_back_after_it_was_forgotten_is_known_again(apart):
    one, two = apart.open(apart.one), apart.open(apart.two)
    pull(one, "localhost/a:1", "xy")
    shutil.rmtree(one.homes.copies)
    apart.open(apart.one)
    pull(two, "localhost/b:1", "xz")
    shutil.move(apart.one, apart.one.with_name("away"))
    prune(two)
    assert apart.there() == set("xyz")


def test_damaged_copies_of_a_home_that_cannot_be_seen_let_nothing_go(apart):
    one, two = apart.open(apart.one), apart.open(apart.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/b:1", "z")
    (copy,) = one.homes.copies.glob("*.json")
    copy.write_text("{")
    assert prune(two)[0].layers == (), "the database tells"
    shutil.move(apart.one, apart.one.with_name("away"))
    with pytest.raises(LocalError, match="what it needs is unknown"):
        prune(two)
    with pytest.raises(LocalError, match="what it needs is unknown"):
        remove(two, "localhost/b:1")
    assert apart.there() == set("xyz")
    assert references(two) == ["localhost/b:1"]


def test_the_home_around_the_layers_is_not_seen_and_nothing_goes(tmp_path):
    world = World(tmp_path, "the first's")
    one, two = world.open(world.one), world.open(world.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/b:1", "z")
    one.database_path.rename(tmp_path / "hidden")
    with pytest.raises(LocalError, match="what it needs is unknown"):
        remove(two, "localhost/b:1")
    with one.database(create=True):
        pass
    remove(two, "localhost/b:1")
    assert world.there() == set("xy")


# One home in two containers, each with a copy of it under the same path


class Containers:
    """Two containers made from one image, in which the home is; ``inside`` shows the home of one of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        with world.open(world.one).database(create=True):
            pass

    def start(self) -> None:
        for name in "ab":
            shutil.copytree(self.world.one, self.away(name), symlinks=True)
        shutil.rmtree(self.world.one)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[Store]:
        shutil.move(self.away(name), self.world.one)
        yield self.world.open(self.world.one)
        shutil.move(self.world.one, self.away(name))

    def away(self, name: str) -> Path:
        return self.world.one.with_name(f"in {name}")


@pytest.fixture
def containers(apart):
    return Containers(apart)


def test_containers_with_one_home_take_nothing_from_each_other(containers, apart):
    pull(apart.open(apart.one), "localhost/base:1", "x")
    containers.start()
    with containers.inside("a") as store:
        pull(store, "localhost/a:1", "xy")
    with containers.inside("b") as store:
        assert references(store) == ["localhost/base:1"]
        pull(store, "localhost/a:1", "xz")
        prune(store)
        remove(store, "localhost/base:1")
        assert apart.there() == set("xyz")
    with containers.inside("a") as store:
        assert prune(store)[0].layers == ()
        remove(store, "localhost/a:1")
        assert apart.there() == set("xz")
        # Lost, it comes back with its own images alone.
        store.database_path.unlink()
        assert references(store) == ["localhost/base:1"]
    with containers.inside("b") as store:
        assert references(store) == ["localhost/a:1"]
        assert names(layer.name for layer in prune(store)[0].layers) == ""


@pytest.fixture
def at_once(containers):
    """Both containers have recorded an image, and opened the store before that."""
    containers.start()
    for name, layers in ("a", "xy"), ("b", "xz"):
        with containers.inside(name) as store:
            (store.home / ".msb-pull-home").write_text(next((store.own / "homes").iterdir()).name)
            pull(store, f"localhost/{name}:1", layers)
    return containers


def test_a_third_home_leaves_what_either_container_needs(at_once, apart):
    shutil.move(at_once.away("a"), apart.one)
    assert prune(apart.open(apart.two))[0].layers == ()
    assert apart.there() == set("xyz")


def test_containers_with_one_home_that_start_at_the_same_time(at_once, apart):
    containers = at_once
    with containers.inside("a") as store:
        removed, (remark,) = prune(store)
        assert removed.layers == ()
        assert "1 layer kept for another home" in remark
    with containers.inside("b") as store:
        assert prune(store)[0].layers == ()
        assert references(store) == ["localhost/b:1"]
    assert apart.there() == set("xyz")


def test_a_home_that_gets_a_name_of_its_own_says_why(containers, apart):
    told: list[str] = []
    containers.start()
    with containers.inside("a") as store:
        pull(store, "localhost/a:1", "x")
    shutil.move(containers.away("b"), apart.one)
    apart.open(apart.one, warn=told.append)
    apart.open(apart.one, warn=told.append)
    (text,) = told
    assert "localhost/a:1" in text
    assert "another home" in text


def test_what_is_being_removed_is_not_taken_for_another_homes(apart, monkeypatch):
    """Another process of the same home looks before the copy goes."""
    from msb_pull.store.index.backup import Backup

    one = apart.open(apart.one)
    pull(one, "localhost/a:1", "x")
    seen, real = [], Backup.remove

    def look(backup, reference):
        with contextlib.closing(sqlite3.connect(one.database_path)) as other:
            seen.append(other.execute("SELECT reference FROM images").fetchall())
        real(backup, reference)

    monkeypatch.setattr(Backup, "remove", look)
    remove(one, "localhost/a:1")
    assert seen == [[("localhost/a:1",)]]
    assert list(one.homes.copies.glob("*.json")) == []


# Homes from before there were names


def before(store: Store) -> None:
    """Makes a folder what earlier versions left: copies of all homes in one place, and no names."""
    for entry in (store.own / "homes").iterdir():
        for copy in entry.glob("*.json"):
            copy.rename(store.own / "images" / copy.name)
    shutil.rmtree(store.own / "homes")
    (store.home / ".msb-pull-home").unlink()


def test_the_copies_of_an_older_version_are_taken_over(apart):
    one = apart.open(apart.one)
    pull(one, "localhost/a:1", "xy")
    before(one)
    looking = apart.open(apart.one, create=False)
    assert looking.has_images
    one.database_path.write_bytes(b"no database")
    assert references(looking) == ["localhost/a:1"]
    assert references(apart.open(apart.one)) == ["localhost/a:1"]
    assert list((one.own / "images").iterdir()) == []
    two = apart.open(apart.two)
    assert references(two) == []
    remove(apart.open(apart.one), "localhost/a:1")
    assert apart.there() == set()


def test_a_home_of_an_older_version_that_has_not_come_yet_loses_nothing(apart):
    one, two = apart.open(apart.one), apart.open(apart.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/b:1", "xz")
    (two.home / ".msb-pull-home").unlink()
    before(one)
    one = apart.open(apart.one)
    assert references(one) == ["localhost/a:1"]
    removed, (remark,) = prune(one)
    assert removed.layers == ()
    assert "1 layer kept" in remark
    remove(one, "localhost/a:1")
    assert apart.there() == set("xz")
    two = apart.open(apart.two)
    assert prune(one)[1] == ()
    assert list((one.own / "images").iterdir()) == []
    remove(two, "localhost/b:1")
    assert apart.there() == set()


def test_an_interrupted_registration_is_done_again(apart, monkeypatch):
    one = apart.open(apart.one)
    pull(one, "localhost/a:1", "xy")
    before(one)
    real = os.replace

    def killed(old, new):
        real(old, new)
        if os.fspath(new).endswith(".json"):
            raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", lambda self, new: killed(self, new))
    with pytest.raises(KeyboardInterrupt):
        apart.open(apart.one)
    monkeypatch.undo()
    apart.open(apart.one)
    one.database_path.unlink()
    assert references(apart.open(apart.one)) == ["localhost/a:1"]


def test_on_a_full_disk_an_image_can_be_removed_before_its_home_is_known(apart, monkeypatch):
    one = apart.open(apart.one)
    pull(one, "localhost/a:1", "xy")
    before(one)

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    remove(apart.open(apart.one), "localhost/a:1")
    prune(apart.open(apart.one))
    assert apart.there() == set()


def test_the_first_to_prune_is_a_home_of_an_older_version(apart):
    one, two = apart.open(apart.one), apart.open(apart.two)
    pull(one, "localhost/a:1", "xy")
    pull(two, "localhost/b:1", "xz")
    (two.home / ".msb-pull-home").unlink()
    before(one)
    whole("prune", "-y", "--home", apart.one, "--layers-dir", apart.layers)
    assert apart.there() == set("xyz")
    whole("prune", "--all", "-y", "--home", apart.one, "--layers-dir", apart.layers)
    assert apart.there() == set("xz")


@pytest.mark.parametrize("kind", ["the first's", "neither's"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_new_home_has_no_images_of_a_home_without_a_name(tmp_path, kind, lost):
    world = World(tmp_path, kind)
    one = world.open(world.one)
    pull(one, "localhost/a:1", "xy")
    if kind == "neither's":
        before(one)
    if lost:
        one.database_path.rename(tmp_path / "lost")
    two = world.open(world.two)
    assert references(two) == []
    pull(two, "localhost/b:1", "xz")
    if lost and kind == "the first's":
        with pytest.raises(LocalError, match="what it needs is unknown"):
            remove(two, "localhost/b:1")
    else:
        remove(two, "localhost/b:1")
        assert world.there() == set("xy")
    if lost:
        (tmp_path / "lost").rename(one.database_path)
    assert references(world.open(world.one)) == ["localhost/a:1"]
    for home in (world.two, world.one):
        prune(world.open(home))
    assert set("xy") <= world.there()


@pytest.mark.parametrize("home", ["none", "empty", "without images"])
def test_a_home_that_nobody_knows_removes_nothing(world, home):
    pull(world.open(world.one), "localhost/a:1", "xy")
    if home != "none":
        world.two.mkdir(exist_ok=True)
    if home == "without images":
        with world.open(world.two).database(create=True):
            pass
    whole("prune", "--all", "-y", "--home", world.two, "--layers-dir", world.layers)
    assert world.there() == set("xy")
    assert references(world.open(world.one)) == ["localhost/a:1"]


# As programs


def run(*words):
    return subprocess.Popen(
        [*program(), *map(str, words)],
        env=program_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def whole(*words) -> None:
    run_program(words, check=True, timeout=120)


def ended(process, code: int = 0) -> str:
    out, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    return out


def test_homes_that_pull_and_prune_at_the_same_time(tmp_path):
    tars = [b"".join((reg(b"f%d" % number, os.urandom(200_000)), END)) for number in range(6)]
    images = [simple_layout(tmp_path / f"i{number}", tars[number : number + 3]) for number in range(4)]
    layers = ("--layers-dir", tmp_path / "shared")
    homes = [tmp_path / f"home{number}" for number in range(4)]
    for _ in range(3):
        working = []
        for home, image in zip(homes, images, strict=True):
            named = ("--as", "a:1", "--home", home, *layers)
            working.append(run("pull", "-q", "--force", *LINUX, f"oci:{image}:1", *named))
            working.append(run("prune", "-y", "--home", home, *layers))
        for process in working:
            ended(process)
        for home in homes:
            whole("verify", "--home", home, *layers)
    for number, home in enumerate(homes):
        whole("rm", "a:1", "--home", home, *layers)
        for other in homes[number + 1 :]:
            whole("verify", "--home", other, *layers)
    assert list((tmp_path / "shared").glob("*.extracted")) == []


def test_looking_makes_no_home_known(tmp_path):
    world = World(tmp_path, "neither's")
    pull(world.open(world.one), "localhost/a:1", "xy")
    whole("ls", "--home", world.two, "--layers-dir", world.layers)
    assert not world.two.exists()
    assert len(os.listdir(world.layers / ".msb-pull" / "homes")) == 1


def test_prune_says_which_home_keeps_layers(tmp_path):
    world = World(tmp_path, "neither's")
    pull(world.open(world.one), "localhost/a:1", "xy")
    world.open(world.two)
    shutil.rmtree(world.one)
    done = run_program(["prune", "-y", "--home", world.two, "--layers-dir", world.layers], check=True)
    assert f"{world.one}: 2 layers kept for another home" in done.stderr
    assert world.there() == set("xy")
