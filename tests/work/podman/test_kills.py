"""Exports and removals that are killed at any moment, or run at the same time.

``KILL_ROUNDS`` of more than 25 kills at every change of the disk, not at some.
"""

from __future__ import annotations

import os
import shutil
import threading

import pytest

from msb_pull import Store as Program
from tests.support.archive import reg
from tests.support.exports import layout
from tests.support.podman import BASE, A, B, copied, export, prune, pull, remove, shown

# The environment of a test is cleaned before it runs, so this is read here.
STRIDE = 1 if int(os.environ.get("KILL_ROUNDS", "25")) > 25 else 7
CALLS = ("rename", "replace", "symlink", "mkdir", "rmdir", "unlink", "write", "pwrite", "fsync")


def killed_at(step: int, work) -> bool:
    """Whether a process that does ``work`` was killed at its ``step``-th change of the disk."""
    child = os.fork()
    if child == 0:
        left = [step]

        def counting(call):
            def counted(*arguments, **named):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return call(*arguments, **named)

            return counted

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize("work", ["first", "second", "moved", "rm", "prune"])
def test_killed_at_any_moment(home, tmp_path, work):
    if work != "first":
        export(home, *((A,) if work == "second" else (A, B)))
    if work in ("moved", "prune"):
        pull(home, A, layout(tmp_path / "new", BASE, [reg(b"etc/own", b"newer")]), force=True)
    does = {"rm": lambda: remove(home, B), "prune": lambda: prune(home)}.get(work, lambda: export(home, A, B))
    whole = tmp_path / "whole"
    copied(home, whole)
    step, names = 0, set()
    while True:
        shutil.rmtree(home)
        copied(whole, home)
        killed = killed_at(step, does)
        # podman sees no half of anything.
        names.add(tuple(shown(home / "podman")))
        if not killed:
            break
        if work in ("rm", "prune"):
            prune(home)
            shown(home / "podman")
        left = [image.reference for image in Program.open(home).images()]
        export(home, *left)
        assert shown(home / "podman") == left
        assert not list((home / "podman").rglob("*draft*"))
        step += STRIDE
    assert step > 10
    assert len(names) == (1 if work == "moved" else 2)


def test_exports_at_the_same_time(home, tmp_path):
    names = [A, B]
    for number in range(4):
        names.append(f"localhost/more:{number}")
        pull(home, names[-1], layout(tmp_path / f"more-{number}", BASE, [reg(b"x", b"%d" % number)]))
    threads = [threading.Thread(target=export, args=(home, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown(home / "podman") == sorted(names)
