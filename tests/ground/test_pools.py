"""A step of the pipeline in a thread of its own, and the pool that layers wait for."""

from __future__ import annotations

import threading
import time

import pytest

from msb_pull.ground.errors import Cancelled, LocalError, NoMoreTasks, no_more_tasks
from msb_pull.ground.pools import DEPTH, Admission, Handoff, LargestFirst, StoppingPool
from msb_pull.ground.running import SMALL, Cancel
from tests.support.counting import wait_for

pytestmark = pytest.mark.timeout(30)


def test_pieces_are_worked_off_in_order():
    seen: list[bytes] = []
    with Handoff(seen.append) as handoff:
        for number in range(500):
            handoff.put(b"%d" % number)
        handoff.finish()
    assert seen == [b"%d" % number for number in range(500)]


def test_no_more_than_a_few_pieces_wait():
    started, go_on = threading.Semaphore(0), threading.Event()

    def work(piece: bytes) -> None:
        started.release()
        assert go_on.wait(20)

    with Handoff(work) as handoff:
        given: list[int] = []

        def give() -> None:
            for number in range(3 * DEPTH):
                handoff.put(bytes(1))
                given.append(number)

        giving = threading.Thread(target=give)
        giving.start()
        assert started.acquire(timeout=20)
        giving.join(0.3)
        assert giving.is_alive()
        assert len(given) <= DEPTH + 1
        go_on.set()
        giving.join(20)
        handoff.finish()
    assert len(given) == 3 * DEPTH


def test_what_the_work_raises_reaches_the_giver():
    def work(piece: bytes) -> None:
        if piece == b"bad":
            raise ValueError("bad piece")

    with Handoff(work) as handoff:
        handoff.put(b"good")
        with pytest.raises(ValueError, match="bad piece"):
            for _ in range(2 * DEPTH):
                handoff.put(b"bad")
    with Handoff(work) as handoff, pytest.raises(ValueError, match="bad piece"):
        handoff.put(b"bad")
        handoff.finish()


def test_leaving_drops_what_waits():
    held, go_on, seen = threading.Event(), threading.Event(), []

    def work(piece: bytes) -> None:
        held.set()
        assert go_on.wait(20)
        seen.append(piece)

    def leave() -> None:
        with Handoff(work) as handoff:
            for number in range(DEPTH):
                handoff.put(b"%d" % number)
            assert held.wait(20)
            threading.Timer(0.1, go_on.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert seen == [b"0"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("handoff")]


class Busy:
    """A pool of one thread, which is kept busy until it may go on."""

    def __init__(self, pool: LargestFirst) -> None:
        self.done: list[str] = []
        self._go_on = threading.Event()
        begun = threading.Event()

        def work() -> None:
            begun.set()
            assert self._go_on.wait(20)

        pool.submit(0, work)
        assert begun.wait(20)

    def go_on(self) -> None:
        self._go_on.set()


def test_the_largest_of_all_that_waits_goes_first_whoever_gave_it():
    with LargestFirst(1) as pool:
        busy = Busy(pool)
        with StoppingPool(pool, Cancel()) as one, StoppingPool(pool, Cancel()) as other:
            for user, size in ((one, 3), (one, 1), (other, 2), (other, 5), (one, 3)):
                user.submit(size, lambda size=size: busy.done.append(size))
            busy.go_on()
    assert busy.done == [5, 3, 3, 2, 1]


class Counted:
    """Pieces of work that all wait until they may go on, and how many of each size are in work at the same time."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun: list[int] = []

    def piece(self, size: int):
        def work() -> None:
            self.begun.append(size)
            assert self.go_on.wait(20)

        return work

    def settle(self, count: int) -> list[int]:
        for _ in range(2000):
            if len(self.begun) >= count:
                break
            time.sleep(0.01)
        # Whatever should not begin has time to do so.
        time.sleep(0.1)
        return sorted(self.begun)


def test_small_pieces_take_places_that_large_ones_may_not_take():
    counted = Counted()
    with LargestFirst(5, large=2) as pool:
        for size in (SMALL, SMALL + 1, SMALL + 2, 1, 2, 3, 4):
            pool.submit(size, counted.piece(size))
        begun = counted.settle(5)
        counted.go_on.set()
    # Which ones depends on how many had been given when the first thread began.
    assert [size >= SMALL for size in begun] == [False, False, False, True, True]
    assert sorted(counted.begun) == [1, 2, 3, 4, SMALL, SMALL + 1, SMALL + 2]


def test_large_pieces_that_wait_are_taken_up_when_nothing_else_is_given():
    with LargestFirst(4, large=1) as pool:
        futures = [pool.submit(SMALL + number, lambda number=number: number) for number in range(50)]
        assert [future.result(20) for future in futures] == [*range(50)]


def test_an_error_drops_what_its_user_gave_and_nothing_else():
    with LargestFirst(1) as pool:
        busy, failed, fine = Busy(pool), Cancel(), Cancel()
        with StoppingPool(pool, fine) as other:
            other.submit(1, lambda: busy.done.append("other"))
            with pytest.raises(ValueError, match="bad"), StoppingPool(pool, failed) as one:
                one.submit(2, lambda: busy.done.append("one"))
                raise ValueError("bad")
            busy.go_on()
        assert failed.is_set()
        assert not fine.is_set()
    assert busy.done == ["other"]


def test_what_work_in_a_pool_raises_is_for_the_one_who_waits():
    def work() -> None:
        raise ValueError("bad")

    with LargestFirst(2) as pool:
        with pytest.raises(ValueError, match="bad"):
            pool.submit(1, work).result()
        assert pool.submit(1, lambda: "good").result() == "good"


def refuse(*arguments: object) -> None:
    raise RuntimeError("can't start new thread")


def test_the_threads_that_there_are_do_it_all(monkeypatch):
    with LargestFirst(3) as pool:
        busy = Busy(pool)
        monkeypatch.setattr("threading.Thread.start", refuse)
        futures = [pool.submit(size, lambda size=size: busy.done.append(size)) for size in (1, SMALL, 2)]
        busy.go_on()
        for future in futures:
            future.result(20)
    assert busy.done == [SMALL, 2, 1]


def test_without_any_thread_nothing_is_taken_on(monkeypatch):
    done: list[int] = []
    with LargestFirst(3) as pool:
        monkeypatch.setattr("threading.Thread.start", refuse)
        with pytest.raises(LocalError, match="no more threads"):
            pool.submit(1, lambda: done.append(1))
        monkeypatch.undo()
        pool.submit(2, lambda: done.append(2)).result(20)
    assert done == [2]


class Scarce:
    """A system that has room for few pieces of work at a time; each takes it when it begins, and gives it back."""

    def __init__(self, room: int) -> None:
        self._left = threading.Semaphore(room)
        self.refused = 0

    def work(self) -> bool:
        if not self._left.acquire(blocking=False):
            self.refused += 1
            raise no_more_tasks()
        try:
            time.sleep(0.01)
        finally:
            self._left.release()
        return True


@pytest.mark.parametrize("room", [1, 2, 5])
def test_work_that_the_system_has_no_room_for_waits_for_other_work(room):
    scarce, admission = Scarce(room), Admission()
    with LargestFirst(8) as pool:
        futures = [pool.submit(0, lambda: admission.run(scarce.work, Cancel())) for _ in range(40)]
        assert all(future.result(20) for future in futures)
    assert scarce.refused


def test_work_that_there_is_no_room_for_at_all_fails():
    scarce, admission = Scarce(0), Admission()
    with LargestFirst(4) as pool:
        futures = [pool.submit(0, lambda: admission.run(scarce.work, Cancel())) for _ in range(4)]
        for future in futures:
            with pytest.raises(NoMoreTasks):
                future.result(20)


def test_what_waits_for_room_hears_of_an_end():
    admission, cancel, held, go_on = Admission(), Cancel(), threading.Event(), threading.Event()

    def other() -> None:
        held.set()
        assert go_on.wait(20)

    def none() -> None:
        threading.Timer(0.1, cancel.set).start()
        raise no_more_tasks()

    with LargestFirst(1) as pool:
        pool.submit(0, lambda: admission.run(other, Cancel()))
        assert held.wait(20)
        with pytest.raises(Cancelled):
            admission.run(none, cancel)
        go_on.set()


def test_a_pool_that_is_to_do_less_begins_nothing_until_it_does():
    most, running, go_on, guard = [6], [], threading.Semaphore(0), threading.Lock()
    seen: list[int] = []

    def work() -> None:
        with guard:
            running.append(1)
            seen.append(len(running))
        assert go_on.acquire(timeout=20)
        with guard:
            running.pop()

    with LargestFirst(6, most=lambda: most[0]) as pool:
        futures = [pool.submit(1, work) for _ in range(20)]
        wait_for(lambda: len(seen) == 6)
        most[0] = 2
        for ended in range(1, 5):
            go_on.release()
            wait_for(lambda: sum(x.done() for x in futures) == ended)  # noqa: B023 - it is waited for here
        assert len(seen) == 6
        for _ in range(16):
            go_on.release()
        for future in futures:
            future.result(20)
    assert max(seen[6:]) == 2
