"""From a store, or an archive, to a mounted container of podman: a view of links against `podman load`.

    python tests/bench/podman.py HOME IMAGE [ROUNDS]       as root; HOME has the image

Both begin with nothing in podman, and are measured in turn: seconds of the wall and of processor time, medians. On a
machine that others use the second is what counts.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from msb_pull import Store


class Podman:
    """podman with an empty storage, and a view beside it where one is named."""

    def __init__(self, folder: Path, view: Path | None = None) -> None:
        self._folder = folder
        self._command = [
            *("podman", f"--root={folder}/s", f"--runroot={folder}/r", f"--tmpdir={folder}/t"),
            *("--cgroup-manager=cgroupfs", "--events-backend=none", "--storage-driver=overlay"),
            f"--storage-opt=overlay.mount_program={shutil.which('fuse-overlayfs')}",
            *([f"--storage-opt=overlay.additionalimagestore={view}"] if view else []),
        ]

    def run(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def mount(self, image: str) -> None:
        container = self.run("create", image, "true")
        place = Path(self.run("mount", container), "etc")
        assert place.is_dir()
        self.run("umount", container)

    def close(self) -> None:
        subprocess.run(["umount", "-l", f"{self._folder}/s/overlay"], capture_output=True, check=False)


def by_view(home: Path, image: str, folder: Path) -> None:
    view = folder / "view"
    program = [sys.executable, "-m", "msb_pull", "export", "-q", "--home", str(home), image, "--to", f"podman:{view}"]
    subprocess.run(program, check=True)
    podman = Podman(folder, view)
    podman.mount(image)
    podman.close()


def by_load(archive: Path, image: str, folder: Path) -> None:
    podman = Podman(folder)
    podman.run("load", "-q", "-i", str(archive))
    podman.mount(image)
    podman.close()


def timed(work: Callable[[Path], None]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="pm-") as name:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        work(Path(name))
        wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(home: str, image: str, rounds: str = "5") -> None:
    Store.open(home, create=False).layers(image)
    with tempfile.TemporaryDirectory(prefix="pm-") as place:
        archive = Path(place, "image.tar")
        save = [sys.executable, "-m", "msb_pull", "save", "-q", "--home", home, image, "-o", str(archive)]
        subprocess.run(save, check=True)
        ways: dict[str, Callable[[Path], None]] = {
            "export --to podman": lambda folder: by_view(Path(home), image, folder),
            "podman load": lambda folder: by_load(archive, image, folder),
        }
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(int(rounds)):
            for name, work in ways.items():
                figures[name].append(timed(work))
    for name, found in figures.items():
        wall, processor = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:20} {wall:6.2f} s, of the processor {processor:6.2f} s (medians of {len(found)})")


if __name__ == "__main__":
    main(*sys.argv[1:])
