"""A store is made to fit a budget: what goes, what stays, and what others do meanwhile."""

from __future__ import annotations

import json
import os
import time

import pytest

from msb_pull.ground.errors import LocalError
from msb_pull.ground.running import Job
from msb_pull.store.store import Store
from msb_pull.store.uses import InUse
from msb_pull.work.prune import apply, plan
from msb_pull.work.prune.apply import prune_after_pull, prune_to_fit
from msb_pull.work.prune.budget import Budget, Fit
from msb_pull.work.prune.plan import plan_to_fit
from msb_pull.work.prune.report import report_disk
from msb_pull.work.prune.usage import measure, remember, remembered
from msb_pull.work.select import Selection, parse_filters
from tests.support.stores import NEVER, digest, microsandbox_pull, names, publish, pull, set_used

A, B, C = (f"localhost/{name}:1" for name in "abc")
SIZE = 100_000
DAY = 86400
# Long ago.
THEN = 1_700_000_000


@pytest.fixture
def store(tmp_path):
    """Three images of a layer each, and one that all of them have; the first was used longest ago."""
    made = Store.open(tmp_path / "home")
    for days, (reference, layers) in enumerate([(C, "zs"), (B, "ys"), (A, "xs")], 1):
        for name in layers:
            if not made.has_layer(digest(name)):
                publish(made, name, "x" * SIZE)
        pull(made, reference, layers)
        set_used(made, reference, THEN - days * DAY)
    return made


def fit(keep: int, **more) -> Fit:
    return Fit(Budget(keep=keep), **{"selection": Selection(), **more})


def total(store) -> int:
    return measure(store).total


def one(store) -> int:
    """What each layer takes."""
    return measure(store).of(str(digest("x")))


def images(store) -> list[str]:
    with store.database(create=False) as database:
        return database.references()


def layers(plan) -> str:
    return "".join(sorted(names(x.name for x in plan.layers)))


def counted(store) -> int:
    """What lies on the disk, counted in another way."""
    found = 0
    places = [*store.layers.glob("*.extracted"), *(store.own / x for x in ("records", "partial", "staging"))]
    for place in places:
        for base, folders, files in os.walk(place):
            found += sum(os.lstat(os.path.join(base, x)).st_blocks for x in (*folders, *files)) * 512
        if place.parent == store.layers:
            found += os.lstat(place).st_blocks * 512
    return found


# What goes


def test_the_least_recently_used_go_until_the_store_fits(store):
    before = total(store)
    assert before > 4 * SIZE
    planned = plan_to_fit(store, fit(before))
    assert planned.empty and (planned.left, planned.over) == (before, 0)
    for keep, gone, lost in ((before - 1, [A], "x"), (before - one(store) - 1, [A, B], "xy"), (1, [A, B, C], "sxyz")):
        planned = plan_to_fit(store, fit(keep))
        assert (list(planned.images), layers(planned)) == (gone, lost)
        assert planned.left == before - planned.size
        assert (planned.over == 0) == (planned.left <= keep)
    assert images(store) == [A, B, C]
    keep = before - one(store) - 1
    done = prune_to_fit(store, fit(keep), Job())
    assert (done.images, layers(done), done.over) == ((A, B), "xy", 0)
    assert images(store) == [C]
    assert total(store) == counted(store) == done.left <= keep


def test_a_use_saves_an_image(store):
    store.uses.touch(A)
    assert plan_to_fit(store, fit(total(store) - 1)).images == (B,)


def test_what_no_image_needs_goes_first(store):
    publish(store, "w", "x" * SIZE)
    before = total(store)
    done = prune_to_fit(store, fit(before - one(store)), Job())
    assert (done.images, layers(done)) == ((), "w")


def test_an_unfinished_download_goes_in_its_turn(store):
    for name, days in (("old", 2.5), ("new", 0.5)):
        (store.own / "partial" / name).write_bytes(b"x" * SIZE)
        os.utime(store.own / "partial" / name, (time.time() - days * DAY,) * 2)
    for days, reference in enumerate([C, B, A], 1):
        set_used(store, reference, int(time.time()) - days * DAY)
    before = total(store)
    done = prune_to_fit(store, fit(before - one(store) - 1), Job())
    assert (done.images, [x.name for x in done.partials]) == ((A,), ["partial/old"])
    assert total(store) == done.left
    done = prune_to_fit(store, fit(1), Job())
    assert (images(store), done.left, total(store)) == ([], 0, 0)
    assert os.listdir(store.own / "partial") == []


def test_space_on_the_file_system_counts_as_well(store, monkeypatch):
    before = total(store)
    free = 10 * SIZE
    monkeypatch.setattr("msb_pull.work.prune.budget.file_system", lambda store: (1000 * SIZE, free))
    assert plan_to_fit(store, Fit(Budget(min_free=free), Selection())).images == ()
    planned = plan_to_fit(store, Fit(Budget(min_free=free + 1), Selection()))
    assert (planned.images, planned.over) == ((A,), 0)
    planned = plan_to_fit(store, Fit(Budget(keep=before, min_free=free + one(store) + 1), Selection()))
    assert planned.images == (A, B)
    assert plan_to_fit(store, Fit(Budget(min_free=2 * free), Selection())).over == free - before


# What stays


def test_what_may_not_go(store):
    before = total(store)
    assert plan_to_fit(store, fit(before - 1, spare=frozenset([A]))).images == (B,)
    assert plan_to_fit(store, fit(1, selection=parse_filters(["reference=*/b"]))).images == (B,)
    planned = plan_to_fit(store, fit(1, only=frozenset([B, C])))
    assert (planned.images, layers(planned)) == ((B, C), "yz")
    assert planned.over == before - planned.size - 1


def test_images_that_microsandbox_has_recorded_stay_and_count(store):
    microsandbox_pull(store.database_path, A, "xs")
    microsandbox_pull(store.database_path, "localhost/theirs:1", "y")
    done = prune_to_fit(store, fit(1), Job())
    # Another one has to stay as well, so removing it would give nothing back.
    assert (done.images, layers(done)) == ((C,), "z")
    assert done.over == total(store) - 1 > 0


def test_what_another_home_needs_stays(store, tmp_path):
    other = Store.open(tmp_path / "other", store.layers)
    pull(other, "localhost/other:1", "xs")
    done = prune_to_fit(store, fit(1), Job())
    assert (images(store), layers(done)) == ([A], "yz")
    assert done.over


def test_an_image_in_use_stays_and_the_next_one_goes(store):
    before = total(store)
    with InUse(Store.open(store.home).uses, Job()) as command:
        command.add(A)
        assert plan_to_fit(store, fit(before - 1)).images == (B,)
        done = prune_to_fit(store, fit(1), Job())
        assert (done.images, layers(done)) == ((B, C), "yz")
        assert done.over == total(store) - 1
    assert prune_to_fit(store, fit(1), Job()).images == (A,)


@pytest.mark.parametrize("late", [False, True])
def test_nothing_goes_while_a_command_uses_more_images_than_it_can_name(store, monkeypatch, late):
    monkeypatch.setattr("msb_pull.store.uses._MOST", 1)
    real = apply.plan_to_fit
    with InUse(Store.open(store.home).uses, Job()) as command:

        def planned(*arguments, **more):
            found = real(*arguments, **more)
            for name in ("localhost/x:1", "localhost/y:1"):
                command.add(name)
            return found

        monkeypatch.setattr(apply, "plan_to_fit", planned)
        if not late:
            planned(store, fit(1))
        done = prune_to_fit(store, fit(1), Job())
        assert (done.images, images(store)) == ((), [A, B, C])


def test_an_image_that_is_used_from_the_last_moment_on_stays(store, monkeypatch):
    """It was chosen already; so another one has to go in its place."""
    before, real = total(store), apply.plan_to_fit
    with InUse(Store.open(store.home).uses, Job()) as command:

        def planned(*arguments, **more):
            found = real(*arguments, **more)
            command.add(A)
            return found

        monkeypatch.setattr(apply, "plan_to_fit", planned)
        done = prune_to_fit(store, fit(before - 1), Job())
    assert (done.images, layers(done), done.over) == ((B,), "y", 0)
    assert total(store) == done.left <= before - 1


def test_what_is_pulled_between_the_question_and_the_answer_counts(store):
    keep = total(store)
    assert plan_to_fit(store, fit(keep)).images == ()
    publish(store, "w", "x" * SIZE)
    pull(store, "localhost/new:1", "w")
    assert prune_to_fit(store, fit(keep), Job()).images == (A,)
    assert total(store) <= keep


def test_a_file_system_without_locks_loses_no_image_of_this_command(store):
    assert prune_after_pull(store, fit(1, spare=frozenset([A, B])), Job()).images == (C,)


# After a pull


def test_nothing_is_done_where_the_store_fits(store, monkeypatch):
    monkeypatch.setattr(Store, "lock_exclusive", lambda *arguments, **more: pytest.fail("no lock is needed"))
    assert prune_after_pull(store, fit(total(store)), Job()) is None


def test_nobody_is_waited_for(store):
    with Store.open(store.home).lock_shared(lambda holder: None, NEVER):
        assert prune_after_pull(store, fit(1), Job()) is None
        with pytest.raises(LocalError, match="in use"):
            prune_to_fit(store, fit(1), Job(), wait=False)
    assert images(store) == [A, B, C]
    assert prune_after_pull(store, fit(1), Job()).over == 0


def test_layers_are_measured_once(store, monkeypatch):
    prune_after_pull(store, fit(total(store)), Job())
    publish(store, "w", "x" * SIZE)
    walked = []
    real = plan.size_of
    monkeypatch.setattr("msb_pull.work.prune.usage.size_of", lambda path: walked.append(str(path)) or real(path))
    whole = measure(store, remembered(store))
    assert [x for x in walked if x.endswith(".extracted")] == [str(store.layer_dir(digest("w")))]
    assert whole == measure(store)
    assert whole.total == counted(store)


def test_d44_a_layer_that_is_another_one_now_is_measured_again(store):
    remember(store, measure(store))
    publish(store, "x", "x" * 3 * SIZE, replace=True)
    assert measure(store, remembered(store)).total == counted(store)


def test_a_directory_that_another_program_is_filling_is_not_remembered(store):
    folder = store.layer_dir(digest("f"))
    folder.mkdir()
    remember(store, measure(store))
    assert str(digest("f")) not in remembered(store)
    (folder / "more").write_bytes(b"x" * SIZE)
    assert measure(store, remembered(store)).total == counted(store)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": 1}',
        '{"a": [1, 2]}',
        '{"a": ["x", 2, 3]}',
        '{"a": [1, 2, 1e999]}',
        "[" * 100_000,
        "\x00",
        "1",
    ],
)
def test_d44_remembered_sizes_that_make_no_sense_are_none(store, text):
    (store.own / "sizes.json").write_text(text)
    assert remembered(store) == {}
    assert prune_after_pull(store, fit(total(store)), Job()) is None
    assert len(remembered(store)) == 4


def test_remembered_sizes_are_no_way_out_of_the_store(store, tmp_path):
    (tmp_path / "elsewhere").write_text(json.dumps({str(digest("x")): [1, 2, 3]}))
    (store.own / "sizes.json").symlink_to(tmp_path / "elsewhere")
    assert remembered(store) == {}
    os.unlink(store.own / "sizes.json")
    os.mkfifo(store.own / "sizes.json")
    assert remembered(store) == {}


# What is there


def test_the_report(store):
    pull(store, "localhost/again:1", "x")
    publish(store, "w", "x" * SIZE)
    (store.own / "partial" / "p").write_bytes(b"x" * 5000)
    usage = measure(store)
    report = report_disk(store, Budget(keep=5))
    assert (report.images.count, report.layers.count, report.records.count) == (4, 5, 5)
    assert report.images.size == report.layers.size - usage.layers[str(digest("w"))]
    assert (report.shared.count, report.shared.size) == (2, sum(usage.layers[str(digest(x))] for x in "xs"))
    assert (report.partial.count, report.partial.size) == (1, usage.partials[0].size)
    assert report.total == report.layers.size + report.records.size + report.partial.size == counted(store)
    assert report.reclaimable == usage.of(str(digest("w")))
    assert report.limit == 5


def test_the_report_of_a_store_whose_database_is_lost(store):
    for file in (*store.home.glob("oci.db*"), *store.own.glob("images/*.json")):
        file.unlink()
    report = report_disk(store, Budget())
    assert (report.images.count, report.layers.count, report.reclaimable) == (0, 4, None)
    assert "missing, with 4 layers left" in report.trouble.message
    assert report.limit is None
