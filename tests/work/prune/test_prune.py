"""prune and rm: what goes, what stays, and what another program or a pull is doing meanwhile."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, ContentError, LocalError, NotFoundError, UsageError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.platform import Platform
from msb_pull.store.store import Store
from msb_pull.work.prune.apply import apply_prune
from msb_pull.work.prune.plan import PrunePlan, plan_prune
from msb_pull.work.prune.remove import remove_images
from msb_pull.work.select import Selection, lost_database, parse_filters
from tests.support.counting import wait_for
from tests.support.stores import NEVER, digest, fill, microsandbox_pull, names, publish, pull, record, sql, stacked

WEEK = 7 * 86400
NOTHING = PrunePlan((), (), (), (), 0)


@pytest.fixture
def store(tmp_path):
    made = Store.open(tmp_path / "home")
    with made.database(create=True):
        pass
    return made


def prune(store, selection=None, **options):
    return apply_prune(store, plan_prune(store, selection), Job(), **options)


def remove(store, *references):
    return remove_images(store, references, Job())


def there(store) -> str:
    """The layers whose directories are there."""
    return names(sorted(x.name.removesuffix(".extracted") for x in store.layers.glob("*.extracted")))


def layers(plan) -> str:
    return "".join(sorted(names(x.name for x in plan.layers)))


def foreign(store, name: str) -> None:
    """A directory as Microsandbox leaves it."""
    folder = store.layer_dir(digest(name))
    folder.mkdir()
    (folder / "f").touch()


def everything(store) -> set[str]:
    return {os.path.join(base, x) for base, folders, files in os.walk(store.home) for x in (*folders, *files)}


# What goes


def test_nothing_to_do(store):
    pull(store, "localhost/a:1", "xy")
    assert plan_prune(store, None).empty
    assert prune(store).empty
    assert set(there(store)) == set("xy")


def test_d21_d29_layers_that_no_image_reaches(store):
    pull(store, "localhost/a:1", "xy")
    pull(store, "localhost/b:1", "xz")
    pull(store, "localhost/a:1", "w")  # the tag has moved
    plan = plan_prune(store, None)
    assert (layers(plan), plan.images) == ("y", ())
    assert plan.size >= 4096
    before = plan
    assert prune(store) == before
    assert set(there(store)) == set("xzw")
    key = digest("y")
    assert not store.record_path(key).exists()
    assert not store.notes_path(key).exists()
    assert not os.path.lexists(store.link_path(key))
    with sql(store.database_path) as run:
        assert run.execute("SELECT count(*) FROM layers").fetchone() == (3,)
    assert plan_prune(store, None).empty


def test_planning_changes_nothing(store):
    pull(store, "localhost/a:1", "xy")
    publish(store, "z")
    (store.places.folder / "left-1-ff").mkdir()
    before = everything(store)
    plan = plan_prune(store, Selection())
    assert (plan.images, layers(plan), plan.leftovers) == (("localhost/a:1",), "xyz", 1)
    assert {x for x in everything(store) ^ before if not x.endswith(("-wal", "-shm"))} == set()


def test_d11_leftovers_of_interruptions(store):
    pull(store, "localhost/a:1", "x")
    for name in ("old", "new", "future"):
        (store.own / "partial" / name).write_bytes(b"x" * 5000)
    now = time.time()
    os.utime(store.own / "partial" / "old", (now - WEEK - 60,) * 2)
    os.utime(store.own / "partial" / "new", (now - WEEK + 60,) * 2)
    os.utime(store.own / "partial" / "future", (now + 10 * WEEK,) * 2)
    publish(store, "s")
    os.rename(store.layer_dir(digest("s")), store.home / "elsewhere")
    (store.own / "records" / "notes-to-myself").touch()
    (store.places.folder / "dead-1-ff" / "tree").mkdir(parents=True)
    plan = plan_prune(store, None)
    assert [x.name for x in plan.partials] == ["partial/old"]
    assert {x.name for x in plan.records} == {f"records/{digest('s')}.{x}" for x in ("tar", "json")}
    assert plan.leftovers == 2  # staging, and the short link
    with store.staging(digest("p")) as living:
        fill(living)
        done = prune(store)
        assert (living.path / "f").exists()
    assert done.leftovers == 2
    assert sorted(os.listdir(store.own / "partial")) == ["future", "new"]
    assert (store.own / "records" / "notes-to-myself").exists()
    assert os.listdir(store.own / "l") == [digest("x").short]
    assert plan_prune(store, None).empty


def test_what_a_crash_left_of_a_replacement_goes(store):
    """The notes were gone already, and the image that wanted the layer is gone too."""
    publish(store, "x")
    store.notes_path(digest("x")).unlink()
    assert layers(prune(store)) == "x"
    assert there(store) == ""


# What stays


def test_layers_that_only_microsandboxs_rows_reach(store):
    pull(store, "localhost/a:1", "xy")
    foreign(store, "z")
    microsandbox_pull(store.database_path, "localhost/theirs:1", "xz")
    remove(store, "localhost/a:1")
    assert set(there(store)) == set("xz")
    done = prune(store, Selection())
    assert (done.images, layers(done)) == ((), "")
    assert stacked(store.database_path, "localhost/theirs:1") == "xz"


def test_an_image_that_microsandbox_pulled_again_stays_with_its_layers(store):
    pull(store, "localhost/a:1", "xy")
    microsandbox_pull(store.database_path, "localhost/a:1", "xz")
    assert plan_prune(store, Selection()).empty


def test_directories_that_nobody_knows(store):
    foreign(store, "f")
    for name in ("sha256:short.extracted", "mine", "x.extracted", f"{digest('q')}.extracted.old"):
        (store.layers / name).mkdir()
    (store.layers / f"{digest('t')}.extracted").symlink_to("mine")
    publish(store, "y")
    assert layers(prune(store, Selection())) == "y"
    assert len(os.listdir(store.layers)) == 7  # these six and ours


def test_a_row_that_microsandbox_is_about_to_link(store):
    foreign(store, "f")
    with sql(store.database_path) as run:
        run.execute(
            "INSERT INTO layers (media_type, digest, diff_id, size_bytes) VALUES ('', ?, '', 0)", (str(digest("f")),)
        )
    assert prune(store, Selection()).empty
    assert there(store) == "f"


def test_images_whose_rows_cannot_be_read_keep_their_layers(store):
    pull(store, "localhost/a:1", "xy")
    with sql(store.database_path) as run:
        run.execute("UPDATE msb_pull_images SET manifest_digest = 'x'")
    assert plan_prune(store, Selection()).empty


# Between the plan and the deed


def test_a_layer_that_is_wanted_meanwhile_stays(store):
    publish(store, "x")
    publish(store, "y")
    plan = plan_prune(store, None)
    assert layers(plan) == "xy"
    pull(store, "localhost/a:1", "x")
    done = apply_prune(store, plan, Job())
    assert (layers(done), there(store)) == ("y", "x")


def test_what_another_one_removed_meanwhile_was_not_freed_here(store):
    pull(store, "localhost/a:1", "xy")
    plan = plan_prune(store, parse_filters([]))
    assert layers(plan) == "xy"
    remove(store, "localhost/a:1")
    assert apply_prune(store, plan, Job()).layers == ()


def test_an_image_that_is_pulled_again_meanwhile_stays(store):
    with store.database(create=True) as database:
        publish(store, "x")
        old = datetime.now(UTC) - timedelta(days=30)
        database.record(record("localhost/a:1", "x")._replace(pulled_at=old))
    plan = plan_prune(store, parse_filters(["until=24h"]))
    assert plan.images == ("localhost/a:1",)
    pull(store, "localhost/a:1", "x")
    done = apply_prune(store, plan, Job())
    assert (done.images, layers(done), there(store)) == ((), "", "x")


def test_a_download_that_went_on_meanwhile_stays(store):
    file = store.own / "partial" / "x"
    file.touch()
    os.utime(file, (1, 1))
    plan = plan_prune(store, None)
    os.utime(file)
    assert apply_prune(store, plan, Job()).partials == ()
    assert file.exists()


def test_d27_d28_waits_for_a_pull_and_says_so(store):
    publish(store, "x")
    plan = plan_prune(store, None)
    seen: list[events.Event] = []
    other = Store.open(store.home)
    with other.lock_shared(lambda text: None, NEVER):
        with pytest.raises(LocalError, match="in use") as caught:
            apply_prune(store, plan, Job(seen.append), wait=False)
        assert caught.value.exit_code == 7
        work = threading.Thread(target=apply_prune, args=(store, plan, Job(seen.append)))
        work.start()
        wait_for(lambda: seen)
        assert there(store) == "x"
    work.join(60)
    assert there(store) == ""
    assert [type(event) for event in seen] == [events.StoreWaiting, events.Removing]


def test_d27_pull_and_prune_in_loops(store):
    """Whatever the moment, an image that was recorded under the lock is complete afterwards."""
    stop = threading.Event()
    wrong: list[object] = []

    def prune_on():
        mine = Store.open(store.home)
        while not stop.is_set():
            try:
                prune(mine, Selection())
            except Exception as error:
                wrong.append(error)
                return

    thread = threading.Thread(target=prune_on)
    thread.start()
    try:
        for number in range(40):
            with store.lock_shared(lambda text: None, NEVER):
                image = pull(store, f"localhost/a{number}:1", "xyz")
                if not all(store.has_layer(layer.digest) for layer in image.manifest.layers):
                    wrong.append(number)
    finally:
        stop.set()
        thread.join(20)
    assert wrong == []
    prune(store, Selection())
    assert there(store) == ""


def test_cancelled_between_two_layers(store):
    for name in "xyz":
        publish(store, name)
    plan = plan_prune(store, None)
    cancel = Cancel()
    real = store.trash

    def trash(path):
        real(path)
        cancel.set()

    store.trash = trash
    with pytest.raises(Cancelled):
        apply_prune(store, plan, Job(cancel=cancel))
    del store.trash
    assert len(there(store)) == 2
    assert len(layers(prune(store))) == 2


def test_ended_in_the_middle_of_removing(store, monkeypatch):
    """The directory is out of sight at once; what is left of it goes with the next run."""
    publish(store, "x")
    monkeypatch.setattr("msb_pull.store.staging._remove", lambda path, deadline: None)
    prune(store)
    monkeypatch.undo()
    assert there(store) == ""
    assert plan_prune(store, None).leftovers == 1
    assert prune(store).leftovers == 1
    assert os.listdir(store.places.folder) == []


# rm


def test_rm_takes_the_layers_that_nothing_else_reaches(store):
    pull(store, "localhost/a:1", "xyx")
    pull(store, "localhost/b:1", "xz")
    done = remove(store, "localhost/a:1", "localhost/a:1")
    assert (done.images, layers(done)) == (("localhost/a:1",), "y")
    assert set(there(store)) == set("xz")
    assert plan_prune(store, None).empty
    with store.database(create=False) as database:
        assert database.references() == ["localhost/b:1"]


def test_rm_of_an_image_of_microsandbox_takes_its_directories(store):
    foreign(store, "p")
    foreign(store, "q")
    microsandbox_pull(store.database_path, "localhost/theirs:1", "pq")
    microsandbox_pull(store.database_path, "localhost/more:1", "q")
    assert layers(remove(store, "localhost/theirs:1")) == "p"
    assert there(store) == "q"


def test_rm_of_an_unknown_image_removes_nothing(store):
    pull(store, "localhost/a:1", "x")
    with pytest.raises(NotFoundError, match="localhost/b:1"):
        remove(store, "localhost/a:1", "localhost/b:1")
    assert there(store) == "x"


def test_rm_of_an_image_whose_layers_are_gone(store):
    pull(store, "localhost/a:1", "x")
    os.rename(store.layer_dir(digest("x")), store.home / "elsewhere")
    assert layers(remove(store, "localhost/a:1")) == ""
    with store.database(create=False) as database:
        assert database.images() == []


def interrupted(store, references) -> Cancelled:
    """What ends a removal that is stopped after its first layer."""
    cancel, real = Cancel(), store.trash

    def trash(path):
        real(path)
        cancel.set()

    store.trash = trash
    with pytest.raises(Cancelled) as caught:
        remove_images(store, references, Job(cancel=cancel))
    del store.trash
    return caught.value


def test_rm_that_is_interrupted_says_what_is_gone(store):
    """The images go first, all of them; ``rm`` would not know them any more, and ``prune`` removes the rest."""
    pull(store, "localhost/a:1", "xyz")
    pull(store, "localhost/b:1", "z")
    assert (
        interrupted(store, ["localhost/a:1", "localhost/b:1"]).hint
        == "2 images are removed; `msb-pull prune` removes the layers that are left"
    )
    assert len(there(store)) == 2
    with store.database(create=False) as database:
        assert database.images() == []
    assert len(layers(prune(store))) == 2


def test_d43_rm_of_an_image_of_microsandbox_that_is_interrupted_leaves_to_prune_what_it_says(store):
    for name in "pqr":
        foreign(store, name)
    microsandbox_pull(store.database_path, "localhost/theirs:1", "pqr")
    assert (
        interrupted(store, ["localhost/theirs:1"]).hint
        == "localhost/theirs:1 is removed; `msb-pull prune` removes the layers that are left"
    )
    assert len(there(store)) == 2
    assert len(layers(prune(store))) == 2
    assert there(store) == ""
    assert os.listdir(store.own / "records") == []


def test_rm_that_is_interrupted_before_it_begins_removes_nothing(store):
    pull(store, "localhost/a:1", "x")
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Cancelled) as caught:
        remove_images(store, ["localhost/a:1"], Job(cancel=cancel))
    assert (caught.value.hint, there(store)) == (None, "x")
    with store.database(create=False) as database:
        assert len(database.images()) == 1


# --all and its filters


def make(store, reference: str, names: str, days: float = 0, platform: str = "linux/amd64"):
    made = record(reference, names)
    for name in names:
        publish(store, name)
    when = datetime.now(UTC) - timedelta(days=days)
    with store.database(create=True) as database:
        database.record(made._replace(pulled_at=when, platform=Platform.parse(platform)))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], "abcd"),
        (["reference=docker.io/library/a:1"], "a"),
        (["reference=a*"], "a"),
        (["reference=a"], "a"),
        (["reference=*/c"], "c"),
        (["reference=localhost:5000/*"], "c"),
        (["reference=nothing"], ""),
        (["reference=a", "reference=b"], "ab"),
        (["platform=linux/arm64"], "bd"),
        (["platform=linux/arm64/v8"], "bd"),
        (["platform=linux/arm64", "reference=a"], ""),
        (["platform=linux/arm64", "reference=b", "reference=c"], "b"),
        (["until=24h"], "cd"),
        (["until=1d12h"], "cd"),
        (["until=100d"], ""),
        (["until=24h", "platform=linux/arm64"], "d"),
        (["incomplete=true"], "d"),
        (["incomplete=false"], "abc"),
        (["incomplete=true", "incomplete=false"], "abcd"),
    ],
)
def test_all_is_narrowed_by_filters(store, filters, expected):
    make(store, "docker.io/library/a:1", "x")
    make(store, "docker.io/library/b:1", "y", platform="linux/arm64")
    make(store, "localhost:5000/x/c:1", "z", days=30)
    make(store, "ghcr.io/x/d@" + str(digest("d")), "w", days=3, platform="linux/arm64/v8")
    os.rename(store.layer_dir(digest("w")), store.home / "elsewhere")
    plan = plan_prune(store, parse_filters(filters))
    assert "".join(sorted(name.partition("@")[0].removesuffix(":1")[-1] for name in plan.images)) == expected
    assert layers(plan) == "".join({"a": "x", "b": "y", "c": "z", "d": ""}[name] for name in expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reference",
        "reference=",
        "color=red",
        "until=soon",
        "until=-5h",
        "until=5",
        "until=900000d",
        "until=99999999999999999w",
        f"until={'9' * 5000}s",
        "incomplete=maybe",
        "platform=/",
    ],
)
def test_filters_that_make_no_sense(text):
    with pytest.raises(UsageError):
        parse_filters([text])


def test_d31_a_clock_that_goes_back_removes_nothing_early(store):
    (store.own / "partial" / "x").touch()
    make(store, "localhost/a:1", "x")
    long_ago = time.time() - 30 * WEEK
    assert plan_prune(store, parse_filters(["until=1h"], datetime.fromtimestamp(long_ago, UTC)), now=long_ago).empty


def test_layers_stay_while_the_copy_of_an_image_that_is_lost_cannot_be_read(store):
    """A rebuilt database lacks the image, whose layers would pass for nobody's."""
    pull(store, "localhost/a:1", "xy")
    pull(store, "localhost/b:1", "yz")
    (copy,) = (path for path in store.own.glob("images/*.json") if "localhost/b:1" in path.read_text())
    copy.write_text("")
    for file in store.home.glob("oci.db*"):
        file.unlink()
    for attempt in (lambda: prune(store), lambda: remove(store, "localhost/a:1")):
        with pytest.raises(LocalError, match=copy.name) as caught:
            attempt()
        assert "pull that image again" in caught.value.hint
        assert set(there(store)) == set("xyz")
    pull(store, "localhost/b:1", "yz")
    remove(store, "localhost/a:1")
    assert set(there(store)) == set("yz")


def test_a_symlink_with_the_name_of_a_layer_is_left_and_not_called_removed(store, tmp_path):
    pull(store, "localhost/a:1", "xy")
    elsewhere = tmp_path / "elsewhere"
    store.layer_dir(digest("x")).rename(elsewhere)
    store.layer_dir(digest("x")).symlink_to(elsewhere)
    removed = remove(store, "localhost/a:1")
    assert layers(removed) == "y"
    assert store.layer_dir(digest("x")).is_symlink() and (elsewhere / "f").exists()
    (remark,) = removed.remarks
    assert remark == f"{store.layer_dir(digest('x'))}: not a directory but a symlink or a file; it was left as it is"


def test_layers_of_a_first_pull_that_was_interrupted_go(tmp_path):
    """Nothing has been lost: no image was ever recorded."""
    store = Store.open(tmp_path / "first")
    store.begin()
    publish(store, "x")
    assert lost_database(store) is None
    assert layers(prune(store)) == "x"


def test_a_database_that_was_lost_is_not_made_up_for_by_the_next_pull(store):
    pull(store, "localhost/a:1", "xy")
    for file in (*store.home.glob("oci.db*"), *store.own.glob("images/*.json")):
        file.unlink()
    store.begin()
    assert not store.database_path.exists()
    with pytest.raises(ContentError, match=r"oci.db: missing"):
        plan_prune(store, None)


def test_d42_layers_stay_where_the_database_is_lost(store):
    """Nothing is left that tells of their images, so all of them would pass for nobody's."""
    pull(store, "localhost/a:1", "xy")
    plan = plan_prune(store, Selection(references=("b",)))
    assert plan.empty
    publish(store, "z")
    plan = plan_prune(store, None)
    assert layers(plan) == "z"
    for file in (*store.home.glob("oci.db*"), *store.own.glob("images/*.json")):
        file.unlink()
    for attempt in (
        lambda: plan_prune(store, None),
        lambda: plan_prune(store, Selection(references=("a",))),
        lambda: apply_prune(store, plan, Job()),
    ):
        with pytest.raises(ContentError, match=r"oci.db: missing, with 3 layers left") as caught:
            attempt()
        assert "pull the images again" in caught.value.hint and "`msb-pull prune --all`" in caught.value.hint
    assert set(there(store)) == set("xyz")
    # Whoever wants all images to go wants these to go as well.
    assert set(layers(prune(store, Selection()))) == set("xyz")
    assert there(store) == ""
