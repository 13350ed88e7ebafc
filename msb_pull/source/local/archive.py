"""Images in one file: ``oci-archive`` (the tar of a layout) and ``docker-archive`` (of `docker save`)."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.source.local.docker import DockerImage
from msb_pull.source.local.files import LocalSource
from msb_pull.source.local.naming import stem
from msb_pull.source.local.oci import LayoutImage, source_label
from msb_pull.source.local.spool import open_archive_file
from msb_pull.source.local.tarindex import TarFiles

if TYPE_CHECKING:
    from pathlib import Path

    from msb_pull.ground.running import Cancel, Job
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.local.files import LocalImage


# What has no name of its own.
_STREAMS = frozenset(("-", "/dev/stdin"))


def open_archive(argument: ImageArgument, name: str | None, scratch: Path, job: Job, *, stdin: int = 0) -> LocalSource:
    """An image of the archive that ``argument`` names; nothing is opened before the source is asked.

    Standard input and compressed archives are first copied, uncompressed, to a nameless file in ``scratch``.
    """
    path, transport = argument.path or "", argument.transport
    label = f"{transport}:{path}"

    def find() -> LocalImage:
        handle = open_archive_file(path, label, scratch, job.cancel, stdin)
        folder = None if path in _STREAMS or path.startswith("/dev/fd/") else stem(path)
        try:
            return _image(TarFiles(handle, label, job.cancel), transport, argument.name, name, folder, job.cancel)
        except BaseException:
            os.close(handle)
            raise

    return LocalSource(source_label(transport, path), find, partial(job.warn, argument.text))


def _image(
    files: TarFiles, transport: str, wanted: str | None, name: str | None, folder: str | None, cancel: Cancel
) -> LocalImage:
    """Docker writes both forms into one archive since version 25; the layout has the digests, so it is preferred."""
    if files.has("index.json"):
        return LayoutImage(files, wanted, name, folder=folder)
    if files.has("manifest.json"):
        if transport == "docker-archive":
            return DockerImage(files, wanted, name, cancel)
        hint = "write docker-archive: before it"
        raise ContentError(f"{files.label}: this is a `docker save` archive, not an OCI archive", hint=hint)
    if files.has("repositories"):
        hint = "load it with Docker and save it again"
        raise ContentError(f"{files.label}: Docker before version 1.10 wrote this archive, without digests", hint=hint)
    packed = files.ending_with("/index.json") or files.ending_with("/manifest.json")
    pack = f"it holds {packed}: pack the content of the folder, with `tar -C FOLDER -cf FILE .`" if packed else None
    raise ContentError(f"{files.label}: it contains no image (neither index.json nor manifest.json)", hint=pack)
