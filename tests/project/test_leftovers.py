"""A test that fails leaves nothing for which others fail, too; see ``support/leftovers.py``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, program_environment

TESTS = """
import gc, os, signal, subprocess, warnings
import pytest
from tests.support.processes import children

def begin():
    return subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

@pytest.fixture(scope="module", autouse=True)
def server():
    process = begin()
    yield process
    assert process.poll() is None
    process.kill()
    process.communicate()

def fails():
    process = begin()
    process.send_signal(signal.SIGSTOP)
    # Nobody but the collector finds it.
    kept = [open(__file__)]
    kept.append(kept)
    raise AssertionError("meant")

def test_that_fails():
    fails()

@pytest.fixture
def broken():
    fails()

def test_that_fails_before_it_begins(broken):
    pass

def test_that_comes_after_them(server):
    gc.collect()
    assert children(os.getpid()) == [server.pid]
    assert __file__ not in [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]

def test_that_leaves_a_process_though_it_does_not_fail():
    begin()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_each_failure_is_one(tmp_path):
    tests = tmp_path / "tests"
    shutil.copytree(REPOSITORY / "tests" / "support", tests / "support")
    for name in ("conftest.py", "__init__.py"):
        shutil.copy(REPOSITORY / "tests" / name, tests)
    (tests / "test_x.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--basetemp", "temporary", "."],
        env=program_environment(PYTHONPATH=""), cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].startswith("1 failed, 2 passed, 2 errors in "), done.stdout + done.stderr
    assert re.findall("^(?:FAILED|ERROR) [^:]*::(.*?) - ", done.stdout, re.M) == [
        "test_that_fails",
        "test_that_fails_before_it_begins",
        "test_that_leaves_a_process_though_it_does_not_fail",
    ]
