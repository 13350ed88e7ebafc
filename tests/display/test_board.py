"""What the live rows say, without a terminal."""

from __future__ import annotations

import pytest

from msb_pull.display.board import Board
from msb_pull.ground import events as e
from tests.support.events import IMAGE, digest, name, planned, progress


def board(jobs=4, unicode=True, color=True):
    return Board(jobs=jobs, unicode=unicode, color=color)


def text(row):
    return "".join(piece for piece, _ in row)


def texts(rows):
    return [text(row) for row in rows]


def test_the_picture_of_the_documentation():
    it = board()
    it.take(planned(100, 1_200_000, 28_300_000, present={0}), 0.0)
    assert texts(it.finished()) == [
        f"Pulling {IMAGE} (linux/amd64, 3 layers, 29.5 MB)",
        f"✓ {name(0)}  already here",
    ]
    for second in range(4):
        it.take(progress(2, 7_000_000 * second + 400_000, 28_300_000), float(second))
    it.take(progress(1, 1_200_000, 1_200_000, e.Phase.UNPACKING), 3.0)
    it.take(e.LayerDone(IMAGE, digest(1), 1_200_000, 1_200_000, present=False), 3.0)
    assert texts(it.finished()) == [f"✓ {name(1)}    1.2 MB"]
    assert texts(it.rows(80, 24, 3.0)) == [
        f"  {name(2)}  ━━━━━━━━━━━━━━━━━━╸━━━━━━   21.4/28.3 MB     7.0 MB/s  0:00:01",
        "  total         ━━━━━━━━━━━━━━━━━━━━━━━━━   22.6/29.5 MB     7.4 MB/s  0:00:01",
    ]


def test_finished_lines_are_given_once():
    it = board()
    it.take(planned(5, 5), 0.0)
    assert len(it.finished()) == 1
    assert it.finished() == []


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_rows_fit_every_width(width, unicode):
    it = board(unicode=unicode)
    it.take(planned(*[123_456_789] * 6), 0.0)
    for number in range(4):
        it.take(progress(number, 50_000_000 * number, 123_456_789), 1.0 + number)
    it.take(e.LayerWaiting(IMAGE, digest(4), "msb-pull (process 4711) that makes the same layer"), 3.0)
    rows = it.rows(width, 24, 5.0)
    assert len(rows) == 5
    # Two columns stay free.
    assert max(map(len, texts(rows))) <= width - 2
    assert unicode or all(row.isascii() for row in texts(rows))


def test_forty_columns_keep_the_bar_and_the_sizes():
    it = board()
    it.take(planned(28_300_000), 0.0)
    it.take(progress(0, 21_400_000, 28_300_000), 1.0)
    assert texts(it.rows(40, 24, 2.0)) == [f"  {name(0)}  ━━━━━━━   21.4/28.3 MB"]


def test_never_more_rows_than_jobs_and_one():
    it = board(jobs=3)
    it.take(planned(*[1000] * 20), 0.0)
    for number in range(12):  # fetched, but waiting for the layers below
        it.take(progress(number, 1000, 1000, e.Phase.UNPACKING), 1.0)
    for number in (15, 16):
        it.take(progress(number, 10, 1000), 1.0)
    rows = texts(it.rows(80, 24, 2.0))
    assert len(rows) == 4
    assert [row[2:14] for row in rows] == [name(0), name(15), name(16), "total       "]


@pytest.mark.parametrize(("height", "count"), [(24, 9), (6, 5), (3, 2), (2, 1), (1, 1)])
def test_never_more_rows_than_the_terminal(height, count):
    it = board(jobs=8)
    it.take(planned(*[1000] * 20), 0.0)
    for number in range(8):
        it.take(progress(number, 10, 1000), 1.0)
    assert len(it.rows(80, height, 2.0)) == count


def test_a_full_bar_says_what_still_happens():
    it = board()
    it.take(planned(1000), 0.0)
    it.take(progress(0, 1000, 1000, e.Phase.UNPACKING), 1.0)
    assert texts(it.rows(80, 24, 2.0))[0].endswith("1.0/1.0 kB  unpacking")
    it.take(progress(0, 1000, 1000, e.Phase.VERIFYING), 1.0)
    assert texts(it.rows(80, 24, 2.0))[0].endswith("1.0/1.0 kB  verifying")


def test_a_layer_that_is_ready_before_those_below_says_so():
    it = board()
    it.take(planned(1000, 1000, 1000), 0.0)
    it.take(progress(0, 10, 1000), 1.0)
    it.take(progress(1, 1000, 1000, e.Phase.UNPACKING), 1.0)
    assert texts(it.rows(80, 24, 2.0))[1].endswith("1.0/1.0 kB  waiting its turn")
    it.take(e.LayerDone(IMAGE, digest(0), 1000, 1000, present=False), 2.0)
    assert texts(it.rows(80, 24, 2.0))[0].endswith("1.0/1.0 kB  unpacking")


def test_all_bars_are_of_one_length():
    it = board()
    it.take(planned(692, 175_100_000, 60_500_000), 0.0)
    for number, size in enumerate((692, 175_100_000, 60_500_000)):
        it.take(progress(number, size // 3, size), 1.0)
    assert len({row.rindex("━") for row in texts(it.rows(90, 24, 2.0))}) == 1


def test_waiting_for_another_pull():
    it = board()
    it.take(planned(1000), 0.0)
    it.take(e.LayerWaiting(IMAGE, digest(0), "process 4711\x1b[2J"), 1.0)
    assert texts(it.rows(80, 24, 2.0)) == [f"  {name(0)}  waiting for process 4711\\x1b[2J"]
    it.take(e.LayerDone(IMAGE, digest(0), 1000, 0, present=True), 2.0)
    assert it.rows(80, 24, 2.0) == []
    assert texts(it.finished())[-1] == f"✓ {name(0)}  already here"


def test_an_image_that_another_program_works_on():
    it = board()
    it.take(planned(5), 0.0)
    it.take(e.LayerDone(IMAGE, digest(0), 5, 5, present=False), 0.0)
    it.take(e.ImageDone(IMAGE, IMAGE, 5, 5, 0.0, 1, 0), 0.0)
    it.take(e.Delivering(IMAGE, "microsandbox"), 0.0)
    assert texts(it.rows(80, 24, 0.0)) == [f"Loading {IMAGE} into microsandbox"]


def test_what_is_being_removed():
    it = board()
    it.take(e.Removing("", f"{digest(0)}+0123abcd", 2, 7), 0.0)
    assert texts(it.rows(80, 24, 0.0)) == [f"Removing layer {name(0)}+0123abcd (2 of 7)"]
    it.settle()
    assert it.rows(80, 24, 0.0) == []


def test_resolving_is_shown_until_the_plan_is_known():
    it = board()
    it.take(e.Resolving(IMAGE), 0.0)
    assert texts(it.rows(80, 24, 0.0)) == [f"Resolving {IMAGE}"]
    it.take(planned(10, present={0}), 0.0)
    assert it.rows(80, 24, 0.0) == []
    assert it.finished() == []


def test_between_plan_and_first_byte_something_is_said():
    it = board()
    it.take(planned(5, 5, present={0}), 0.0)
    assert texts(it.rows(80, 24, 0.0)) == ["Preparing"]
    it.take(e.LayerDone(IMAGE, digest(1), 5, 0, present=True), 1.0)
    assert it.rows(80, 24, 1.0) == []


def test_where_nothing_moves_the_rate_falls_to_nothing():
    it = board()
    it.take(planned(1_000_000), 0.0)
    for second in range(5):
        it.take(progress(0, 100_000 * second, 1_000_000), float(second))
    assert text(it.rows(80, 24, 4.0)[0]).endswith("  100.0 kB/s  0:00:06")
    assert text(it.rows(80, 24, 6.5)[0]).endswith("   28.6 kB/s  0:00:21")
    assert text(it.rows(80, 24, 7.5)[0]).endswith("       0 B/s  -:--:--")
    it.take(progress(0, 500_000, 1_000_000), 14.0)
    assert text(it.rows(80, 24, 14.0)[0]).endswith("   10.0 kB/s  0:00:50")


def test_a_restarted_download_may_go_back():
    it = board()
    it.take(planned(1000, 1000), 0.0)
    it.take(progress(0, 900, 1000), 1.0)
    it.take(progress(0, 100, 1000), 2.0)
    it.take(progress(0, 200, 1000), 3.0)
    assert "0.2/1.0 kB      100 B/s" in texts(it.rows(80, 24, 3.0))[0]


def test_without_colour_what_is_missing_is_blank():
    it = board(color=False)
    it.take(planned(1000), 0.0)
    it.take(progress(0, 500, 1000), 1.0)
    assert f"  {'━' * 12}╸{' ' * 12}  " in texts(it.rows(80, 24, 2.0))[0]


def test_empty_layers_do_not_divide_by_zero():
    it = board()
    it.take(planned(0), 0.0)
    it.take(progress(0, 0, 0), 1.0)
    assert "0/0 B" in texts(it.rows(80, 24, 2.0))[0]
    assert texts(it.rows(24, 24, 2.0)) == [f"  {name(0)}  100%"]


def test_verification_counts_entries_too():
    it = board()
    it.take(e.CheckProgress(IMAGE, digest(0), 500, 2000, "entries"), 1.0)
    assert "500/2000 entries" in texts(it.rows(80, 24, 2.0))[0]


FIRST, SECOND = "docker.io/library/one:1", "docker.io/library/two:1"


def of(image, event):
    return event._replace(image=image)


def test_several_images_are_shown_one_below_the_other():
    it = Board(jobs=4, unicode=True, color=True, several=True)
    it.take(of(FIRST, planned(100, 1_200_000, 28_300_000, present={0})), 0.0)
    it.take(of(SECOND, planned(100, 1_200_000, 28_300_000, 6_000_000, present={0})), 0.0)
    assert it.finished() == []
    for second in range(4):
        it.take(of(FIRST, progress(2, 7_000_000 * second + 400_000, 28_300_000)), float(second))
        it.take(of(SECOND, progress(3, 1_000_000 * second, 6_000_000)), float(second))
    it.take(of(FIRST, progress(1, 1_200_000, 1_200_000, e.Phase.UNPACKING)), 3.0)
    assert texts(it.rows(80, 24, 3.0)) == [
        FIRST,
        f"  {name(1)}  ━━━━━━━━━━━━━━━━━━━━━━━━━     1.2/1.2 MB  unpacking",
        f"  {name(2)}  ━━━━━━━━━━━━━━━━━━╸━━━━━━   21.4/28.3 MB     7.0 MB/s  0:00:01",
        SECOND,
        f"  {name(3)}  ━━━━━━━━━━━━╸━━━━━━━━━━━━     3.0/6.0 MB     1.0 MB/s  0:00:03",
        # A layer that both have counts once.
        "  total         ━━━━━━━━━━━━━━━━━━━━━━━━━   25.6/35.5 MB     8.4 MB/s  0:00:01",
    ]
    for number, size in ((1, 1_200_000), (2, 28_300_000)):
        it.take(e.LayerDone(FIRST, digest(number), size, size, present=False), 3.0)
    assert it.finished() == []
    it.take(e.ImageDone(FIRST, "pinned", 29_500_100, 29_500_000, 3.0, 3, 1), 3.0)
    it.settle()
    assert texts(it.finished()) == [
        f"Pulling {FIRST} (linux/amd64, 3 layers, 29.5 MB)",
        f"✓ {name(0)}  already here",
        f"✓ {name(1)}    1.2 MB",
        f"✓ {name(2)}   28.3 MB",
    ]
    assert texts(it.rows(80, 24, 3.0))[0] == SECOND
    it.take(e.ImageFailed(SECOND), 3.0)
    assert it.rows(80, 24, 3.0) == []
    assert texts(it.finished())[0].startswith(f"Pulling {SECOND}")


@pytest.mark.parametrize("height", [24, 8, 6, 4, 3, 2, 1])
def test_several_images_fit_a_small_terminal(height):
    it = Board(jobs=8, unicode=True, color=True, several=True)
    for image in (FIRST, SECOND):
        it.take(of(image, planned(*[1000] * 20)), 0.0)
        for number in range(4):
            it.take(of(image, progress(number, 10, 1000)), 1.0)
    rows = texts(it.rows(80, height, 2.0))
    assert len(rows) <= height
    assert (rows[0] == FIRST) == (height > 3)
