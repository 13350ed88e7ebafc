"""From the store to Microsandbox: images that were pulled before."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from msb_pull.ground.errors import MsbPullError
from msb_pull.work.microsandbox.program import Loading, loaded_digest
from msb_pull.work.save import Format, save_images
from msb_pull.work.select import stored_images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from msb_pull.ground.running import Job
    from msb_pull.store.store import Store


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of one image: ``digest`` is that of the manifest that Microsandbox has now.

    ``changed`` is False where it had it before; ``recreated`` says that the layers came from the store, not compressed,
    so that the digest is not the registry's.
    """

    reference: str
    digest: str
    changed: bool
    recreated: bool
    seconds: float


def load_image(store: Store, reference: str, program: str, job: Job, *, force: bool) -> LoadResult:
    """Loads one image of the store (a canonical reference) into Microsandbox; nothing is done where that has it.

    Raises NotFoundError, ContentError for what is damaged, LocalError, Cancelled.
    """
    started = time.monotonic()
    (image,) = stored_images(store, [reference])
    if not force and image.digest is not None and loaded_digest(program, reference) == str(image.digest):
        return LoadResult(reference, str(image.digest), False, False, time.monotonic() - started)
    with spool_folder(store) as folder, Loading(program, folder, job.cancel) as loading:
        saved = save_images(store, [reference], cast("BinaryIO", loading), Format.OCI, job)
        loading.finish()
    return LoadResult(reference, saved.images[0].digest, True, True, time.monotonic() - started)


def load_images(
    store: Store, references: list[str], program: str, job: Job, *, force: bool
) -> list[LoadResult | MsbPullError]:
    """Loads images as :func:`load_image` does; returns, for each, its result or the error that ended it."""
    outcomes: list[LoadResult | MsbPullError] = []
    for reference in references:
        try:
            job.cancel.check()
            outcomes.append(load_image(store, reference, program, job, force=force))
        except MsbPullError as error:
            outcomes.append(error)
    return outcomes


@contextlib.contextmanager
def spool_folder(store: Store) -> Iterator[Path | None]:
    """Where Microsandbox may keep what it reads, so that nothing of it stays, however it ends.

    None where the store cannot be written: then it uses its own place.
    """
    try:
        with contextlib.ExitStack() as ending:
            place = ending.enter_context(store.places.private("load"))
            place.mkdir(mode=0o700)
            held = ending.pop_all()
    except OSError:
        yield None
        return
    with held:
        yield place
