"""File systems of their own for tests, in loop files that root can mount; see ``--on`` in the tests' conftest."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.tools import lacking

# By name: the program that makes one, and its options.
KINDS = {
    "ext4": ("mkfs.ext4", "-q"),
    "xfs": ("mkfs.xfs", "-q"),
    "xfs-2038": ("mkfs.xfs", "-q", "-m", "bigtime=0"),  # times end in 2038, as on disks that were made before 2020
    "btrfs": ("mkfs.btrfs", "-q"),
    "vfat": ("mkfs.vfat",),
    "tmpfs": (),
}


def mount(kind: str, folder: Path, size: str, *options: str) -> str:
    """Mounts an empty one at ``folder``, which must exist; returns why not, or nothing.

    ``size`` is written as truncate(1) has it, ``options`` are more of them for the program that makes it. It lies in
    a file beside the folder.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "mounting needs root on Linux"
    if kind == "tmpfs":
        return _said("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    program, *usual = KINDS[kind]
    # Where an ordinary user's PATH ends.
    maker = shutil.which(program) or shutil.which(program, path="/sbin:/usr/sbin")
    if maker is None:
        return f"not installed: {program}"
    disk = str(_disk(folder))
    steps = (
        ("truncate", "-s", size, disk),
        (maker, *usual, *options, disk),
        ("mount", "-o", "loop", disk, str(folder)),
    )
    return next((why for step in steps if (why := _said(*step))), "")


def kind_of(folder: str) -> str:
    """The kind of the file system that an existing folder lies on, "" where the system does not tell."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            found[before.split()[4]] = after.split()[0]
    place = os.path.realpath(folder)
    while place not in found and place != "/":
        place = os.path.dirname(place)
    return found.get(place, "")


def unmount(folder: Path) -> None:
    """Takes it away, also if something in it is still open."""
    subprocess.run(["umount", "-l", str(folder)], check=True)
    _disk(folder).unlink(missing_ok=True)


@contextmanager
def mounted(place: Path, kind: str, size: str, *options: str) -> Iterator[Path]:
    """Such a file system in a new folder of ``place`` for a block; the test is skipped where none can be mounted."""
    folder = place / "mounted"
    folder.mkdir()
    if why := mount(kind, folder, size, *options):
        final = os.geteuid() or "unknown filesystem type" in why  # no package would bring it
        (pytest.skip if final else lacking)(f"cannot mount a {kind}: {why}")
    try:
        yield folder
    finally:
        unmount(folder)


def _disk(folder: Path) -> Path:
    return folder.with_name(folder.name + ".disk")


def _said(*command: str) -> str:
    """What a command complains of, nothing if it did its work."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
