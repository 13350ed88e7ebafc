"""One way to end work, and one to be told of its progress."""

from __future__ import annotations

import resource
import threading

import pytest

from msb_pull.ground.errors import Cancelled, GivenUp
from msb_pull.ground.events import Warned
from msb_pull.ground.running import Cancel, Job, Throttle


def test_a_cancel_is_heard_by_all_that_were_made_from_it():
    above = Cancel()
    event = threading.Event()
    below = Cancel(above, event)
    below.check()
    event.set()
    assert (above.is_set(), below.is_set()) == (False, True)
    above.set()
    with pytest.raises(Cancelled):
        below.check()


def test_what_is_set_below_is_not_heard_above():
    above = Cancel()
    below = Cancel(above)
    below.set()
    assert (above.is_set(), below.is_set()) == (False, True)


def test_who_stops_for_another_part_of_the_work_says_so():
    """Nobody has asked for that end, and who cleans up may take all the time it needs."""
    asked = threading.Event()
    above = Cancel(Cancel(asked))
    below = Cancel(above)
    for failed in (above, below):
        failed.set()
        with pytest.raises(GivenUp):
            below.check()
    asked.set()
    with pytest.raises(Cancelled) as caught:
        below.check()
    assert type(caught.value) is Cancelled


@pytest.mark.parametrize("made", [lambda event: Cancel(event), lambda event: Cancel(Cancel(event))])
def test_a_wait_ends_with_the_flag_of_others(made):
    event = threading.Event()
    cancel = made(event)
    assert cancel.wait(0.0) is False
    waiting = threading.Timer(0.05, event.set)
    waiting.start()
    assert cancel.wait(30.0) is True
    waiting.join()


def test_a_wait_without_others_ends_at_once():
    cancel = Cancel()
    assert cancel.wait(0.0) is False
    cancel.set()
    assert cancel.wait(30.0) is True


@pytest.mark.parametrize(("open_files", "layers"), [(256, 8), (1023, 8), (1024, 16), (resource.RLIM_INFINITY, 16)])
def test_fewer_layers_at_once_where_few_files_may_be_open(monkeypatch, open_files, layers):
    monkeypatch.setattr(resource, "getrlimit", lambda which: {resource.RLIMIT_NOFILE: (open_files, open_files)}[which])
    assert Job().at_once == layers
    assert Job(jobs=20).at_once == 20


def test_fewer_layers_at_once_where_a_server_was_asked_too_much():
    for jobs, layers in ((None, 8), (20, 20)):
        job = Job(jobs=jobs)
        job.eased.set()
        assert job.at_once == layers


def test_a_job_tells_its_observer():
    seen = []
    Job(seen.append).warn("a/b:c", "mind the gap")
    assert seen == [Warned("a/b:c", "mind the gap")]


def test_the_last_report_always_passes():
    throttle = Throttle()
    passed = [throttle.passes() for _ in range(1000)]
    assert passed[0]
    assert sum(passed) < len(passed)
    assert throttle.passes(last=True)
