"""Pull several images at the same time: all ask at once, and their layers go through one pool."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import MsbPullError, local_error
from msb_pull.ground.running import Cancel
from msb_pull.image.reference import Reference
from msb_pull.work.pull.pull import pull_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.ground.sizes import Percent
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.store import Store
    from msb_pull.store.uses import InUse
    from msb_pull.work.prune.plan import PrunePlan
    from msb_pull.work.pull.plan import PullOptions, PullResult
    from msb_pull.work.pull.sharing import Together

    Pull = Callable[
        [ImageArgument, Store, Callable[[], RegistryClient], PullOptions, Job, Together | None, InUse | None],
        PullResult,
    ]

# Images under way at the same time. Each has a thread of its own, which mostly waits, and keeps its manifests.
_AT_ONCE = 8


def pull_images(
    arguments: Sequence[ImageArgument],
    store: Store,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
    ended: Callable[[int, PullResult | MsbPullError], None] = lambda number, outcome: None,
    in_use: InUse | None = None,
    pull: Pull = pull_image,
) -> list[PullResult | MsbPullError]:
    """Brings images into the store as ``pull_image`` does; returns, for each, its result or the error that ended it.

    ``ended`` is called by the thread of the caller as images end, with their position. ``client`` may be called by
    several threads, one at a time. As many layers as ``job`` says are fetched at once, of all images together.
    ``in_use`` keeps the images from being pruned, as long as the caller likes. ``pull`` does the
    work on each.
    """
    if len(arguments) == 1:
        # One image needs no threads, and one that is here already must not pay for loading what makes them.
        outcomes = [_outcome(pull, arguments[0], store, client, options, job, None, in_use)]
        ended(0, outcomes[0])
        return outcomes
    return _pull_together(arguments, store, _one_at_a_time(client), options, job, ended, in_use, pull)


def prune_after(
    store: Store,
    outcomes: Sequence[PullResult | MsbPullError],
    job: Job,
    *,
    keep: int | None,
    min_free: int | Percent | None,
) -> PrunePlan | None:
    """Makes a store that grew by these pulls fit its budget again; returns what went, None where nothing had to.

    What was pulled stays. The pulls have done their work, so whatever keeps this from being done is a warning.
    """
    pulled = [x for x in outcomes if not isinstance(x, MsbPullError)]
    if (keep is None and min_free is None) or not any(x.changed and not x.dry_run for x in pulled):
        return None
    from msb_pull.work.prune.apply import prune_after_pull
    from msb_pull.work.prune.budget import Budget, Fit
    from msb_pull.work.select import Selection

    fit = Fit(Budget(keep, min_free), Selection(), spare=frozenset(x.reference for x in pulled))
    try:
        return prune_after_pull(store, fit, job)
    except OSError as error:
        failed: MsbPullError = local_error(error, store.layers)
    except MsbPullError as error:
        failed = error
    job.warn("", f"the store was not made to fit its budget: {failed.message}")
    return None


def _pull_together(
    arguments: Sequence[ImageArgument],
    store: Store,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
    ended: Callable[[int, PullResult | MsbPullError], None],
    in_use: InUse | None,
    pull: Pull,
) -> list[PullResult | MsbPullError]:
    from concurrent.futures import Future, as_completed

    from msb_pull.ground.pools import LargestFirst, StoppingPool
    from msb_pull.work.pull.sharing import Together

    # What none of the images is to blame for ends all of them.
    cancel = Cancel(job.cancel)
    shared = replace(job, cancel=cancel)
    numbers: dict[Future[PullResult | MsbPullError], int] = {}
    former: dict[str, Future[PullResult | MsbPullError]] = {}
    with Together(job) as together, LargestFirst(_AT_ONCE) as threads, StoppingPool(threads, cancel) as images:
        for number, argument in enumerate(arguments):
            same = former.get(name := str(argument.reference or argument.text))

            def work(argument: ImageArgument = argument, same: Future[Any] | None = same) -> PullResult | MsbPullError:
                if same is not None:
                    # Named twice: by then it is here.
                    same.exception()
                return _outcome(pull, argument, store, client, options, shared, together, in_use)

            former[name] = future = images.submit(0, work)
            numbers[future] = number
        for future in as_completed(numbers):
            ended(numbers[future], future.result())
    return [future.result() for future in numbers]


def _outcome(
    pull: Pull,
    argument: ImageArgument,
    store: Store,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
    together: Together | None,
    in_use: InUse | None,
) -> PullResult | MsbPullError:
    try:
        job.cancel.check()
        if options.dry_run:
            return pull(argument, store, client, options, job, together, None)
        named = argument.reference or (Reference.parse(options.name) if options.name else None)
        if in_use is not None and named is not None:
            # Before it is looked for: what is found is then there until the end.
            in_use.add(str(named))
        result = pull(argument, store, client, options, job, together, in_use)
        store.uses.touch(result.reference)
        return result
    except MsbPullError as error:
        return error


def _one_at_a_time(client: Callable[[], RegistryClient]) -> Callable[[], RegistryClient]:
    lock = threading.Lock()

    def call() -> RegistryClient:
        with lock:
            return client()

    return call
