"""Programs that stand in for Microsandbox's, and the real one where the rig has it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conftest import RIG

# The environment of a test is cleaned before it runs, so this is read here.
MORE = [Path(path) for path in os.environ.get("MSB_PROGRAMS", "").split(":") if path]

_FAKE = r"""
import fcntl, hashlib, io, json, os, sys, tarfile, time
home = {home!r}
behaviour = {behaviour!r}
note = lambda text: open(home + "/calls", "a").write(text + "\n")
names = home + "/images.json"
known = lambda: json.load(open(names)) if os.path.exists(names) else {{}}
words = sys.argv[1:]
if words[:2] == ["image", "ls"]:
    print(json.dumps([{{"reference": name, "digest": digest}} for name, digest in known().items()]))
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
    images = {{}}
    for entry in json.loads(files["index.json"])["manifests"]:
        blobs = {{name.rpartition("/")[2]: data for name, data in files.items() if name.startswith("blobs/sha256/")}}
        assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
        manifest = json.loads(blobs[entry["digest"][7:]])
        wanted = [manifest["config"], *manifest["layers"]]
        assert all(len(blobs[x["digest"][7:]]) == x["size"] for x in wanted)
        images[entry["annotations"]["org.opencontainers.image.ref.name"]] = entry["digest"]
    with open(home + "/lock", "w") as lock:
        # Two of them may be at work at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        images = known() | images
        with open(names + ".new", "w") as file:
            json.dump(images, file)
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

    @property
    def words(self) -> tuple[str, ...]:
        """What to add to a command line."""
        return "--to", "microsandbox", "--msb", str(self.program)

    @property
    def environment(self) -> dict[str, str]:
        """What tells it where its home is."""
        return {"MSB_HOME": str(self.home)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command of it."""
        return subprocess.run([str(self.program), *words], env=self._everything(), **_TOLD)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts one command of it, in a session of its own."""
        return subprocess.Popen(
            [str(self.program), *words], env=self._everything(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def images(self) -> dict[str, str]:
        """Its images: name to digest."""
        listed = self.run("image", "ls", "--format", "json")
        assert listed.returncode == 0, listed.stderr
        return {image["reference"]: image["digest"] for image in json.loads(listed.stdout)}

    def inspect(self, name: str) -> dict:
        """What it says of an image, but for the time, and for types of layers: it has names of its own for these."""
        told = self.run("image", "inspect", "--format", "json", name)
        assert told.returncode == 0, told.stderr
        document = json.loads(told.stdout)
        del document["created_at"]
        for layer in document["layers"]:
            layer["media_type"] = layer["media_type"].rpartition("tar")[2].replace(".", "+")
        return document

    def saved(self, name: str) -> str:
        """The checksum of what it saves of an image."""
        with tempfile.NamedTemporaryFile(dir=self.home.parent) as out:
            done = self.run("save", "-q", "-o", out.name, name)
            assert done.returncode == 0, done.stderr
            return checksum(Path(out.name))

    def artefacts(self) -> dict[str, str]:
        """The checksums of layers and merged metadata."""
        kinds = [path for kind in ("layers", "fsmeta") for path in (self.home / "cache" / kind).glob("*.erofs")]
        return {path.name: checksum(path) for path in kinds}

    def left(self) -> list[str]:
        """What it keeps while it works."""
        return [path.name for path in (self.home / "cache" / "tmp").iterdir() if path.suffix != ".lock"]

    def _everything(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as held:
        return hashlib.file_digest(held, "sha256").hexdigest()


_TOLD: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300}


def real_programs() -> list[Path]:
    """The rig's program, and those of other versions that ``MSB_PROGRAMS`` names, with colons between them."""
    found = [*RIG.glob("venv/lib/python3*/site-packages/microsandbox/_bundled/bin/msb"), *MORE]
    return [path for path in found if path.is_file()]
