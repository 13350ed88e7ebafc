"""Export to podman: images of the store become images of a read-only store beside podman's own, without a copy."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, NotFoundError, local_error
from msb_pull.ground.text import visible
from msb_pull.image.digest import Digest
from msb_pull.store.podman.view import View, check_free, locked, read_view, rewrite, view_folder
from msb_pull.store.podman.views import folders, register
from msb_pull.work.listing import find_image
from msb_pull.work.podman.conf import storage_conf
from msb_pull.work.podman.devices import show_devices
from msb_pull.work.podman.images import shown_image
from msb_pull.work.podman.splits import SplitWriter

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from msb_pull.ground.running import Job
    from msb_pull.image.reference import Reference
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.podman.shown import ShownImage
    from msb_pull.store.store import Store

_READ_ONLY = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))


@dataclass(frozen=True, slots=True)
class PodmanExport:
    """What podman has now: the folder, all references that it shows, and the lines that storage.conf needs.

    ``first`` says that the view was made just now, so that podman must still be told of it.
    """

    folder: Path
    images: tuple[str, ...]
    storage_conf: str
    first: bool


def export_to_podman(store: Store, references: Sequence[Reference], folder: Path | None, job: Job) -> PodmanExport:
    """Shows images in the view ``folder``, by default ``podman`` in the home, beside what it shows already.

    What it showed before is brought up to date: images that have gone, or are not complete any more, leave it. Nothing
    is shown where one of ``references`` cannot be. Raises NotFoundError for an image that is not here or not complete,
    ContentError, UsageError for a folder that is not a view of this store, LocalError, Cancelled.
    """
    path = view_folder(store, folder)
    check_free(path, store)
    with store.lock_shared(job.tell_waiting, job.cancel):
        stored = [find_image(store, reference) for reference in references]
        wanted = {image.reference: shown_image(store, image) for image in stored}
        with locked(path, job):
            # Another export may have been first.
            check_free(path, store)
            former = _former(store, path, job)
            _register(store, path, job)
            view = View(path, str(store.home), str(store.layers), former.images if former else ())
            others = _others(store, view, wanted, job)
            images = {image.reference: shown for image, shown in others} | wanted
            stored += [image for image, _ in others]
            _show_devices(store, view, stored, job)
            shown = [images[reference] for reference in sorted(images)]
            rewrite(view, shown, job, _documents(stored), SplitWriter(store, job).write)
    return PodmanExport(path, tuple(sorted(images)), storage_conf(path), former is None)


def _register(store: Store, path: Path, job: Job) -> None:
    """A view that the store does not know would go on showing what ``rm`` and ``prune`` remove."""
    try:
        register(store, path)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise local_error(error, store.own) from error
        job.warn("", f"{visible(str(path))}: removals of images will not know of it, since the store cannot be written")


def _former(store: Store, path: Path, job: Job) -> View | None:
    try:
        return read_view(path)
    except ContentError as error:
        if path not in folders(store):
            raise
        job.warn("", f"{error.message}; it shows only what is exported now")
        return View(path, str(store.home), str(store.layers), ())
    except OSError as error:
        raise local_error(error, path) from error


def _others(store: Store, view: View, wanted: Collection[str], job: Job) -> list[tuple[StoredImage, ShownImage]]:
    """What else the view shows, as the store has it now."""
    found = []
    with store.database(create=False) as database:
        for reference in {image.reference for image in view.images} - set(wanted):
            if (image := database.find(reference)) is None:
                continue
            try:
                found.append((image, shown_image(store, image)))
            except (NotFoundError, ContentError) as error:
                job.warn(reference, f"podman does not show it any more: {error.message}")
    return found


def _show_devices(store: Store, view: View, images: Sequence[StoredImage], job: Job) -> None:
    done = {layer.key for image in view.images for layer in image.layers}
    show_devices(store, [layer for image in images for layer in image.layers if layer.key not in done], job)


def _documents(images: Sequence[StoredImage]) -> dict[str, bytes]:
    """Manifests and configs of images by digest."""
    manifests = {str(image.digest): image.manifest_bytes for image in images if image.manifest_bytes is not None}
    return manifests | {str(Digest.of(x.config_bytes)): x.config_bytes for x in images if x.config_bytes is not None}
