"""Buffers that were freed are used again, and not given back to the system and asked for anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc knows how")

# Pages that the system had to find for a thread that makes and frees one large buffer after the other.
FAULTS = """
import resource, sys, threading
from msb_pull.work.memory import keep_freed

def work():
    for size in (1 << 20, 3 << 19) * 100:
        bytes(bytearray(size))

if sys.argv[1] == "keep":
    keep_freed()
    keep_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, timeout=60, check=True)
    return int(run.stdout)


def test_large_buffers_do_not_go_back_to_the_system():
    assert faults("keep") < faults("no") / 2
