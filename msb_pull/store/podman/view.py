"""Whose a view is and what it shows, as it says itself; a folder that anything else has made is refused."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.below import open_file
from msb_pull.ground.errors import ContentError, LocalError, UsageError, local_error
from msb_pull.ground.text import visible
from msb_pull.store.locks import Locks
from msb_pull.store.podman.folder import IMAGES, LAYERS, TREES, Folder, write_json
from msb_pull.store.podman.shown import ShownImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from msb_pull.ground.running import Job
    from msb_pull.store.podman.shown import ShownLayer
    from msb_pull.store.store import Store

_VERSION = 1
_FILE = "msb-pull.json"
_LOCK = "msb-pull"
_LIMIT = 64 << 20
# What stands in a folder of ours before it says that it is ours, and what a storage of podman's own has beside it.
_EARLY = frozenset((f"{_LOCK}.lock", f"{_LOCK}.turnstile.lock", ".msb-pull-draft"))
_PODMANS = ("overlay-containers", "vfs-containers", "btrfs-containers", "storage.lock", "libpod", "db.sql")
# Each is something else in lowerdir=, in additionalimagestores, or in the file that holds it.
_ODD = ":,\\\"'"
ELSEWHERE = "choose another one with --to podman:FOLDER"


@dataclass(frozen=True, slots=True)
class View:
    """A folder that podman reads: the home and the layers folder that it shows images of, and which."""

    path: Path
    home: str
    layers: str
    images: tuple[ShownImage, ...]

    def is_of(self, store: Store) -> bool:
        """Whether it shows images of this store."""
        return (self.home, self.layers) == (str(store.home), str(store.layers))

    def save(self, images: Sequence[ShownImage]) -> None:
        """Writes down what it shows; raises OSError."""
        document = {
            "version": _VERSION,
            "home": self.home,
            "layers": self.layers,
            "images": [image.document() for image in images],
        }
        write_json(self.path / _FILE, document)


def view_folder(store: Store, folder: Path | None) -> Path:
    """The folder of a view, ``podman`` in the home by default, symlinks followed; raises UsageError, LocalError."""
    path = Path(os.path.realpath((folder or store.home / "podman").expanduser()))
    shown = visible(str(path))
    if any(character in _ODD or not character.isprintable() for character in str(path)):
        cause = "podman would take it for more than one, or for something else"
        raise UsageError(f"{shown}: holds a colon, comma, quote or backslash", hint=f"{cause}; {ELSEWHERE}")
    if path.is_relative_to(store.layers) or store.home.is_relative_to(path) or store.layers.is_relative_to(path):
        raise UsageError(f"{shown}: lies among the layers, or around the store", hint=ELSEWHERE)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{shown}: is not a folder", hint=ELSEWHERE)
    if not path.parent.is_dir():
        raise LocalError(f"{visible(str(path.parent))}: no such folder", hint=ELSEWHERE)
    return path


@contextlib.contextmanager
def locked(path: Path, job: Job) -> Iterator[None]:
    """Holds a view, which may be a folder that is yet to be made; raises LocalError, Cancelled."""
    with Locks(path).hold(_LOCK, exclusive=True, on_wait=job.tell_waiting, cancel=job.cancel):
        yield


def read_view(path: Path) -> View | None:
    """What a folder says of itself, None where it says nothing; raises ContentError where that is damaged, OSError."""
    try:
        with open(open_file(path / _FILE), "rb") as file:
            text = file.read(_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        document = json.loads(text)
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']!r}")
        if not isinstance(document["home"], str) or not isinstance(document["layers"], str):
            raise TypeError("no path")
        images = tuple(ShownImage.parse(image) for image in document["images"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContentError(
            f"{visible(str(path / _FILE))}: what podman's view shows is damaged",
            cause=repr(error)[:200],
            hint=f"`msb-pull export IMAGE… --to podman:{visible(str(path))}` makes it again",
        ) from None
    return View(path, document["home"], document["layers"], images)


def check_free(path: Path, store: Store) -> None:
    """Raises UsageError for a folder that holds anything but a view of this store, or whose view podman writes to."""
    try:
        names = {entry.name for entry in path.iterdir()} - _EARLY
    except FileNotFoundError:
        return
    shown = visible(str(path))
    if found := [name for name in _PODMANS if name in names]:
        cause = f"it holds {found[0]}"
        raise UsageError(f"{shown}: is a storage of podman's own ({cause})", hint=ELSEWHERE)
    if _FILE not in names and names:
        raise UsageError(f"{shown}: is not empty, and msb-pull has not made it", hint=ELSEWHERE)
    if any((path / name).is_symlink() for name in (_FILE, LAYERS, IMAGES, TREES)):
        raise UsageError(f"{shown}: symlinks in it lead elsewhere", hint=ELSEWHERE)
    with contextlib.suppress(ContentError):
        view = read_view(path)
        # A store that was moved has left its place.
        if view and not view.is_of(store) and os.path.lexists(view.home) and os.path.lexists(view.layers):
            raise UsageError(f"{shown}: shows the images of {visible(view.home)}", hint=ELSEWHERE)


def rewrite(
    view: View,
    images: Sequence[ShownImage],
    job: Job,
    contents: Mapping[str, bytes] | None = None,
    write_split: Callable[[ShownLayer, BinaryIO], bool] | None = None,
) -> None:
    """Makes a locked view show ``images`` and nothing else; raises LocalError.

    ``contents`` are the documents of what it does not show yet, ``write_split`` writes tar-split's metadata of a layer.

    What it says of itself is never less than what podman sees, so that whoever removes a layer knows.
    """
    try:
        staying = [image for image in view.images if image not in images]
        view.save([*images, *staying])
        with Folder.open(view.path, Path(view.layers)) as folder:
            folder.add(images, contents or {})
            if write_split is not None:
                folder.add_splits(images, write_split)
            folder.show(images, staying)
            folder.clear(images)
            if folder.busy:
                job.warn("", f"{view.path}: podman has layers mounted that it shows no longer; unmount them in podman")
        view.save(images)
    except OSError as error:
        raise local_error(error, view.path) from error
