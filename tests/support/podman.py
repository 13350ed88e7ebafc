"""Views for podman: stores to make them of, what must hold at every moment, and podman itself with its own storage."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from msb_pull import PullOptions, pull_image
from msb_pull import Store as Program
from msb_pull.ground.events import Warned
from msb_pull.ground.running import Job
from msb_pull.image.reference import Reference
from msb_pull.store.store import Store
from msb_pull.work.podman.export import export_to_podman
from msb_pull.work.prune.apply import apply_prune
from msb_pull.work.prune.plan import plan_prune
from msb_pull.work.prune.remove import remove_images
from tests.support.archive import directory, reg
from tests.support.tools import lacking, need
from tests.support.unprivileged import NOBODY

A, B = "localhost/a:1", "localhost/b:1"
BASE = [directory(b"etc", mtime=1), reg(b"etc/base", b"base")]


def copied(old: Path, new: Path) -> Path:
    return shutil.copytree(old, new, symlinks=True)


def pull(home: Path, name: str, folder: Path, **options) -> None:
    pull_image(f"oci:{folder}", Program.open(home), PullOptions(name=name, **options))


def export(home: Path, *names: str, folder: Path | None = None, job: Job | None = None):
    return export_to_podman(Store.open(home), [Reference.parse(name) for name in names], folder, job or Job())


def remove(home: Path, *names: str, job: Job | None = None):
    return remove_images(Store.open(home), names, job or Job())


def prune(home: Path):
    store = Store.open(home)
    return apply_prune(store, plan_prune(store, None), Job())


def hearing() -> tuple[list[str], Job]:
    heard: list[str] = []
    return heard, Job(observer=lambda event: heard.append(event.text) if isinstance(event, Warned) else None)


def everything(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(base, name)
            key = str(path.relative_to(folder))
            if not name.endswith(".lock"):
                found[key] = os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


def shown(folder: Path) -> list[str]:
    """The names that podman would list. Fails where it would see an image without all that it needs."""
    images, layers = folder / "overlay-images" / "images.json", folder / "overlay-layers" / "layers.json"
    if not images.exists():
        return []
    known = {layer["id"]: layer for layer in json.loads(layers.read_bytes())}
    names = []
    for image in json.loads(images.read_bytes()):
        names += image["names"]
        for key in image["big-data-names"]:
            encoded = key if key == "manifest" else "=" + base64.b64encode(key.encode()).decode()
            data = (folder / "overlay-images" / image["id"] / encoded).read_bytes()
            assert image["big-data-digests"][key] == "sha256:" + hashlib.sha256(data).hexdigest()
            assert image["big-data-sizes"][key] == len(data)
        check_stack(folder, image.get("layer", ""), known)
    assert len(set(names)) == len(names)
    return sorted(names)


def check_stack(folder: Path, top: str, known: dict[str, dict]) -> None:
    """Fails unless the layers of an image lie below each other as podman wants them."""
    overlay, lowers = folder / "overlay", []
    stack = []
    while top:
        stack.append(top)
        top = known[top].get("parent", "")
    for place, layer in enumerate(stack):
        assert (overlay / layer / "diff").is_symlink()
        assert os.listdir(overlay / layer / "diff") is not None
        short = (overlay / layer / "link").read_text()
        assert len(short) == 26
        assert os.readlink(overlay / "l" / short) == f"../{layer}/diff"
        below = [f"l/{(overlay / one / 'link').read_text()}" for one in stack[place + 1 :]]
        lower = overlay / layer / "lower"
        assert (lower.read_text().split(":") if lower.exists() else []) == below
        lowers.append(below)


def layer_ids(folder: Path) -> list[dict]:
    """What podman is told of the layers, each below what stands on it."""
    return json.loads((folder / "overlay-layers" / "layers.json").read_bytes())


def split_of(folder: Path, layer: str) -> list[dict]:
    """The lines of tar-split for a layer."""
    packed = (folder / "overlay-layers" / f"{layer}.tar-split.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


def archive_of(folder: Path, layer: str) -> bytes:
    """The archive of a layer, put together as tar-split does (tar/asm: WriteOutputTarStream), but for the checksums."""
    stream, seen = bytearray(), set()
    root = os.fsencode(folder / "overlay" / layer / "diff")
    for line in split_of(folder, layer):
        if line["type"] == 2:
            stream += base64.b64decode(line["payload"])
            continue
        name = base64.b64decode(line["name_raw"]) if "name_raw" in line else line["name"].encode()
        clean = os.path.normpath(name)
        assert clean not in seen
        seen.add(clean)
        content = Path(os.fsdecode(os.path.join(root, name))).read_bytes()
        assert len(content) == line["size"] > 0
        stream += content
    return bytes(stream)


# crun knows cgroups of version 2 alone or none of them; whoever cannot raise a limit gets the lower ones below. With
# --pid and its friends nothing is left of what was started.
_APART = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
_UNSHARE = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
_CONTAINED = ["run", "--rm", "--network=none", "--cgroups=disabled", "--ulimit=nofile=1024:1024"]
_CONTAINED.append("--ulimit=nproc=1024:1024")
# For an ordinary user: a device that may be opened, and users of its own.
_ORDINARY = f"""
aside=$(mktemp -d); mount -t tmpfs -o mode=755 none "$aside"
mknod -m 666 "$aside/fuse" c 10 229; mount --bind "$aside/fuse" /dev/fuse
echo "$(id -un {NOBODY}):100000:65536" >"$aside/ids"
mount --bind "$aside/ids" /etc/subuid; mount --bind "$aside/ids" /etc/subgid
umount -l "$aside"; rmdir "$aside"
mount --make-rshared /; cd /
"""


class Podman:
    """podman as root, with a storage of its own in ``folder`` and ``view`` beside it."""

    def __init__(self, folder: Path, view: Path) -> None:
        need("podman", "fuse-overlayfs", "unshare")
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            pytest.skip("mounting needs root on Linux")
        if not os.access("/dev/fuse", os.W_OK):
            lacking("there is no /dev/fuse here")
        self.folder = folder
        # podman takes no long path for it.
        self._running = Path(tempfile.mkdtemp(prefix="podman-"))
        self._places = [f"--root={folder / 's'}", f"--runroot={self._running}", f"--tmpdir={folder / 't'}"]
        self._options = [
            *("--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--events-backend=none"),
            f"--storage-opt=overlay.mount_program={shutil.which('fuse-overlayfs')}",
        ]
        self._view = f"--storage-opt=overlay.additionalimagestore={view}"
        self._containers: list[str] = []

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._said(self._command(arguments), check=check)

    def contained(self, image: str, *command: str) -> str:
        """What a command prints in a container of an image."""
        script = f'set -e\n{_APART}\nexec "$@"'
        words = self._command((*_CONTAINED, image, *command))
        return self._said([*_UNSHARE, "sh", "-c", script, "sh", *words]).stdout

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return ["podman", *self._places, *self._options, self._view, *arguments]

    @staticmethod
    def _said(command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert not check or done.returncode == 0, done.stderr
        return done

    def said(self, *arguments: str) -> list[str]:
        return self.run(*arguments).stdout.splitlines()

    def images(self) -> list[str]:
        """The images that are read-only; nothing may be complained of."""
        done = self.run("images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}")
        assert done.stderr == ""
        return sorted(line.removesuffix(" true") for line in done.stdout.splitlines())

    def mount(self, image: str) -> Path:
        (container,) = self.said("create", image, "true")
        self._containers.append(container)
        (place,) = self.said("mount", container)
        return Path(place)

    def close(self) -> None:
        for container in self._containers:
            self.run("umount", container, check=False)
            self.run("rm", "-f", container, check=False)
        self._containers = []
        # podman keeps its storage's own folder mounted on itself.
        subprocess.run(["umount", "-l", self.folder / "s" / "overlay"], capture_output=True, check=False)

    def remove(self) -> None:
        self.close()
        shutil.rmtree(self._running)


class OrdinaryPodman(Podman):
    """podman as an ordinary user, to whom ``folder`` belongs; ``view`` and its store are given to it.

    Each command runs apart, so containers do not outlive it, and mounts cannot be seen.
    """

    def __init__(self, folder: Path, view: Path) -> None:
        need("newuidmap", "setpriv")
        super().__init__(folder, view)
        for base, folders, files in os.walk(folder):
            for name in (base, *folders, *files):
                os.lchown(os.path.join(base, name), NOBODY, NOBODY)
        os.chown(self._running, NOBODY, NOBODY)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "-i"]
        user += [f"PATH={os.environ['PATH']}", f"HOME={self.folder}", f"XDG_RUNTIME_DIR={self._running}"]
        script = f'set -e\n{_ORDINARY}\nexec "$@"'
        apart = [*_UNSHARE, "sh", "-c", script, "sh"]
        return [*apart, *user, *super()._command(arguments)]
