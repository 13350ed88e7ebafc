"""Buffers that were freed are used again, and not given back to the system and asked for anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.conftest import program_environment
from tests.support.sample import SAMPLE

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


USE = """
import sys
from msb_pull.work import memory, save
from msb_pull.work.pull import fetch

for module in (save, fetch):
    module.keep_freed = lambda: print("kept", file=sys.stderr)

image, home = sys.argv.pop(1), sys.argv[-1]
if len(sys.argv) == 2:
    import msb_pull
    result = msb_pull.pull_image(image, msb_pull.Store.open(home), msb_pull.PullOptions(name="sample:1"))
    assert result.changed
else:
    from msb_pull.__main__ import main
    main()
"""


def use(*words: object) -> str:
    run = subprocess.run(
        [sys.executable, "-c", USE, f"oci:{SAMPLE}:1", *map(str, words)],
        env=program_environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return run.stderr


def test_only_our_own_program_changes_how_memory_is_kept(tmp_path):
    """It holds for the whole process, and for good."""
    assert "kept" not in use(tmp_path / "api")
    assert "kept" in use("pull", f"oci:{SAMPLE}:1", "--as", "sample:1", "--home", tmp_path / "home")
    assert "kept" in use("save", "-o", tmp_path / "out.tar", "sample:1", "--home", tmp_path / "home")


def faults(word: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, timeout=60, check=True)
    return int(run.stdout)


def test_large_buffers_do_not_go_back_to_the_system():
    assert faults("keep") < faults("no") / 2
