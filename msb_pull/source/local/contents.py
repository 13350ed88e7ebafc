"""What an archive or a layout holds, whatever its images are called: the ``diff_id`` of every layer that it names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.image.documents import Fields, load_any_json, load_json
from msb_pull.image.manifest import Index, is_image, parse_config, parse_document
from msb_pull.source.local.files import FolderFiles
from msb_pull.source.local.oci import blob_name, read_blob
from msb_pull.source.local.spool import open_archive_file
from msb_pull.source.local.tarindex import TarFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor
    from msb_pull.source.local.files import Files

# Of all documents of one file together; an archive of images has a handful for each.
_MAX_DOCUMENTS = 10_000


def diff_ids_in(path: str, scratch: Path, job: Job) -> set[Digest]:
    """The layers of all images, for all platforms, in a layout folder, or in an archive of a layout or by Docker.

    Layers count that an image names, also where the file lacks them: whoever could load it has them. A compressed
    archive is first copied to ``scratch``. Raises NotFoundError, ContentError, LocalError, Cancelled.
    """
    files: Files
    if Path(path).is_dir():
        files = FolderFiles(path, path)
    else:
        handle = open_archive_file(path, path, scratch, job.cancel)
        try:
            files = TarFiles(handle, path, job.cancel)
        except BaseException:
            os.close(handle)
            raise
    try:
        if files.has("index.json"):
            return {diff_id for found in _Layout(files).images() for diff_id in found}
        if files.has("manifest.json"):
            return set(_docker(files))
        raise ContentError(f"{path}: it contains no image (neither index.json nor manifest.json)")
    finally:
        files.close()


class _Layout:
    """The images of an OCI image layout."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._seen: set[Digest] = set()

    def images(self) -> Iterator[tuple[Digest, ...]]:
        """The diff_ids of each image whose documents are there."""
        what = f"{self._files.label}: index.json"
        waiting = [parse_document(self._files.open("index.json").read_all(what), None, what)]
        while waiting:
            document = waiting.pop()
            if isinstance(document, Index):
                waiting += (
                    parse_document(self._read(entry), entry.media_type, self._files.label)
                    for entry in document.images()
                    if self._is_new(entry)
                )
            elif is_image(document) and self._files.has(blob_name(document.config.digest)):
                yield parse_config(self._read(document.config), document, self._files.label).diff_ids

    def _is_new(self, entry: Descriptor) -> bool:
        """Of an index that was copied in part, some are missing."""
        if entry.digest in self._seen or not self._files.has(blob_name(entry.digest)):
            return False
        self._seen.add(entry.digest)
        if len(self._seen) > _MAX_DOCUMENTS:
            raise ContentError(f"{self._files.label}: it has more than {_MAX_DOCUMENTS} manifests")
        return True

    def _read(self, descriptor: Descriptor) -> bytes:
        return read_blob(self._files, descriptor)


def _docker(files: Files) -> Iterator[Digest]:
    what = f"{files.label}: manifest.json"
    listed = load_any_json(files.open("manifest.json").read_all(what), files.label, "manifest.json")
    if not isinstance(listed, list) or len(listed) > _MAX_DOCUMENTS:
        raise ContentError(f"{what} is not a list of images")
    for number, entry in enumerate(listed):
        name = Fields(entry, files.label, f"its manifest.json, image {number}").text("Config")
        config = load_json(files.open(name).read_all(f"{files.label}: {name}"), files.label, "config")
        fields = Fields(config.get("rootfs") or {}, files.label, "its config, rootfs")
        for diff_id in fields.texts("diff_ids"):
            yield fields.as_digest(diff_id, "diff_id")
