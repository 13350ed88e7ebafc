"""Images as `docker save` and `podman save` write them: a list of configs and uncompressed layers in one archive."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, NotFoundError
from msb_pull.ground.magic import LONGEST, compression_of
from msb_pull.image.digest import Digest
from msb_pull.image.documents import Fields, load_any_json, load_json
from msb_pull.image.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor
from msb_pull.source.local.files import Extent, FileBlob
from msb_pull.source.local.naming import Named, ambiguous, matching, not_found, read_name, recorded_name
from msb_pull.source.resolve import verified

if TYPE_CHECKING:
    from msb_pull.ground.running import Cancel
    from msb_pull.source.local.files import Files

_CHUNK = 1 << 20
# Docker and podman write plain tar, some builders compress.
_LAYER_TYPES = {"": OCI_LAYER, "gzip": f"{OCI_LAYER}+gzip", "zstd": f"{OCI_LAYER}+zstd"}


class DockerImage:
    """One image of a docker-archive. ``wanted`` is the name to take, ``name`` what to record it under.

    Such an archive has no manifest with digests: one is made, the same from the same archive every time. A layer's
    digest is that of its bytes in the archive, which for an uncompressed one is its diff_id. Raises NotFoundError,
    UsageError, ContentError, LocalError, Cancelled.
    """

    def __init__(self, files: Files, wanted: str | None, name: str | None, cancel: Cancel) -> None:
        self._files = files
        self._cancel = cancel
        self._places: dict[Digest, str] = {}
        chosen = self._choose(wanted)
        self.reference = recorded_name(files.label, name, chosen)
        self._config, self._manifest = self._assemble(chosen[0].item)

    def has(self, descriptor: Descriptor) -> bool:
        """See :class:`msb_pull.source.local.files.LocalImage`."""
        return descriptor.digest in self._places

    def open(self, descriptor: Descriptor) -> Extent:
        """See :class:`msb_pull.source.local.files.LocalImage`."""
        place = self._places.get(descriptor.digest)
        extent = self._files.open(place) if place is not None else None
        if extent is None or extent.size != descriptor.size:
            if extent is not None:
                os.close(extent.handle)
            raise ContentError(f"{self._files.label}: it has no blob {descriptor.digest.short}")
        return extent

    def attached(self) -> None:
        """Such an archive has no place for signatures, and its manifest was made from it."""

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    # What resolve_image asks for

    def top(self) -> tuple[bytes, str | None, Digest]:
        """The manifest that was made."""
        return self._manifest, OCI_MANIFEST, Digest.of(self._manifest)

    def manifest(self, descriptor: Descriptor) -> tuple[bytes, str | None]:
        """There is no other manifest."""
        raise ContentError(f"{self._files.label}: it has no manifest {descriptor.digest.short}")

    def blob(self, descriptor: Descriptor) -> bytes:
        """The config."""
        return verified(self._config, descriptor, self._files.label, "config")

    def _choose(self, wanted: str | None) -> list[Named[Fields]]:
        label = self._files.label
        what = f"{label}: manifest.json"
        listed = load_any_json(self._files.open("manifest.json").read_all(what), label, "manifest.json")
        if not isinstance(listed, list):
            raise ContentError(f"{what} is not a list of images")
        entries = [Fields(entry, label, f"its manifest.json, image {number}") for number, entry in enumerate(listed)]
        images = [named for entry in entries for named in _named(entry)]
        if not images:
            raise NotFoundError(f"{label}: it contains no image")
        if wanted is not None:
            found = matching(images, wanted)
            if not found:
                raise not_found(label, wanted, images)
            images = found
        if len({id(image.item) for image in images}) > 1:
            raise ambiguous(label, images)
        return images

    def _assemble(self, entry: Fields) -> tuple[bytes, bytes]:
        """The config, byte for byte, and a manifest for it."""
        label = self._files.label
        name = entry.text("Config")
        if not name:
            entry.refuse("names no config")
        config = self._files.open(name).read_all(f"{label}: {name}")
        rootfs = load_json(config, label, "config").get("rootfs")
        fields = Fields(rootfs if rootfs is not None else {}, label, "its config, rootfs")
        diff_ids = fields.texts("diff_ids")
        layers = entry.texts("Layers")
        if len(layers) != len(diff_ids):
            entry.refuse(f"has {len(layers)} layers, its config {len(diff_ids)} diff_ids")
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
            "layers": [
                self._layer(place, fields.as_digest(diff_id, "diff_id"))
                for place, diff_id in zip(layers, diff_ids, strict=True)
            ],
        }
        return config, json.dumps(manifest, separators=(",", ":")).encode()

    def _layer(self, place: str, diff_id: Digest) -> dict[str, str | int]:
        """The descriptor of a layer. That an uncompressed one is what its diff_id says is found out when it is read."""
        extent = self._files.open(place)
        with FileBlob(extent, f"{self._files.label}: {place}") as blob:
            head = blob.read(LONGEST)
            compression = compression_of(head) or ""
            if compression not in _LAYER_TYPES:
                raise ContentError(
                    f"{self._files.label}: its layer {place} is compressed with bzip2 or xz, which is not supported",
                    hint="load the archive with docker or podman and save it again",
                )
            digest = diff_id
            if compression:
                hasher = hashlib.sha256()
                while head:
                    self._cancel.check()
                    hasher.update(head)
                    head = blob.read(_CHUNK)
                digest = Digest("sha256", hasher.hexdigest())
        self._places[digest] = place
        return {"mediaType": _LAYER_TYPES[compression], "digest": str(digest), "size": extent.size}


def _named(entry: Fields) -> list[Named[Fields]]:
    """An image once for each of its names; Docker leaves out `docker.io/` in them, podman does not."""
    words = [word for word in entry.texts("RepoTags") if word != "<none>:<none>"]
    return [Named(entry, (word,), read_name(word, None)) for word in words] or [Named(entry, (), None)]
