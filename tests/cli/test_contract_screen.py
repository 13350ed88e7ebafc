"""What a person has on the screen while the real program pulls, and when it has ended, in whatever way."""

from __future__ import annotations

import fcntl
import re
import threading

import pytest

from tests.support.contract import IMAGE, PINNED, PULLING
from tests.support.fault_registry import Fault
from tests.support.screen import Screen, ended

SUMMARY = f"✓ Pulled {IMAGE}: 2.0 kB in Ns"
DONE = ["✓ base    1.6 kB", "✓ top     372 B"]


def screen(place, *words, columns=200, **env):
    """As wide as the pinned line, which a terminal would fold else."""
    argv = place.argv("--jobs", "2", *words)
    given = {"MICROSANDBOX_HOME": str(place.home), "MSB_PULL_CONFIG": str(place.config)}
    return Screen(columns, 24, argv=argv, **{"MSB_PULL_PLATFORM": "linux/amd64", **given, **env})


def last(place, window) -> list[str]:
    """The rows when all is over."""
    return place.alike("\n".join(window.wait(ended))).splitlines()


def started(rows) -> bool:
    """Whether a layer's row is there; one that has all its bytes says for what it waits."""
    return any("waiting its turn" in row for row in rows)


@pytest.mark.parametrize(
    ("env", "rows"),
    [
        ({}, [PULLING.strip(), *DONE, SUMMARY]),
        ({"NO_COLOR": "1"}, [PULLING.strip(), *DONE, SUMMARY]),
        ({"LC_ALL": "C"}, [PULLING.strip(), *DONE, SUMMARY]),
        ({"TERM": "dumb"}, None),
        ({"CI": "true"}, None),
    ],
)
def test_when_all_is_well(place, env, rows):
    """Bars leave nothing behind but a line for each layer; where they cannot be, each change is a line."""
    lines = [f"resolving {IMAGE}", PULLING.strip(), "layer base done 1.6 kB", "layer top done 372 B", SUMMARY]
    expected = [*(rows or lines), PINNED.strip(), "END 0"]
    if env.get("LC_ALL") == "C":
        expected = [row.replace("✓", "*") for row in expected]
    with screen(place, IMAGE, **env) as window:
        assert last(place, window) == expected


def test_several_images(place):
    """What is finished stands together, image by image; the lines of the result keep the order of the arguments."""
    added = place.add_later()
    later, short = "HOST/acme/later:1", added.layer_digests[1][7:19]
    with screen(place, later, IMAGE) as window:
        assert last(place, window) == [
            PULLING.strip(),
            *DONE,
            SUMMARY,
            f"Pulling {later} (linux/amd64, 2 layers, 1.7 kB)",
            "✓ base  already here",
            f"✓ {short}     106 B",
            f"✓ Pulled {later}: 106 B in Ns, 1 of 2 layers already here",
            f"{later}@{added.manifest_digest}",
            PINNED.strip(),
            "END 0",
        ]


def test_one_of_several_that_fails_says_so_at_once(place):
    """Its error comes at the end all the same, where it cannot scroll away."""
    place.registry.always("/blobs/" + place.added.layer_digests[0], Fault(stall_after=100))
    with screen(place, "HOST/acme/none:1", IMAGE) as window:
        rows = window.wait(lambda rows: started(rows) and any("not found" in row for row in rows))
        assert place.alike("\n".join(rows)).splitlines()[0] == "✗ HOST/acme/none:1: not found"
        window.press("C-c")
        assert "error: HOST/acme/none:1: not found" in last(place, window)


def test_ctrl_c(place):
    """The terminal writes ^C where the cursor is, on the first row; nothing is left of either."""
    place.registry.always("/blobs/" + place.added.layer_digests[0], Fault(stall_after=100))
    with screen(place, IMAGE, columns=80) as window:
        rows = window.wait(started)
        assert [row.split()[0] for row in place.alike("\n".join(rows)).splitlines()][-2:] == ["top", "total"]
        assert all(len(row) <= 78 for row in rows[1:])
        window.press("C-c")
        hint = "  hint: what was downloaded is kept; run the same command again to continue"
        assert last(place, window) == [PULLING.strip(), "error: interrupted", hint, "END 130"]


def test_a_failure_in_the_middle(place):
    """What was drawn is gone before the error comes."""
    drawn = threading.Event()
    place.registry.always("/blobs/" + place.added.layer_digests[0], Fault(before=lambda: drawn.wait(60), flip=40))
    with screen(place, IMAGE) as window:
        window.wait(started)
        drawn.set()
        rows = last(place, window)
    rows[3] = re.sub("sha256:[0-9a-f]{64}", "OTHER", rows[3])
    assert rows == [
        PULLING.strip(),
        "warning: blob base does not match its digest; fetching it again from the start",
        f"error: {IMAGE}: blob base does not match its digest",
        "  cause: expected BASE, received OTHER",
        "  hint: the registry or a proxy changed the content; try again or use another mirror",
        "END 6",
    ]


def test_waiting_for_another_pull(place):
    assert place.run("-q", "-n", IMAGE).code == 0
    locks = place.layers / ".msb-pull" / "locks"
    locks.mkdir(parents=True)
    with open(locks / f"{place.added.layer_digests[0]}.lock", "w+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with screen(place, IMAGE) as window:
            rows = window.wait(lambda rows: any("waiting for " in row for row in rows))
            assert "\n  base  waiting for " in place.alike("\n".join(rows))
            fcntl.flock(held, fcntl.LOCK_UN)
            assert last(place, window) == [PULLING.strip(), *DONE, SUMMARY, PINNED.strip(), "END 0"]
