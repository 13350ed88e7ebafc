"""Pulls, as programs that embed msb-pull ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.api.clients import open_client
from msb_pull.api.given import check_type, given_several
from msb_pull.api.store import Store
from msb_pull.ground.errors import MsbPullError
from msb_pull.ground.events import ignore
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.uses import InUse
from msb_pull.work.pull import images as work
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image as pull_one

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from msb_pull.ground.events import Observer
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.registry import RegistryOptions
    from msb_pull.work.pull.plan import PullResult


def pull_image(
    image: str,
    store: Store,
    options: PullOptions | None = None,
    *,
    observer: Observer = ignore,
    cancel: threading.Event | None = None,
    jobs: int | None = None,
    registries: RegistryOptions | None = None,
    credentials: CredentialStore | None = None,
) -> PullResult:
    """Brings an image into the store; asks no registry if it is already complete and the policy allows that.

    ``image`` is what the command line takes: ``ubuntu:22.04``, ``ghcr.io/a/b@sha256:…``, ``oci:DIR:TAG``,
    ``oci-archive:FILE``, ``docker-archive:FILE``. ``observer`` is called with the events of ``msb_pull.events``, from
    several threads; it must be quick and must not raise. Setting ``cancel`` ends the pull within a second. The settings
    say how many ``jobs`` there are (layers at a time) and how ``registries`` are reached, unless given; ``credentials``
    are by default those of the environment and of ``docker login`` and ``podman login``.

    Raises MsbPullError, TypeError; the store then holds what it held before, and at most more of a partial download.

    >>> import tempfile
    >>> store = Store.open(tempfile.mkdtemp())
    >>> seen = []
    >>> result = pull_image("oci:tests/sample:1", store, PullOptions(name="sample:1"), observer=seen.append)
    >>> result.pinned
    'docker.io/library/sample:1@sha256:4543e47e7e5a48c78f04a48206f408d0f2335d9bdabb1ea0b6a10afa4cf529d9'
    >>> result.changed, type(seen[-1]).__name__
    (True, 'ImageDone')
    >>> pull_image("sample:1", store).changed
    False
    >>> from msb_pull import NotFoundError, Policy
    >>> try:
    ...     pull_image("other:1", store, PullOptions(policy=Policy.NEVER))
    ... except NotFoundError as error:
    ...     print(error.message, error.exit_code)
    docker.io/library/other:1: not in the store 3
    """
    (outcome,) = pull_images(
        [image],
        store,
        options,
        observer=observer,
        cancel=cancel,
        jobs=jobs,
        registries=registries,
        credentials=credentials,
    )
    if isinstance(outcome, MsbPullError):
        raise outcome
    return outcome


def pull_images(
    images: Sequence[str],
    store: Store,
    options: PullOptions | None = None,
    *,
    observer: Observer = ignore,
    cancel: threading.Event | None = None,
    jobs: int | None = None,
    registries: RegistryOptions | None = None,
    credentials: CredentialStore | None = None,
) -> list[PullResult | MsbPullError]:
    """Brings several images into the store at the same time; see :func:`pull_image`.

    They share connections, tokens and threads: ``jobs`` layers at a time of all of them, the largest first. A layer
    that several of them have is fetched once. Returns one outcome for each image, in the order given: its result, or
    the error that it failed with, which leaves the others alone. Where the configuration file has a budget for the
    store (``[store]``), other images then go until it fits. Raises UsageError for a name that is none,
    and where the environment has a password that may be for either of two registries; nothing is asked then.

    >>> import tempfile
    >>> store = Store.open(tempfile.mkdtemp())
    >>> _ = pull_image("oci:tests/sample:1", store, PullOptions(name="sample:1"))
    >>> from msb_pull import Policy
    >>> found, lost = pull_images(["sample:1", "other:1"], store, PullOptions(policy=Policy.NEVER))
    >>> found.pinned
    'docker.io/library/sample:1@sha256:4543e47e7e5a48c78f04a48206f408d0f2335d9bdabb1ea0b6a10afa4cf529d9'
    >>> lost.message
    'docker.io/library/other:1: not in the store'
    """
    names = given_several("images", images, str, "text")
    check_type("store", store, Store, "a msb_pull.Store")
    wishes = options or PullOptions()
    if wishes.signatures is None:
        wishes = replace(wishes, signatures=store._settings.rules)
    job = Job(observer, Cancel(cancel) if cancel else Cancel(), jobs or store._settings.jobs)
    arguments = [parse_argument(image, store._settings.default_registry) for image in names]
    hosts = {argument.reference.registry for argument in arguments if argument.reference is not None}
    if credentials is None and len(hosts) > 1:
        from msb_pull.source.login.credentials import check_given

        check_given(hosts, stdin=False)
    pull: work.Pull = pull_one
    if wishes.to is not None:
        from msb_pull.work.microsandbox.pull import pull_into

        pull = pull_into(replace(wishes, msb=wishes.msb or store._settings.msb))
    place, settings = store._place, store._settings
    with open_client(settings, hosts, job, registries, credentials) as client, InUse(place.uses, job) as in_use:
        outcomes = work.pull_images(arguments, place, client, wishes, job, in_use=in_use, pull=pull)
        work.prune_after(place, outcomes, job, keep=settings.keep, min_free=settings.min_free)
    return outcomes
