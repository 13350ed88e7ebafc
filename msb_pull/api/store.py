"""The store, as programs that embed msb-pull see it."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msb_pull.api.clients import open_client
from msb_pull.api.given import check_type, given_path, given_several
from msb_pull.config import settings as config
from msb_pull.ground.errors import UsageError
from msb_pull.ground.events import ignore
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.reference import Reference
from msb_pull.store import store as inner

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from msb_pull.config.settings import Settings
    from msb_pull.ground.events import Observer
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.registry import RegistryOptions
    from msb_pull.work.export.export import ExportOptions, ExportResult
    from msb_pull.work.listing import InspectedImage, ListedImage
    from msb_pull.work.podman.export import PodmanExport
    from msb_pull.work.pull.plan import Delivered


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
        settings = config.load({"home": given_path("home", home)})
        for text in settings.warnings:
            warn(text)
        layers = given_path("layers_dir", layers_dir)
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
        with open_client(self._settings, {reference.registry}, job, registries, credentials) as client:
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

        names = given_several("images", images, str, "text")
        references = [Reference.parse(image, self._settings.default_registry) for image in names]
        job = Job(observer, Cancel(cancel) if cancel else Cancel())
        return export_to_podman(self._place, references, given_path("folder", folder), job)

    def _inspect(self, image: str) -> InspectedImage:
        from msb_pull.work.listing import inspect_image

        check_type("image", image, str, "text")
        found = inspect_image(self._place, Reference.parse(image, self._settings.default_registry))
        self._place.uses.touch(found.reference)
        return found
