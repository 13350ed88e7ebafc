"""Threads where a limit of memory leaves hardly any: they begin, or there is an error, but nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, program_environment

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space so")

# What is left beside the stack are so many KiB.
START = """
import resource, signal, sys
from msb_pull.ground.errors import LocalError
from msb_pull.ground.pools import Pool
from msb_pull.ground.running import start_thread
from msb_pull.layer.hashing import Hashing
import hashlib

def taken():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def begin():
    if sys.argv[1] == "thread":
        start_thread(print, "x").join()
    elif sys.argv[1] == "pool":
        with Pool(1, thread_name_prefix="x") as pool:
            pool.submit(print).result()
    else:
        with Hashing(hashlib.sha256(), beside=True) as hashing:
            hashing.update(b"x")

stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
stack = 8 << 20 if stack == resource.RLIM_INFINITY else stack
limit = taken() + stack + (int(sys.argv[2]) << 10)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
ending = "began"
signal.alarm(20)
try:
    begin()
except (LocalError, MemoryError):
    ending = "refused"
print(ending)
"""


@pytest.mark.parametrize("what", ["thread", "pool", "hashing"])
def test_a_thread_that_has_no_memory_to_begin_is_not_waited_for(what):
    endings = set()
    for left in (*range(0, 400, 20), 800, 1200, 4096):
        done = subprocess.run(
            [sys.executable, "-c", START, what, str(left)],
            env=program_environment(), capture_output=True, text=True, timeout=60, cwd=REPOSITORY,
        )  # fmt: skip
        assert done.returncode == 0, (left, done.stderr)
        endings.add(done.stdout.split()[-1])
    assert "began" in endings
