"""Pulls that also hand the image to Microsandbox: while its blobs arrive where they do, else from its source again."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import AccessError, NetworkError, NotFoundError, UsageError
from msb_pull.work.microsandbox.feed import feeding
from msb_pull.work.microsandbox.program import NAME, PLACE, find_msb, has_image
from msb_pull.work.microsandbox.stored import Stored, spool_folder
from msb_pull.work.pull.plan import Delivered, Policy
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.pull.receiving import Taking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.interface import ResolvedImage, Source
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.store import Store
    from msb_pull.store.uses import InUse
    from msb_pull.work.pull.images import Pull
    from msb_pull.work.pull.plan import PullOptions, PullResult
    from msb_pull.work.pull.sharing import Together


def pull_into(options: PullOptions) -> Pull:
    """What pulls one image as :func:`pull_image` does and has loaded it, where the options say, when it returns.

    Where Microsandbox has the image, and nothing is to be forced, that is all. What is in the store only is fetched
    from its source again, but with ``never`` made again from the store. Where either part fails, the other is ended:
    Microsandbox has loaded nothing then, unless all was verified and it was faster than what went wrong in the store,
    and the store has what was complete. Raises UsageError for another place, and
    where there is no program.
    """
    if options.to != PLACE:
        raise UsageError(f"--to: {options.to!r} is not one of {PLACE}")
    program = find_msb(options.msb or NAME)

    def pull(
        argument: ImageArgument,
        store: Store,
        client: Callable[[], RegistryClient],
        options: PullOptions,
        job: Job,
        together: Together | None = None,
        in_use: InUse | None = None,
    ) -> PullResult:
        started = time.monotonic()
        taker = _Taker(program, store, force=options.force)
        result = pull_image(argument, store, client, options, job, together, in_use, taker.receive)
        if options.dry_run or result.digest is None:
            return result
        delivered = taker.delivered or _deliver_stored(program, store, client, options, job, result)
        # The loading goes on when all is in the store.
        return replace(result, delivered=delivered, seconds=time.monotonic() - started)

    return pull


def _deliver_stored(
    program: str,
    store: Store,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
    result: PullResult,
) -> Delivered:
    """For an image that was complete in the store, so that no source was opened."""
    assert result.digest is not None
    started = time.monotonic()
    if has_image(program, result.reference, result.digest, job.cancel):
        return Delivered(PLACE, result.digest, False, False, time.monotonic() - started)
    stored = Stored(store, program, client, job)
    if options.policy is Policy.NEVER:
        return stored.deliver_recreated(result.reference)
    try:
        return stored.deliver_from_source(result.reference)
    except (NetworkError, AccessError, NotFoundError) as error:
        how = f"`msb-pull export --to {PLACE}` makes the layers again from the store"
        error.hint = f"{how}; the digest is another one then"
        raise


class _Taker:
    """Takes one image while it is pulled; ``delivered`` is None until it has been."""

    def __init__(self, program: str, store: Store, *, force: bool) -> None:
        self.delivered: Delivered | None = None
        self._program = program
        self._store = store
        self._force = force

    @contextlib.contextmanager
    def receive(self, image: ResolvedImage, source: Source, job: Job) -> Iterator[Taking]:
        """See :data:`msb_pull.work.pull.receiving.Receive`."""
        started = time.monotonic()
        digest = str(image.digest)
        there = not self._force and has_image(self._program, str(image.reference), digest, job.cancel)
        if there:
            yield Taking(job, _pass_over)
        else:
            with (
                spool_folder(self._store) as folder,
                feeding(image, source, self._program, folder, job) as (feed, inner),
            ):
                yield Taking(inner, feed.arrived)
        self.delivered = Delivered(PLACE, digest, not there, False, time.monotonic() - started)


def _pass_over(digest: Digest, handle: int) -> None:
    """Nobody needs the blob."""
