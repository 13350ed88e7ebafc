"""A home of the program in a folder of its own, and what pulls into it need."""

from __future__ import annotations

import contextlib
import gzip
import re
import sqlite3
import subprocess
from collections import Counter
from pathlib import Path

from tests.conftest import program_environment
from tests.support.fault_registry import FaultRegistry
from tests.support.make_sample import BASE, TOP, layer_tar
from tests.support.program import patient_program, run_program
from tests.support.treecompare import describe

LINUX = ("--platform", "linux/amd64")


def unread(log: str) -> Counter[str]:
    """Of which blobs, by the start of their digests, pulls with -vv had asked early, and then read nothing.

    Processes that begin at once with an empty store all ask for what only one of them then makes.
    """
    return Counter(re.findall(r"^blob (\w{12}) was asked for beside the config, and not read$", log, re.M))


def gz(tar: bytes) -> bytes:
    return gzip.compress(tar, 6, mtime=0)


class Home:
    """A store and the program that works on it. Retries are few, so that a dead registry fails soon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.config = folder / "config.toml"
        self.config.write_text("[pull]\nretries = 1\n")
        self.command = ["--home", str(self.store), "--config", str(self.config)]

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*patient_program(), *arguments, *self.command],
            env=program_environment(), cwd=self.folder, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return run_program([*arguments, *self.command], cwd=self.folder)

    def pull(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.run("pull", *LINUX, *arguments)

    @property
    def layers(self) -> Path:
        return self.store / "layers"

    def partials(self) -> list[Path]:
        return [x for x in (self.layers / ".msb-pull" / "partial").glob("sha256:*") if x.is_file()]

    def sql(self, text: str) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.store / "oci.db")) as database:
            return database.execute(text).fetchall()

    def state(self) -> tuple[dict, list]:
        """Everything that may not change when a pull fails: published files and the rows of all tables."""
        loose = (b".msb-pull/partial", b".msb-pull/locks")
        tree = {name: facts for name, facts in describe(self.layers).items() if not name.startswith(loose)}
        names = [x for (x,) in self.sql("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return tree, [self.sql(f"SELECT * FROM {name}") for name in names]


def sample(registry: FaultRegistry, tag: str = "1", repository: str = "acme/app"):
    """Two layers with everything an image holds; returns the name to pull and what was added."""
    return f"{registry.host}/{repository}:{tag}", registry.add_image(
        repository, tag, [gz(layer_tar(BASE)), gz(layer_tar(TOP))]
    )
