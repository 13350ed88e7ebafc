"""From the store to Microsandbox: images that were pulled before, if possible with the registry's own bytes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, BinaryIO, cast

from msb_pull.ground.errors import AccessError, ContentError, MsbPullError, NetworkError, NotFoundError
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.source.interface import ResolvedImage
from msb_pull.work.microsandbox.feed import feeding
from msb_pull.work.microsandbox.program import PLACE, Loading, has_image
from msb_pull.work.pull.plan import Delivered
from msb_pull.work.save import Format, save_images
from msb_pull.work.select import stored_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from msb_pull.ground.running import Job
    from msb_pull.source.interface import Source
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.index.rows import ImageRecord
    from msb_pull.store.store import Store

_REGISTRY = "registry"


class Stored:
    """Hands images of one store to one program; ``client`` is called when a registry must be asked.

    With ``force`` they are handed over though they are there.
    """

    def __init__(
        self, store: Store, program: str, client: Callable[[], RegistryClient], job: Job, *, force: bool = False
    ) -> None:
        self._store = store
        self._program = program
        self._client = client
        self._job = job
        self._force = force

    def deliver_all(self, references: Sequence[str]) -> list[Delivered | MsbPullError]:
        """Tries :meth:`deliver` with each; returns, for each, its result or the error that ended it."""
        outcomes: list[Delivered | MsbPullError] = []
        for reference in references:
            try:
                self._job.cancel.check()
                outcomes.append(self.deliver(reference))
            except MsbPullError as error:
                outcomes.append(error)
        return outcomes

    def deliver(self, reference: str) -> Delivered:
        """Hands over one image (a canonical reference), with the bytes of its source, else with layers made again.

        Raises NotFoundError, ContentError for what is damaged, LocalError, Cancelled.
        """
        started = time.monotonic()
        (image,) = stored_images(self._store, [reference])
        digest = str(image.digest) if image.digest else None
        if digest is not None and not self._force and has_image(self._program, reference, digest):
            return Delivered(PLACE, digest, False, False, time.monotonic() - started)
        if digest is not None:
            try:
                return self.deliver_from_source(reference)
            except (NetworkError, AccessError, NotFoundError, ContentError) as error:
                self._job.warn(reference, f"{error.message}; its layers are made again from the store")
        return self.deliver_recreated(reference)

    def deliver_from_source(self, reference: str) -> Delivered:
        """Hands over one image with every byte as its source has it, which is asked again.

        Raises what :meth:`deliver` raises, and NetworkError, AccessError.
        """
        started = time.monotonic()
        record = self._record(reference)
        with contextlib.closing(self._source(record)) as source, spool_folder(self._store) as folder:
            resolved = _resolved(record)
            if record.source != _REGISTRY and source.resolve(record.platform, explicit=True).digest != resolved.digest:
                raise NotFoundError(f"{record.source}: it has another image now")
            with feeding(resolved, source, self._program, folder, self._job):
                pass
        return Delivered(PLACE, str(resolved.digest), True, False, time.monotonic() - started)

    def deliver_recreated(self, reference: str) -> Delivered:
        """Hands over one image without its source: layers are made again, so that the digest is another one."""
        started = time.monotonic()
        with spool_folder(self._store) as folder, Loading(self._program, folder, self._job.cancel) as loading:
            saved = save_images(self._store, [reference], cast("BinaryIO", loading), Format.OCI, self._job)
            loading.finish()
        return Delivered(PLACE, saved.images[0].digest, True, True, time.monotonic() - started)

    def _record(self, reference: str) -> ImageRecord:
        with self._store.database(create=False) as database:
            proven = database.prove([reference])
        if not proven or proven[0].record is None:
            raise NotFoundError(
                f"{reference}: nothing proves what is recorded of it", hint="`msb-pull verify` says more"
            )
        return proven[0].record

    def _source(self, record: ImageRecord) -> Source:
        from msb_pull.work.pull.open import open_source

        local = record.source != _REGISTRY
        argument = parse_argument(record.source if local else record.reference)
        name = record.reference if local else None
        return open_source(argument, self._client, name=name, scratch=self._store.places.folder, job=self._job)


def _resolved(record: ImageRecord) -> ResolvedImage:
    return ResolvedImage(
        reference=Reference.parse(record.reference),
        digest=record.manifest_digest,
        platform=record.platform,
        manifest_bytes=record.manifest_bytes,
        manifest=record.manifest,
        config_bytes=record.config_bytes,
        config=record.config,
        source=record.source,
    )


@contextlib.contextmanager
def spool_folder(store: Store) -> Iterator[Path | None]:
    """Where Microsandbox may keep what it reads, so that nothing of it stays, however it ends.

    What a command that was killed has left goes first. None where the store cannot be written: then the program uses
    its own place.
    """
    try:
        store.sweep()
        with contextlib.ExitStack() as ending:
            place = ending.enter_context(store.places.private("load"))
            place.mkdir(mode=0o700)
            held = ending.pop_all()
    except OSError:
        yield None
        return
    with held:
        yield place
