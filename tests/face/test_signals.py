"""Ctrl-C and SIGTERM: a second at most, whatever the main thread is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY, program_environment
from tests.face.terminal import Terminal, plain

# A pull that works in one of several ways, in the real program.
SCRIPT = """
import ctypes, sys, threading, time
from msb_pull import cli, cli_pull
from msb_pull.errors import Cancelled

def obedient(run, images, access, **_):
    print("READY", file=sys.stderr, flush=True)
    run.cancel.wait(20)
    run.stop_if_cancelled()

def stuck_in_c(run, images, access, **_):
    print("READY", file=sys.stderr, flush=True)
    ctypes.CDLL(None).poll(None, 0, 20000)
    ctypes.CDLL(None).poll(None, 0, 20000)

def stuck_thread(run, images, access, **_):
    threading.Thread(target=time.sleep, args=(20,)).start()
    obedient(run, images, access)

def deaf(run, images, access, **_):
    print("READY", file=sys.stderr, flush=True)
    time.sleep(20)

cli_pull.pull_images = globals()[sys.argv.pop(1)]
sys.exit(cli.main(sys.argv[1:]))
"""


def start(behaviour, *words):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, behaviour, "pull", "x", *words],
        env=program_environment(PYTHONPATH=str(REPOSITORY)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupted(process, number, again_after=None):
    assert process.stderr.readline() == "READY\n"
    started = time.monotonic()
    process.send_signal(number)
    if again_after is not None:
        time.sleep(again_after)
        process.send_signal(number)
    out, error = process.communicate(timeout=15)
    return out, error, time.monotonic() - started


@pytest.mark.parametrize("behaviour", ["obedient", "stuck_in_c", "stuck_thread", "deaf"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_b46_within_a_second(behaviour, number, code):
    process = start(behaviour)
    out, error, took = interrupted(process, number)
    assert (process.returncode, out) == (code, "")
    assert error.count("error: interrupted") == 1
    assert "Traceback" not in error
    assert took < (0.5 if behaviour == "obedient" else 1.4)


def test_the_second_signal_ends_at_once():
    process = start("deaf")
    _, _, took = interrupted(process, signal.SIGINT, again_after=0.2)
    assert process.returncode == 130
    assert took < 0.6


def test_interrupted_as_json():
    process = start("obedient", "--format", "json")
    out, _, _ = interrupted(process, signal.SIGTERM)
    assert '"code": 143' in out and '"kind": "cancelled"' in out


def test_an_ignored_signal_stays_ignored():
    """A job in the background of a script must survive Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(2, signal.SIG_IGN)\n{SCRIPT}", "deaf", "pull", "x"],
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
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_the_key_on_a_terminal():
    argv = [sys.executable, "-c", SCRIPT, "obedient", "pull", "x"]
    with Terminal(argv, env=program_environment(PYTHONPATH=str(REPOSITORY))) as terminal:
        terminal.expect("READY")
        terminal.send("\x03")
        assert terminal.wait(5) == 130
        assert "error: interrupted" in plain(terminal.text)
