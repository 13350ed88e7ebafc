"""What programs that embed msb-pull use; ``import msb_pull`` offers it. The command line has its own, wider way in.

Nothing here prints, exits or touches signals. Every error is a :class:`msb_pull.MsbPullError`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msb_pull.config import settings as config
from msb_pull.config.table import to_path
from msb_pull.ground.errors import MsbPullError, UsageError
from msb_pull.ground.events import ignore
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.store import store as inner
from msb_pull.store.uses import InUse
from msb_pull.work.pull import images as work
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image as pull_one

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterator, Sequence

    from msb_pull.config.settings import Settings
    from msb_pull.ground.events import Observer
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.registry.credentials import CredentialStore
    from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
    from msb_pull.work.export.export import ExportOptions, ExportResult
    from msb_pull.work.listing import InspectedImage, ListedImage
    from msb_pull.work.podman.export import PodmanExport
    from msb_pull.work.pull.plan import Delivered, PullResult

__all__ = ["Store", "pull_image", "pull_images", "registry_options"]


class Store:
    """A folder of extracted layers and what is recorded of their images. :meth:`open` makes one.

    It holds no file open between calls and may be used from several threads; other processes may use the same folder.
    """

    def __init__(self, place: inner.Store, settings: Settings) -> None:
        self._place = place
        self._settings = settings

    @classmethod
    def open(
        cls,
        home: str | PathLike[str] | None = None,
        layers_dir: str | PathLike[str] | None = None,
        *,
        create: bool = True,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Store:
        """Opens the store at ``home``, by default the one that the command line uses.

        The default comes from ``MICROSANDBOX_HOME``, the configuration file, or is ``~/.microsandbox``; ``layers_dir``
        likewise, where ``home`` is not given. With ``create`` missing folders are made. ``warn`` is called with what
        a person should know of the place. Raises LocalError, UsageError, TypeError.

        >>> import tempfile
        >>> store = Store.open(tempfile.mkdtemp())
        >>> store.images()
        []
        """
        settings = config.load({"home": _path("home", home)})
        for text in settings.warnings:
            warn(text)
        layers = _path("layers_dir", layers_dir)
        if home is None:
            layers = layers or settings.layers_dir
        place = inner.Store.open(settings.home, layers, create=create, sync=settings.sync, warn=warn)
        return cls(place, settings)

    @property
    def home(self) -> Path:
        """The folder, without symlinks."""
        return self._place.home

    def images(self) -> list[ListedImage]:
        """Every image by name, those that Microsandbox pulled included. Raises LocalError."""
        from msb_pull.work.listing import list_images
        from msb_pull.work.select import parse_filters

        return list_images(self._place, parse_filters([]), "name")

    def layers(self, image: str) -> list[Path]:
        """The layer directories of an image, lowest first; each is a diff, whiteouts included.

        Raises NotFoundError for an image that is not here or not complete, UsageError, LocalError.

        >>> import tempfile
        >>> store = Store.open(tempfile.mkdtemp())
        >>> result = pull_image("oci:tests/sample:1", store, PullOptions(name="sample:1"))
        >>> [path.name[:19] for path in store.layers("sample:1")]
        ['sha256:0582285ac199', 'sha256:dd13e73b33f0']
        >>> [str(path) for path in store.layers("sample:1")] == [layer.path for layer in result.layers]
        True
        """
        return [Path(path) for path in self._inspect(image).directories()]

    def lowerdir(self, image: str) -> str:
        """The layers of an image as fuse-overlayfs wants them in ``-o lowerdir=``, top first.

        The kernel's own overlayfs would show a wrong tree: it knows neither ``.wh.`` files nor override_stat.
        Raises what :meth:`layers` does.

        >>> import tempfile
        >>> store = Store.open(tempfile.mkdtemp())
        >>> _ = pull_image("oci:tests/sample:1", store, PullOptions(name="sample:1"))
        >>> len(store.lowerdir("sample:1").split(":"))
        2
        """
        return self._inspect(image).lowerdir()

    def export(
        self,
        image: str,
        out: str | PathLike[str] | BinaryIO,
        options: ExportOptions | None = None,
        *,
        observer: Observer = ignore,
        cancel: threading.Event | None = None,
    ) -> ExportResult:
        """Writes the merged tree of an image to a path, or to a binary stream, each file checked on the way.

        A path is the old one, or not there, until all is written; what a stream got before an error is worthless.
        Setting ``cancel`` ends it within a second. Raises NotFoundError for an image that is not here or not complete,
        ContentError for what is damaged, UsageError, LocalError, Cancelled; OSError of a stream.

        >>> import io, tarfile, tempfile
        >>> store = Store.open(tempfile.mkdtemp())
        >>> _ = pull_image("oci:tests/sample:1", store, PullOptions(name="sample:1"))
        >>> result = store.export("sample:1", out := io.BytesIO())
        >>> out.tell() == result.bytes
        True
        >>> tarfile.open(fileobj=io.BytesIO(out.getvalue())).getmember("etc").mode == 0o750
        True
        """
        from msb_pull.work.export.export import ExportOptions, export_image

        where = os.fspath(out) if isinstance(out, str | PathLike) else out
        reference = Reference.parse(image, self._settings.default_registry)
        job = Job(observer, Cancel(cancel) if cancel else Cancel())
        return export_image(self._place, reference, where, options or ExportOptions(), job)

    def deliver(
        self,
        image: str,
        place: str = "microsandbox",
        *,
        msb: str | None = None,
        force: bool = False,
        observer: Observer = ignore,
        cancel: threading.Event | None = None,
        registries: RegistryOptions | None = None,
        credentials: CredentialStore | None = None,
    ) -> Delivered:
        """Hands an image that was pulled before to another program; nothing is done where that has it.

        ``msb`` is Microsandbox's program, a name or a path. The image's source is asked for its blobs again; where it
        cannot give them, layers are made again from the store, and the result says so. With ``force`` it is handed over
        though it is there. The rest is as in :func:`pull_image`. Raises NotFoundError, ContentError for what is
        damaged, UsageError without the program, LocalError, Cancelled.
        """
        from msb_pull.work.microsandbox.program import PLACE, find_msb
        from msb_pull.work.microsandbox.stored import Stored

        if place != PLACE:
            raise UsageError(f"place: {place!r} is not one of {PLACE}")
        reference = Reference.parse(image, self._settings.default_registry)
        job = Job(observer, Cancel(cancel) if cancel else Cancel())
        program = find_msb(msb or self._settings.msb)
        with _client(self, {reference.registry}, job, registries, credentials) as client:
            return Stored(self._place, program, client, job, force=force).deliver(str(reference))

    def show_in_podman(
        self,
        images: Sequence[str],
        folder: str | PathLike[str] | None = None,
        *,
        observer: Observer = ignore,
        cancel: threading.Event | None = None,
    ) -> PodmanExport:
        """Shows images in a read-only store of links for podman, by default ``podman`` in the home.

        What it showed before stays, brought up to date; the result says which lines podman needs to read it. Raises
        NotFoundError for an image that is not here or not complete, ContentError for one that podman could not read,
        UsageError for a folder that is anything but such a store of this home, LocalError, Cancelled.

        >>> import tempfile
        >>> store = Store.open(tempfile.mkdtemp())
        >>> _ = pull_image("oci:tests/sample:1", store, PullOptions(name="sample:1"))
        >>> store.show_in_podman(["sample:1"]).images
        ('docker.io/library/sample:1',)
        """
        from msb_pull.work.podman.export import export_to_podman

        references = [Reference.parse(image, self._settings.default_registry) for image in images]
        job = Job(observer, Cancel(cancel) if cancel else Cancel())
        return export_to_podman(self._place, references, _path("folder", folder), job)

    def _pull(
        self,
        arguments: Sequence[ImageArgument],
        client: Callable[[], RegistryClient],
        options: PullOptions,
        job: Job,
        pull: work.Pull,
    ) -> list[PullResult | MsbPullError]:
        with InUse(self._place.uses, job) as in_use:
            outcomes = work.pull_images(arguments, self._place, client, options, job, in_use=in_use, pull=pull)
            limits = self._settings
            work.prune_after(self._place, outcomes, job, keep=limits.keep, min_free=limits.min_free)
        return outcomes

    def _inspect(self, image: str) -> InspectedImage:
        from msb_pull.work.listing import inspect_image

        _check_type("image", image, str, "text")
        found = inspect_image(self._place, Reference.parse(image, self._settings.default_registry))
        self._place.uses.touch(found.reference)
        return found


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
    ...     print(error.message, int(error.exit_code))
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
    for image in images:
        _check_type("image", image, str, "text")
    _check_type("store", store, Store, "a msb_pull.Store")
    wishes = options or PullOptions()
    if wishes.signatures is None:
        wishes = replace(wishes, signatures=store._settings.rules)
    job = Job(observer, Cancel(cancel) if cancel else Cancel(), jobs or store._settings.jobs)
    arguments = [parse_argument(image, store._settings.default_registry) for image in images]
    hosts = {argument.reference.registry for argument in arguments if argument.reference is not None}
    if credentials is None and len(hosts) > 1:
        from msb_pull.source.registry.credentials import check_given

        check_given(hosts, stdin=False)
    pull: work.Pull = pull_one
    if wishes.to is not None:
        from msb_pull.work.microsandbox.pull import pull_into

        pull = pull_into(replace(wishes, msb=wishes.msb or store._settings.msb))
    with _client(store, hosts, job, registries, credentials) as client:
        return store._pull(arguments, client, wishes, job, pull)


@contextlib.contextmanager
def _client(
    store: Store,
    hosts: Collection[str],
    job: Job,
    registries: RegistryOptions | None,
    credentials: CredentialStore | None,
) -> Iterator[Callable[[], RegistryClient]]:
    """Makes a client when the first registry must be asked: a pull that finds everything loads no requests."""
    with contextlib.ExitStack() as stack:
        clients: list[RegistryClient] = []

        def client() -> RegistryClient:
            if not clients:
                from msb_pull.source.registry.credentials import CredentialStore
                from msb_pull.source.registry.registry import RegistryClient

                how = registries or registry_options(store._settings)
                host = next(iter(hosts)) if len(hosts) == 1 else None
                who = credentials or CredentialStore(authfile=store._settings.authfile, host=host)
                clients.append(RegistryClient(how, who, job))
                stack.callback(clients[0].close)
            return clients[0]

        yield client


def _path(name: str, given: object) -> Path | None:
    if given is None:
        return None
    _check_type(name, given, (str, PathLike), "a path")
    try:
        return to_path(given)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _check_type(name: str, given: object, wanted: type | tuple[type, ...], what: str) -> None:
    if not isinstance(given, wanted):
        raise TypeError(f"{name} must be {what}, not {type(given).__name__}")


def registry_options(settings: Settings) -> RegistryOptions:
    """How registries are reached, as the settings say."""
    from msb_pull.source.registry.registry import RegistryOptions

    listed = settings.registries
    return RegistryOptions(
        plain_http=frozenset(host for host, x in listed.items() if x.plain_http),
        tls_no_verify=frozenset(host for host, x in listed.items() if x.tls_no_verify),
        ca_certs={host: str(x.ca_cert) for host, x in listed.items() if x.ca_cert},
        mirrors={host: x.mirrors for host, x in listed.items() if x.mirrors},
        retries=settings.retries,
        timeout=settings.timeout,
        limit_rate=settings.limit_rate,
    )
