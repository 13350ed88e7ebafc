"""Ctrl-C and SIGTERM: orderly where that is soon done, and else by force, whatever the main thread is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from msb_pull.cli import signals as cli_signals
from msb_pull.source.http import sockets
from tests.conftest import REPOSITORY, program_environment
from tests.support.terminal import Terminal, plain

# A pull that works in one of several ways, in the real program.
SCRIPT = """
import ctypes, sys, threading, time
from msb_pull.cli import app as cli, pull as cli_pull, signals as cli_signals

def obedient(run, images, access, **_):
    run.session.next_step = "a way on"
    print("READY", file=sys.stderr, flush=True)
    run.job.cancel.wait(1000)
    run.job.cancel.check()

def stuck_in_c(run, images, access, **_):
    run.session.next_step = "a way on"
    print("READY", file=sys.stderr, flush=True)
    ctypes.CDLL(None).poll(None, 0, 1000000)
    ctypes.CDLL(None).poll(None, 0, 1000000)

def stuck_thread(run, images, access, **_):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    obedient(run, images, access)

def deaf(run, images, access, **_):
    run.session.next_step = "a way on"
    print("READY", file=sys.stderr, flush=True)
    run.job.cancel.wait(1000)
    print("HEARD", file=sys.stderr, flush=True)
    time.sleep(1000)

cli_pull.pull_images = globals()[sys.argv.pop(1)]
cli_signals._GRACE = float(sys.argv.pop(1))
try:
    sys.exit(cli.main(sys.argv[1:]))
finally:
    print("ORDERLY", file=sys.stderr, flush=True)
"""

IGNORING = "import signal; signal.signal(2, signal.SIG_IGN)\n"


def start(behaviour, *words, grace=0.5):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, behaviour, str(grace), "pull", "x", *words],
        env=program_environment(PYTHONPATH=str(REPOSITORY)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupted(process, number, *, again=False):
    assert process.stderr.readline() == "READY\n"
    process.send_signal(number)
    if again:
        # Two that come before the first is heard are one.
        assert process.stderr.readline() == "HEARD\n"
        process.send_signal(number)
    return process.communicate(timeout=60)


@pytest.mark.parametrize("behaviour", ["obedient", "stuck_in_c", "stuck_thread", "deaf"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_hears_ends_in_order_and_what_does_not_by_force(behaviour, number, code):
    orderly = behaviour in ("obedient", "stuck_thread")  # the thread is waited for after that
    # Long where order is to come first, on a machine that has other things to do, too.
    process = start(behaviour, grace={"obedient": 1000, "stuck_thread": 5}.get(behaviour, 0.5))
    out, error = interrupted(process, number)
    assert (process.returncode, out) == (code, "")
    assert error.count("error: interrupted\n  hint: a way on\n") == error.count("error:") == 1
    assert "Traceback" not in error
    assert ("ORDERLY" in error) == orderly


def test_force_comes_within_a_second_and_whoever_waits_for_bytes_hears_before():
    assert sockets.SLICE < cli_signals._GRACE < 1


def test_the_second_signal_does_not_wait():
    process = start("deaf", grace=1000)
    interrupted(process, signal.SIGINT, again=True)
    assert process.returncode == 130


def test_interrupted_as_json():
    process = start("obedient", "--format", "json")
    out, _ = interrupted(process, signal.SIGTERM)
    assert '"code": 143' in out and '"kind": "cancelled"' in out


def test_an_ignored_signal_stays_ignored():
    """A job in the background of a script must survive Ctrl-C."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import signal; signal.signal(2, signal.SIG_IGN)\n{SCRIPT}",
            "deaf",
            "0.5",
            "pull",
            "x",
        ],
        env=program_environment(PYTHONPATH=str(REPOSITORY)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "READY\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_the_key_on_a_terminal():
    argv = [sys.executable, "-c", SCRIPT, "obedient", "0.5", "pull", "x"]
    with Terminal(argv, env=program_environment(PYTHONPATH=str(REPOSITORY))) as terminal:
        terminal.expect("READY")
        terminal.send("\x03")
        assert terminal.wait() == 130
        assert "error: interrupted" in plain(terminal.text)
