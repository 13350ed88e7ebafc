"""The program as a process in a place of its own, and what it said with everything made equal that differs by nature.

A place has a registry with the sample image, a home and a configuration file. In what was said stand ``HOST`` for the
registry, ``~`` for the folder, ``IMAGE``, ``TOP`` and ``BASE`` for the digests of the sample, ``base`` and ``top`` for
their first twelve digits, and ``N`` for seconds.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from msb_pull import Store
from tests.conftest import program, program_environment
from tests.support.counting import wait_for
from tests.support.fault_registry import AddedImage, Fault, FaultRegistry
from tests.support.make_sample import BASE, TOP, file, layer_tar
from tests.support.program import patient_program, run_program

LAYERS = [gzip.compress(layer_tar(entries), 6, mtime=0) for entries in (BASE, TOP)]
LATER = gzip.compress(layer_tar([file("later", "later")]), 6, mtime=0)
IMAGE = "HOST/acme/app:1"
PINNED = f"{IMAGE}@IMAGE\n"
RESOLVING = f"resolving {IMAGE}\n"
PULLING = f"Pulling {IMAGE} (linux/amd64, 2 layers, 2.0 kB)\n"


@dataclass(frozen=True)
class Said:
    """Exit code and both streams."""

    code: int
    out: str
    error: str

    @property
    def document(self):
        """What stands on standard output, which must be one JSON document and end with a line's end."""
        assert self.out.endswith("\n")
        return json.loads(self.out)


class Place:
    """A registry, a folder, and the program at work in it."""

    def __init__(self, folder: Path, registry: FaultRegistry) -> None:
        self.folder = folder
        self.registry = registry
        self.home = folder / "home"
        self.config = folder / "config.toml"
        self.configure()
        self.added = registry.add_image("acme/app", "1", LAYERS)
        self.image = f"{registry.host}/acme/app:1"
        self.layers = self.home / "layers"

    def configure(self, more: str = "") -> None:
        """Few retries, so that a dead registry fails soon."""
        self.config.write_text(f"[pull]\nretries = 0\n{more}")

    def add_later(self) -> AddedImage:
        """Another image, HOST/acme/later:1, whose manifest comes once the first one is in the store."""

        def first_is_there() -> bool:
            return bool(Store.open(self.home).images())

        added = self.registry.add_image("acme/later", "1", [LAYERS[0], LATER])
        self.registry.script("/acme/later/manifests/", Fault(before=lambda: wait_for(first_is_there)))
        return added

    def words(self, *words: str) -> list[str]:
        """The words of a command line, which may contain ``HOST``."""
        return [word.replace("HOST", self.registry.host) for word in words]

    def argv(self, *words: str) -> list[str]:
        """A command line with such words."""
        return [*program(), *self.words(*words)]

    def environment(self, **env: str) -> dict[str, str]:
        """A home, a configuration and a platform that options may still override."""
        preset = {"MICROSANDBOX_HOME": str(self.home), "MSB_PULL_CONFIG": str(self.config)}
        return program_environment(**{"MSB_PULL_PLATFORM": "linux/amd64", **preset, **env})

    def run(self, *words: str, stdin: str = "", env: dict[str, str] | None = None) -> Said:
        """Runs the program to its end."""
        environment = self.environment(**(env or {}))
        done = run_program(self.words(*words), env=environment, cwd=self.folder, input=stdin)
        return Said(done.returncode, self.alike(done.stdout), self.alike(done.stderr))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts the program and leaves it running."""
        return subprocess.Popen(
            [*patient_program(), *self.words(*words)], env=self.environment(), cwd=self.folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def alike(self, text: str) -> str:
        """``text`` without what differs from run to run."""
        base, top = self.added.layer_digests
        names = {
            self.registry.host: "HOST",
            str(self.folder): "~",
            self.added.manifest_digest: "IMAGE",
            self.added.config_digest: "CONFIG",
            base: "BASE",
            top: "TOP",
            base[7:19]: "base",
            top[7:19]: "top",
        }
        for name, stand_in in names.items():
            text = text.replace(name, stand_in)
        return re.sub(r"\bin \d+\.\ds", "in Ns", text)
