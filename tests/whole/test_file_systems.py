"""Stores on memory, on overlay file systems and where nothing can be written: they work, or end with 7 and a hint.

Each program that looks runs inside a mount namespace of its own. Root on Linux.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, REQUIRE_TOOLS, lacking, need, program, program_environment
from tests.support.archive import directory, reg
from tests.support.home import LINUX
from tests.support.imagebuild import simple_layout
from tests.support.mounts import KINDS, kind_of

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting needs root on Linux"
)

NAME = "localhost/sample:1"
PULL = ("pull", "-q", *LINUX, f"oci:{REPOSITORY / 'tests' / 'sample'}:1", "--as", NAME)


class Place:
    """A folder on which every run mounts something before it begins."""

    def __init__(self, folder: Path, mount: str = "true") -> None:
        self.folder, self.mount = folder, mount

    def run(self, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
        """Exit code and what was said of each command, all with the same mount."""
        need("unshare")
        found, script = [], [f"{self.mount} || exit 99"]
        for number, words in enumerate(commands):
            line = shlex.join([*program(), *words, "--home", str(self.folder / "home")])
            script.append(f"{line} > {self.folder.parent}/said{number} 2>&1; echo $?")
        run = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(script)],
            env=program_environment(), cwd="/", capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode != 99, run.stderr
        for number, code in enumerate(run.stdout.split()):
            found.append((int(code), (self.folder.parent / f"said{number}").read_text()))
        return found


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place")


def test_memory(place):
    place.mount = f"mount -t tmpfs none {place.folder}"
    work = (PULL, ("verify", "-q"), ("pull", "-f", *PULL[1:]), ("rm", NAME), ("prune", "-y"))
    assert [code for code, _ in place.run(*work)] == [0] * 5


def test_read_only(place):
    assert place.run(PULL)[0][0] == 0
    place.mount = f"mount --bind {place.folder} {place.folder} && mount -o remount,ro,bind {place.folder}"
    reading = (("ls",), ("inspect", NAME), ("verify",), ("pull", "-q", NAME), ("save", NAME, "-o", "/dev/null"))
    assert [code for code, _ in place.run(*reading)] == [0] * 5
    # What lies in the folder is complete here, and the same: nothing is to be written.
    assert place.run(PULL)[0][0] == 0
    for code, said in place.run(("rm", NAME), ("pull", "-f", *PULL[1:]), (*PULL[:-1], "localhost/b:1")):
        assert code == 7 and "Read-only file system" in said and len(said.splitlines()) <= 3, said
    assert place.run(("verify",))[0][0] == 0


def test_overlay(place, tmp_path):
    """A store that came with a container image: its folders cannot be moved, and are replaced in place."""
    assert place.run(PULL)[0][0] == 0
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    where = place.folder
    place.mount = f"mount -t overlay none -o lowerdir={where},upperdir={tmp_path}/upper,workdir={tmp_path}/work {where}"
    try:
        looked, forced, verified, other, both = place.run(
            ("verify",), ("pull", "-f", *PULL[1:]), ("verify",), (*PULL[:-1], "localhost/b:1"), ("verify",)
        )
    except AssertionError as error:
        pytest.skip(f"no overlay on this file system: {error}")
    assert looked[0] == verified[0] == other[0] == both[0] == 0, (looked, verified, other, both)
    assert forced[0] == 0, forced


@pytest.mark.parametrize("words", [("mkfs.btrfs", "-q"), ("mkfs.xfs", "-q"), ("mkfs.ext4", "-q")], ids=lambda x: x[0])
def test_what_was_made_after_a_directory_was_opened_is_found_in_it(place, tmp_path, words):
    """btrfs lists a directory as it was when it was opened (Linux 6.5)."""
    need(words[0])
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run([*words, str(disk)], check=True, capture_output=True, timeout=60)
    lower = directory(b"d") + directory(b"d/old") + reg(b"f", b"one")
    upper = reg(b".wh.d") + directory(b"d") + reg(b"d/new", b"n") + reg(b".wh.f") + reg(b"f", b"two")
    layout = simple_layout(tmp_path / "layout", [layer + bytes(1024) for layer in (lower, upper)])
    pull = ("pull", "-q", *LINUX, f"oci:{layout}:1", "--as", NAME)
    place.mount = f"mount -o loop {disk} {place.folder}"
    done = place.run(
        pull, ("inspect", "--layers", NAME), ("verify",), ("pull", "-f", *pull[1:]), ("verify",), ("rm", NAME)
    )
    assert [code for code, _ in done] == [0] * 6, done
    top = Path(done[1][1].splitlines()[-1]).relative_to(place.folder)
    place.mount = f"mount -o loop {disk} {place.folder}"
    script = f"{place.mount} && cd {place.folder} && ls -A home/layers/.msb-pull/staging; ls -d home/layers/*.extracted"
    left = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert left.stdout == "", left
    done = place.run(pull, ("verify",))
    assert [code for code, _ in done] == [0, 0], done
    script = f"{place.mount} && cd {place.folder}/{top} && find . | sort"
    shown = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert shown.stdout.split() == [".", "./d", "./d/.wh..wh..opq", "./d/new", "./f"]


# All other tests run on the one where temporary folders lie.
HERE = kind_of(tempfile.gettempdir())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("vfat", "ext4" if HERE == "ext4" else "")])
def test_what_depends_on_the_file_system_holds_on_each(kind):
    """The tests of layers and of the store that are marked as ``disk``, with all their folders on this kind."""
    if KINDS[kind]:
        need(KINDS[kind][0])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--on", kind, "-m", "disk",
         "tests/layer", "tests/store"],
        env=program_environment(REQUIRE_TOOLS=str(int(REQUIRE_TOOLS))), cwd=REPOSITORY,
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    if run.returncode == pytest.ExitCode.USAGE_ERROR:
        lacking(run.stderr.strip())
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    assert " passed" in run.stdout
