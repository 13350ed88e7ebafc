"""Programs that stand in for Microsandbox's, and the real one where the rig has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RIG

# The environment of a test is cleaned before it runs, so this is read here.
MORE = [Path(path) for path in os.environ.get("MSB_PROGRAMS", "").split(":") if path]

_FAKE = r"""
import hashlib, io, json, os, sys, tarfile, time
home = {home!r}
behaviour = {behaviour!r}
note = lambda text: open(home + "/calls", "a").write(text + "\n")
names = home + "/images.json"
images = json.load(open(names)) if os.path.exists(names) else {{}}
words = sys.argv[1:]
if words[:2] == ["image", "ls"]:
    print(json.dumps([{{"reference": name, "digest": digest}} for name, digest in images.items()]))
elif words[0] == "load":
    note("load")
    exec(behaviour)
    held = io.BytesIO(sys.stdin.buffer.read())
    try:
        with tarfile.open(fileobj=held) as archive:
            files = {{x.name: archive.extractfile(x).read() for x in archive}}
    except tarfile.TarError as error:
        sys.exit("error: " + str(error))
    if "oci-layout" not in files:
        sys.exit("error: archive missing oci-layout")
    for entry in json.loads(files["index.json"])["manifests"]:
        blobs = {{name.rpartition("/")[2]: data for name, data in files.items() if name.startswith("blobs/sha256/")}}
        assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
        manifest = json.loads(blobs[entry["digest"][7:]])
        wanted = [manifest["config"], *manifest["layers"]]
        assert all(len(blobs[x["digest"][7:]]) == x["size"] for x in wanted)
        images[entry["annotations"]["org.opencontainers.image.ref.name"]] = entry["digest"]
    json.dump(images, open(names + ".new", "w"))
    os.rename(names + ".new", names)
else:
    sys.exit(2)
"""


class FakeMicrosandbox:
    """A program that takes an archive as ``msb load`` does: all of it or nothing; ``behaviour`` runs before it reads.

    It checks the digest of every blob.
    """

    def __init__(self, folder: Path, behaviour: str = "") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.program = folder / "msb"
        text = _FAKE.format(home=str(folder), behaviour=behaviour)
        self.program.write_text(f"#!{sys.executable} -IS\n{text}")
        self.program.chmod(0o755)

    @property
    def words(self) -> tuple[str, ...]:
        """What to add to a command line."""
        return "--to", "microsandbox", "--msb", str(self.program)

    def images(self) -> dict[str, str]:
        """Its images: name to digest."""
        path = self.folder / "images.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def loads(self) -> int:
        """How often something was to be loaded."""
        path = self.folder / "calls"
        return path.read_text().count("load\n") if path.exists() else 0


class Microsandbox:
    """The real program with a home of its own."""

    def __init__(self, home: Path, program: Path) -> None:
        self.home, self.program = home, program
        self.environment = {"MSB_HOME": str(home), "HOME": str(home), "PATH": "/usr/bin:/bin"}

    @property
    def words(self) -> tuple[str, ...]:
        """What to add to a command line."""
        return "--to", "microsandbox", "--msb", str(self.program)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command of it, without any network but this machine's."""
        return subprocess.run(
            [str(self.program), *words], env=self.environment, capture_output=True, text=True, timeout=300
        )

    def images(self) -> dict[str, str]:
        """Its images: name to digest."""
        listed = self.run("image", "ls", "--format", "json")
        assert listed.returncode == 0, listed.stderr
        return {image["reference"]: image["digest"] for image in json.loads(listed.stdout)}


def real_programs() -> list[Path]:
    """The rig's program, and those of other versions that ``MSB_PROGRAMS`` names, with colons between them."""
    found = [*RIG.glob("venv/lib/python3*/site-packages/microsandbox/_bundled/bin/msb"), *MORE]
    return [path for path in found if path.is_file()]


def need_real_program() -> Path:
    """The rig's program; skips the test without it."""
    if not (found := real_programs()):
        pytest.skip(f"no msb below {RIG}")
    return found[0]
