"""Which layers the other side of a save has: those of an image of the store, or of what was saved before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.errors import NotFoundError, UsageError
from msb_pull.ground.text import visible
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.work.select import stored_images

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.store.store import Store

_BEGINNINGS = ("/", "./", "../", "~")


def layers_of(store: Store, texts: Iterable[str], default_registry: str, job: Job) -> set[Digest]:
    """The ``diff_id`` of each layer of what ``texts`` name, each an image of the store, or a file or folder.

    A word that begins like a path is one, and so is what follows ``oci:``, ``oci-archive:`` or ``docker-archive:``.
    Any other one is the name of an image, or of a file where the store has no such image. Raises NotFoundError where
    there is neither, UsageError, ContentError, LocalError, Cancelled.
    """
    found: set[Digest] = set()
    for text in texts:
        reference, path = _meaning(text, default_registry)
        if reference is not None and (held := _held(store, reference)) is not None:
            found |= held
        elif path is not None and Path(path).exists():
            from msb_pull.source.local.contents import diff_ids_in

            found |= diff_ids_in(path, store.places.folder, job)
        else:
            what = "neither an image of the store nor a file" if reference else "no such file"
            raise NotFoundError(f"--without {visible(text)}: {what}")
    return found


def _meaning(text: str, default_registry: str) -> tuple[Reference | None, str | None]:
    """The image and the path that a word may mean."""
    if text.startswith(_BEGINNINGS):
        # Path's own raises an error for users who do not exist.
        return None, os.path.expanduser(text)  # noqa: PTH111
    try:
        argument = parse_argument(text, default_registry)
    except UsageError:
        if Path(text).exists():
            return None, text
        raise
    if argument.reference is not None:
        return argument.reference, text
    if argument.path == "-":
        raise UsageError("--without: standard input cannot be read", hint="save it to a file and name that file")
    return None, argument.path


def _held(store: Store, reference: Reference) -> set[Digest] | None:
    try:
        (image,) = stored_images(store, [str(reference)])
    except NotFoundError:
        return None
    return {layer.diff_id for layer in image.layers}
