"""Pulls beside a lock file, as programs that embed msb-pull ask for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING

from msb_pull.api.given import check_type, given_path, given_several
from msb_pull.api.pull import pull_images
from msb_pull.api.store import Store
from msb_pull.ground.errors import MsbPullError, UsageError
from msb_pull.ground.events import ignore
from msb_pull.image.platform import Platform
from msb_pull.image.reference import parse_argument
from msb_pull.work.pull.plan import Policy, PullOptions

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from msb_pull.ground.events import Observer
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.registry import RegistryOptions
    from msb_pull.work.lockfile import LockChange
    from msb_pull.work.pull.plan import PullResult


@dataclass(frozen=True, slots=True)
class LockResult:
    """What became of images that were pulled and locked, by their names, and what is new in the lock file."""

    outcomes: Mapping[str, PullResult | MsbPullError]
    changes: tuple[LockChange, ...]


def pull_locked(
    lock: str | PathLike[str],
    store: Store,
    images: Sequence[str] = (),
    options: PullOptions | None = None,
    *,
    observer: Observer = ignore,
    cancel: threading.Event | None = None,
    jobs: int | None = None,
    registries: RegistryOptions | None = None,
    credentials: CredentialStore | None = None,
) -> dict[str, PullResult | MsbPullError]:
    """Pulls exactly what a lock file says, as ``pull --locked``: images that it lists, or all where none is named.

    No tag is asked for, and nothing at all for an image that is here and complete. Returns by the images' names, as
    given or as the file has them, what became of each; the rest is as in :func:`msb_pull.pull_images`. Raises
    UsageError for a file that is not there or damaged, and for an image or platform that it does not list; LocalError.

    >>> import tempfile
    >>> store = Store.open(tempfile.mkdtemp())
    >>> try:
    ...     pull_locked("none.lock", store)
    ... except UsageError as error:
    ...     print(error.message.rpartition("/")[2])
    none.lock: no such lock file
    """
    from msb_pull.work.pull.locked import plan_locked

    check_type("store", store, Store, "a msb_pull.Store")
    wishes, names = options or PullOptions(), given_several("images", images, str, "text")
    plan = plan_locked(_path(lock), names, wishes.wanted, store._settings.default_registry)
    outcomes = pull_images(
        plan.images,
        store,
        replace(wishes, pins=plan.pins),
        observer=observer,
        cancel=cancel,
        jobs=jobs,
        registries=registries,
        credentials=credentials,
    )
    return dict(zip(plan.images, outcomes, strict=True))


def pull_and_lock(
    lock: str | PathLike[str],
    store: Store,
    images: Sequence[str] = (),
    options: PullOptions | None = None,
    *,
    platforms: Sequence[Platform] = (),
    upgrade: bool = False,
    observer: Observer = ignore,
    cancel: threading.Event | None = None,
    jobs: int | None = None,
    registries: RegistryOptions | None = None,
    credentials: CredentialStore | None = None,
) -> LockResult:
    """Pulls images from registries and writes down what their names meant, as ``pull --lock``.

    What the file says already stays, and is pulled, unless it is to be renewed (``upgrade``; where no image is named,
    all of the file). ``platforms`` are locked as well, and not pulled. The file is the old one until all images have
    been pulled, and those that failed are left out. With ``options.dry_run`` nothing is pulled or written, and the
    result says what would change. The rest is as in :func:`msb_pull.pull_images`.

    Raises UsageError for a file that is damaged, for images that are not from registries, and with Policy.NEVER;
    LocalError, also where the images were pulled and the file cannot be written.
    """
    from msb_pull.work.lockfile import update
    from msb_pull.work.pull.locked import plan_locking

    check_type("store", store, Store, "a msb_pull.Store")
    wishes, registry = options or PullOptions(), store._settings.default_registry
    if wishes.policy is Policy.NEVER:
        raise UsageError("lock and Policy.NEVER exclude each other: only a registry says what is to be locked")
    names = given_several("images", images, str, "text")
    also = given_several("platforms", platforms, Platform, "a msb_pull.Platform")
    plan = plan_locking(_path(lock), names, wishes.wanted, also, registry, upgrade=upgrade)
    outcomes = pull_images(
        plan.images,
        store,
        replace(wishes, pins=plan.pins),
        observer=observer,
        cancel=cancel,
        jobs=jobs,
        registries=registries,
        credentials=credentials,
    )
    by_name = dict(zip(plan.images, outcomes, strict=True))
    pulled = {
        str(parse_argument(image, registry).reference): outcome
        for image, outcome in by_name.items()
        if not isinstance(outcome, MsbPullError)
    }
    assert plan.locking is not None
    changes = update(plan.path, plan.locking.found(pulled), write=not wishes.dry_run)
    return LockResult(by_name, tuple(changes))


def _path(lock: object) -> Path:
    check_type("lock", lock, (str, PathLike), "a path")
    path = given_path("lock", lock)
    assert path is not None
    return path
