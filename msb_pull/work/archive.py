"""The parts of an OCI archive: a layout (image-layout.md of the image spec) in a tar, written in one go."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from msb_pull.image.manifest import OCI_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.image.digest import Digest
    from msb_pull.image.platform import Platform

LAYOUT_NAME, LAYOUT = "oci-layout", b'{"imageLayoutVersion":"1.0.0"}'
INDEX_NAME = "index.json"
# The end of a tar: two blocks of zeros, and what fills the last record.
END = bytes(tarfile.RECORDSIZE)
_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"


def blob_name(digest: Digest) -> str:
    """The path of a blob in a layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def descriptor(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    """What a document says of a blob."""
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def index_entry(manifest: dict[str, Any], reference: str, platform: Platform | None) -> dict[str, Any]:
    """What the index says of an image, given the descriptor of its manifest and its name."""
    # Podman, skopeo and Microsandbox look for the tag or the whole name here, containerd and Docker for its own key.
    entry = {**manifest, "annotations": {_REF_NAME: reference, _FULL_NAME: reference}}
    if platform is not None:
        told = {"os": platform.os, "architecture": platform.architecture}
        entry["platform"] = {**told, **({"variant": platform.variant} if platform.variant else {})}
    return entry


def index(entries: Sequence[dict[str, Any]]) -> bytes:
    """The index of an archive."""
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def to_json(document: Any) -> bytes:
    """A document, always the same bytes."""
    return json.dumps(document, separators=(",", ":")).encode("utf-8")


def member(name: str, size: int) -> tarfile.TarInfo:
    """A file of so many bytes, the same on every machine."""
    made = tarfile.TarInfo(name)
    made.size = size
    made.mode = 0o644
    return made


def header(name: str, size: int) -> bytes:
    """The header of a file of so many bytes."""
    return member(name, size).tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """What follows the content of a file of so many bytes."""
    return bytes(-size % tarfile.BLOCKSIZE)


def small_file(name: str, data: bytes) -> bytes:
    """A whole file."""
    return header(name, len(data)) + data + padding(len(data))
