"""Builds images for tests: OCI layouts and archives, right by default and wrong wherever a test asks for it.

Only the standard library and zstd are used, never the code under test. Layers are given as tar bytes (make_sample has
``layer_tar``). Everything is the same bytes on every run.

    layout = LayoutBuilder(tmp_path / "layout")
    image = layout.image([layer_tar([file("a", "1")])], compression="zstd")
    layout.add(image, ref_name="1.0")
    layout.write()
    oci_archive(layout.folder, tmp_path / "image.tar.gz", compression="gzip")
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OCI = "application/vnd.oci.image"
OCI_INDEX = f"{OCI}.index.v1+json"
OCI_MANIFEST = f"{OCI}.manifest.v1+json"
OCI_CONFIG = f"{OCI}.config.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
LAYER_TYPES = {
    "gzip": f"{OCI}.layer.v1.tar+gzip",
    "zstd": f"{OCI}.layer.v1.tar+zstd",
    "plain": f"{OCI}.layer.v1.tar",
}
LAYOUT_FILE = b'{"imageLayoutVersion": "1.0.0"}'

Descriptor = dict[str, Any]


def sha256(data: bytes) -> str:
    """``sha256:…`` of the data."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encode(document: object) -> bytes:
    """JSON as bytes, always the same."""
    return json.dumps(document, indent=1).encode()


def compress(data: bytes, compression: str = "gzip") -> bytes:
    """``data`` as gzip, zstd or (``plain``) as it is."""
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    return zstd.compress(data, 3) if compression == "zstd" else data


def blob_name(digest: str) -> str:
    """Where a layout holds a blob, relative to its top."""
    return f"blobs/{digest.replace(':', '/')}"


def descriptor(data: bytes, media_type: str, **more: Any) -> Descriptor:
    """What a manifest says of a blob; None leaves a key out."""
    made = {"mediaType": media_type, "digest": sha256(data), "size": len(data)} | more
    return {key: value for key, value in made.items() if value is not None}


def config_bytes(tars: Sequence[bytes], architecture: str = "amd64", os: str = "linux", **more: Any) -> bytes:
    """A config for these (uncompressed) layers; keys in ``more`` are added or replaced, None takes them out."""
    document = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": architecture,
        "os": os,
        "config": {"Env": ["PATH=/usr/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in tars]},
    } | more
    return encode({key: value for key, value in document.items() if value is not None})


class LayoutBuilder:
    """An OCI image layout in a folder, made when this is; :meth:`write` writes ``index.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Descriptor] = []
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_bytes(LAYOUT_FILE)

    def blob(self, data: bytes, media_type: str, **more: Any) -> Descriptor:
        """Writes a blob; returns its descriptor, with ``more`` in it."""
        made = descriptor(data, media_type, **more)
        self.path(sha256(data)).write_bytes(data)
        return made

    def path(self, digest: str) -> Path:
        """The file of a blob."""
        return self.folder / blob_name(digest)

    def image(
        self,
        tars: Sequence[bytes],
        compression: str = "gzip",
        *,
        config: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
        platform: str = "linux/amd64",
        say_platform: bool = False,
    ) -> Descriptor:
        """Writes layers, config and manifest; returns the manifest's descriptor (with a platform if asked).

        ``config`` and ``manifest`` hold keys to add or replace in these documents; None takes a key out.
        """
        os, architecture, *variant = platform.split("/")
        words = {"variant": variant[0]} if variant else {}
        made = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(config_bytes(tars, architecture, os, **words, **(config or {})), OCI_CONFIG),
            "layers": [self.blob(compress(tar, compression), LAYER_TYPES[compression]) for tar in tars],
        } | dict(manifest or {})
        document = encode({key: value for key, value in made.items() if value is not None})
        said = {"os": os, "architecture": architecture, **words} if say_platform else None
        return self.blob(document, OCI_MANIFEST, platform=said)

    def index(self, entries: Sequence[Descriptor], **more: Any) -> Descriptor:
        """Writes an index of these manifests as a blob; returns its descriptor."""
        return self.blob(encode(index_document(entries, **more)), OCI_INDEX)

    def add(self, entry: Descriptor, ref_name: str | None = None, *, name: str | None = None) -> Descriptor:
        """Puts an entry into ``index.json``, with the annotations that name it."""
        annotations = {REF_NAME: ref_name, CONTAINERD_NAME: name}
        said = {key: value for key, value in annotations.items() if value is not None}
        self.entries.append({**entry, "annotations": said} if said else dict(entry))
        return self.entries[-1]

    def write(self, **more: Any) -> Path:
        """Writes ``index.json``; returns the folder."""
        (self.folder / "index.json").write_bytes(encode(index_document(self.entries, **more)))
        return self.folder


def index_document(entries: Sequence[Descriptor], **more: Any) -> dict[str, Any]:
    """An index; keys in ``more`` are added or replaced."""
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)} | more


def simple_layout(folder: Path, tars: Sequence[bytes], tag: str | None = "1", compression: str = "gzip") -> Path:
    """A layout with one image; returns the folder."""
    layout = LayoutBuilder(folder)
    layout.add(layout.image(tars, compression), tag)
    return layout.write()


# Archives

Member = tuple[tarfile.TarInfo, bytes]


def regular(name: str, data: bytes) -> Member:
    """A file for an archive."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    """A symlink, or (tarfile.LNKTYPE) a hard link."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o777
    return info, b""


def directory(name: str) -> Member:
    """A directory."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info, b""


def archive_bytes(members: Sequence[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    """The members as a tar archive, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def folder_members(folder: Path, prefix: str = "") -> list[Member]:
    """All files and directories of a folder as members, sorted by name."""
    members = []
    for path in sorted(folder.rglob("*")):
        name = prefix + path.relative_to(folder).as_posix()
        members.append(directory(name) if path.is_dir() else regular(name, path.read_bytes()))
    return members


def oci_archive(folder: Path, file: Path, compression: str = "plain", prefix: str = "") -> Path:
    """The layout in ``folder`` as one tar file; ``prefix`` is put before the names (``./`` for example)."""
    file.write_bytes(compress(archive_bytes(folder_members(folder, prefix)), compression))
    return file


@dataclass
class DockerImage:
    """One image of a docker-archive. ``tags`` are its RepoTags; ``config`` holds keys to replace."""

    tars: Sequence[bytes]
    tags: Sequence[str] | None = ("example.com/app:1",)
    config: Mapping[str, Any] = field(default_factory=dict)


def docker_members(*images: DockerImage, style: str = "podman", compression: str = "plain") -> list[Member]:
    """The members of an archive as ``podman save`` writes it (layers by digest at the top), as Docker did before
    version 25 (``old``: a folder for each layer, a symlink where one repeats), or as Docker does since (``docker``:
    blobs of a layout, but without its ``index.json``; see :func:`docker_members_with_layout`)."""
    members: dict[str, Member] = {}
    listed = []
    repeated: dict[str, str] = {}
    for image in images:
        config = config_bytes(image.tars, **image.config)
        hexes = [sha256(tar).partition(":")[2] for tar in image.tars]
        config_name = sha256(config).partition(":")[2] + ".json"
        if style == "docker":
            config_name = blob_name(sha256(config))
        names = []
        for number, (tar, hex_digest) in enumerate(zip(image.tars, hexes, strict=True)):
            name = {"podman": f"{hex_digest}.tar", "docker": f"blobs/sha256/{hex_digest}"}.get(style)
            if name is None:
                folder = hashlib.sha256(f"{config_name} {number}".encode()).hexdigest()
                name = f"{folder}/layer.tar"
                members[f"{folder}/"] = directory(f"{folder}/")
                members[f"{folder}/VERSION"] = regular(f"{folder}/VERSION", b"1.0")
            if style == "old" and hex_digest in repeated:
                members[name] = link(name, f"../{repeated[hex_digest]}")
            else:
                members[name] = regular(name, compress(tar, compression))
            repeated.setdefault(hex_digest, name)
            names.append(name)
        members[config_name] = regular(config_name, config)
        listed.append({"Config": config_name, "RepoTags": image.tags and list(image.tags), "Layers": names})
    members["manifest.json"] = regular("manifest.json", encode(listed))
    if style == "old":
        members["repositories"] = regular("repositories", b"{}\n")
    return list(members.values())


def docker_members_with_layout(layout: LayoutBuilder, *images: DockerImage) -> list[Member]:
    """What Docker writes since version 25: a layout and, for older programs, ``manifest.json`` beside it."""
    members = {info.name: (info, data) for info, data in folder_members(layout.folder)}
    members |= {info.name: (info, data) for info, data in docker_members(*images, style="docker")}
    return list(members.values())


def docker_archive(file: Path, *images: DockerImage, style: str = "podman", compression: str = "plain") -> Path:
    """Writes a docker-archive; ``compression`` is that of the whole file."""
    file.write_bytes(compress(archive_bytes(docker_members(*images, style=style)), compression))
    return file
