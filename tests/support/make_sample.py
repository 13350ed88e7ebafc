"""Makes tests/sample, a small OCI image layout with what images really hold: links, modes, owners, whiteouts.

    python tests/support/make_sample.py [FOLDER]      writes it (default: tests/sample)
    python tests/support/make_sample.py --check       exit 1 unless tests/sample holds exactly these layers

The layers are the same on every machine; their compressed form may differ with the version of zlib.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
WHEN = 1_700_000_000
OCI = "application/vnd.oci.image"


def entry(name: str, mode: int, *, uid: int = 0, gid: int = 0, kind: bytes, link: str = "", when: int = WHEN):
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid, info.type, info.linkname, info.mtime = mode, uid, gid, kind, link, when
    return info


def folder(name: str, mode: int = 0o755, **more):
    return entry(name, mode, kind=tarfile.DIRTYPE, **more), b""


def file(name: str, content: str | bytes = b"", mode: int = 0o644, **more):
    return entry(name, mode, kind=tarfile.REGTYPE, **more), content.encode() if isinstance(content, str) else content


def symlink(name: str, target: str):
    return entry(name, 0o777, kind=tarfile.SYMTYPE, link=target), b""


def hardlink(name: str, target: str, mode: int = 0o644, **more):
    return entry(name, mode, kind=tarfile.LNKTYPE, link=target, **more), b""


def pipe(name: str, mode: int = 0o600):
    return entry(name, mode, kind=tarfile.FIFOTYPE), b""


HELLO = "#!/bin/sh\necho 'Hello from a sample image'\n"

BASE = [
    folder("./"),
    symlink("bin", "usr/bin"),
    symlink("lib", "usr/lib"),
    folder("etc"),
    file("etc/os-release", 'NAME="Sample"\nID=sample\nVERSION_ID=1\n'),
    file("etc/motd", "This file is removed by the second layer.\n"),
    file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
    file("etc/shadow", "root:*:19000:0:99999:7:::\n", 0o640, gid=42),
    file("etc/gshadow", "root:*::\n", 0),
    folder("home"),
    folder("home/user", 0o700, uid=1000, gid=1000),
    file("home/user/notes.txt", "Owned by uid 1000.\n", 0o600, uid=1000, gid=1000),
    symlink("home/user/link", "notes.txt"),
    folder("root", 0o700),
    folder("tmp", 0o1777),
    folder("usr"),
    folder("usr/bin"),
    file("usr/bin/hello", HELLO, 0o755),
    hardlink("usr/bin/hi", "usr/bin/hello", 0o755),
    file("usr/bin/passwd", HELLO, 0o4755),
    file("usr/bin/wall", HELLO, 0o2755, gid=5),
    folder("usr/lib"),
    file("usr/lib/libsample.so.1.0", bytes(range(256)) * 64),
    symlink("usr/lib/libsample.so.1", "libsample.so.1.0"),
    symlink("usr/lib/absolute", "/etc/os-release"),
    folder("usr/share"),
    file("usr/share/café.txt", "A name outside ASCII.\n"),
    file("usr/share/a name with spaces", "spaces\n"),
    file(f"usr/share/{'long' * 30}/{'name' * 30}", "A name longer than a header has room for.\n"),
    folder("var"),
    folder("var/cache", uid=1, gid=1),
    file("var/cache/old", "Hidden by the opaque whiteout of the second layer.\n"),
    folder("var/mail", 0o2775, gid=8),
    folder("var/empty", 0o555),
]

TOP = [
    folder("app", uid=1000, gid=1000),
    file("app/main.py", "print('Hello from the second layer')\n", uid=1000, gid=1000, when=WHEN + 1),
    folder("etc", 0o750),
    file("etc/.wh.motd"),
    file("etc/os-release", 'NAME="Sample"\nID=sample\nVERSION_ID=2\n', when=WHEN + 1),
    folder("var/cache", 0o700, uid=1, gid=1),
    file("var/cache/.wh..wh..opq"),
    file("var/cache/new", "Only this is left.\n", uid=1, gid=1),
]


def layer_tar(entries) -> bytes:
    """One layer's tar stream, the same bytes on every machine."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Layout:
    """An OCI image layout in a folder that must not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict:
        name = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    def image(self, layers, tag: str = "1") -> str:
        """Writes one image of gzip layers and the index that names it; returns the manifest's digest."""
        tars = [layer_tar(entries) for entries in layers]
        config = {
            "created": "2023-11-14T22:13:20Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin"], "Cmd": ["/usr/bin/hello"], "WorkingDir": "/app", "User": "1000:1000"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.blob(json.dumps(config).encode(), f"{OCI}.config.v1+json"),
            "layers": [self.blob(gzip.compress(tar, 9, mtime=0), f"{OCI}.layer.v1.tar+gzip") for tar in tars],
        }
        found = self.blob(json.dumps(manifest, indent=2).encode(), f"{OCI}.manifest.v1+json")
        found["annotations"] = {"org.opencontainers.image.ref.name": tag}
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [found]}
        (self.folder / "index.json").write_text(json.dumps(index, indent=2) + "\n")
        return found["digest"]


def holds_these_layers(folder: Path) -> bool:
    """Says whether the layout's layers, decompressed, are what this script makes."""

    def read(descriptor: dict) -> bytes:
        return (folder / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()

    index = json.loads((folder / "index.json").read_text())
    manifest = json.loads(read(index["manifests"][0]))
    return [gzip.decompress(read(layer)) for layer in manifest["layers"]] == [layer_tar(BASE), layer_tar(TOP)]


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        return 0 if holds_these_layers(SAMPLE) else 1
    target = Path(arguments[0]) if arguments else SAMPLE
    shutil.rmtree(target, ignore_errors=True)
    print(Layout(target).image([BASE, TOP]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
