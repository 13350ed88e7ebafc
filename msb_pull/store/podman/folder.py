"""The folder that podman reads, written so that whatever it sees at any moment fits together.

    msb-pull.json                        whose folder it is, and what it shows; last what podman may see no longer
    overlay/<layer>/diff, link, lower    links to the layers of our store, and how they are stacked
    overlay/l/<short>                    links to those
    overlay-layers/layers.json           written after what it names is there, and before what shows it
    overlay-layers/<layer>.tar-split.gz  what podman makes the archive of a layer again from
    overlay-images/<image>/              manifest and config
    overlay-images/images.json           what podman lists

Nothing is followed that is a symlink, and nothing removed but what was made here: the link ``diff`` tells a layer of
ours from any other directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from typing import TYPE_CHECKING

from msb_pull.ground.below import create_file, look, open_directory, open_file
from msb_pull.image.digest import Digest
from msb_pull.image.documents import DOCUMENT_LIMIT
from msb_pull.store.podman import documents
from msb_pull.store.podman.shown import short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from msb_pull.store.podman.shown import ShownImage, ShownLayer

LAYERS, IMAGES, TREES, LINKS = "overlay-layers", "overlay-images", "overlay", "l"
# The draft of a file that was being written when its writer ended.
_DRAFT = ".msb-pull-draft"
_TICKET = 64
# Not to wait for whoever might read a FIFO in its place.
_LOCK_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}", re.ASCII)
_SPLIT = ".tar-split.gz"


class Folder:
    """An open view. ``root`` is the way that leads to the layers of our store, absolute."""

    def __init__(self, handle: int, root: Path) -> None:
        self._handle = handle
        self._root = root
        self._open: dict[str, int] = {}
        # Layers that are left, since something of podman's lies in them.
        self.busy: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, root: Path) -> Iterator[Folder]:
        """Opens a folder and makes what is missing of its inner ones; raises OSError, also for a symlink in place."""
        folder = cls(open_directory(path), root)
        try:
            for name in (LAYERS, IMAGES, TREES):
                folder._open[name] = _made(name, folder._handle)
            folder._open[LINKS] = _made(LINKS, folder._open[TREES])
            # podman would make them itself, where it may write.
            for place, lock in ((LAYERS, "layers.lock"), (IMAGES, "images.lock")):
                with contextlib.suppress(FileExistsError):
                    os.close(create_file(lock, folder._open[place]))
            yield folder
        finally:
            for handle in (*folder._open.values(), folder._handle):
                os.close(handle)

    def add(self, images: Sequence[ShownImage], contents: Mapping[str, bytes]) -> None:
        """Lays out trees and documents; podman sees nothing of it yet. ``contents`` are documents by digest."""
        stacks = documents.layer_stacks(images)
        for layer_id, (layer, below) in stacks.items():
            self._lay_out(layer_id, layer, below)
        for image, files in documents.data_files(images).items():
            place = _made(image, self._open[IMAGES])
            try:
                for name, digest in files.items():
                    # What is shown already lies here under one name at least.
                    content = contents.get(digest) or _content(digest, files, place)
                    if content is not None:
                        _write(name, content, place)
            finally:
                os.close(place)

    def add_splits(self, images: Sequence[ShownImage], write: Callable[[ShownLayer, BinaryIO], bool]) -> None:
        """Has tar-split's metadata written of each layer that has none yet; False says that there is to be none."""
        place = self._open[LAYERS]
        for layer_id, (layer, _) in documents.layer_stacks(images).items():
            if look(layer_id + _SPLIT, place) is not None:
                continue
            _unlink(_DRAFT, place)
            with open(create_file(_DRAFT, place), "wb") as file:
                there = write(layer, file)
            if there:
                os.rename(_DRAFT, layer_id + _SPLIT, src_dir_fd=place, dst_dir_fd=place)

    def show(self, images: Sequence[ShownImage], former: Sequence[ShownImage]) -> None:
        """Lets podman see ``images`` in place of ``former``: at no moment one without its layers."""
        both = [*images, *former]
        self._publish(LAYERS, "layers", documents.layers_json(both))
        self._publish(IMAGES, "images", documents.images_json(images))
        self._publish(LAYERS, "layers", documents.layers_json(images))

    def clear(self, images: Sequence[ShownImage]) -> None:
        """Removes what belongs to none of ``images`` and was made here."""
        stacks, files = documents.layer_stacks(images), documents.data_files(images)
        for name in _names(self._open[TREES]):
            if name not in stacks:
                self._remove_layer(name)
        for name in _names(self._open[IMAGES]):
            self._clear_image(name, files.get(name, ()))
        for place in (*self._open.values(), self._handle):
            _unlink(_DRAFT, place)

    def _lay_out(self, layer_id: str, layer: ShownLayer, below: Sequence[str]) -> None:
        place = _made(layer_id, self._open[TREES])
        try:
            # First: it says that the directory is ours.
            _link("diff", os.path.join(self._root, f"{layer.key}.extracted"), place)
            if below:
                _write("lower", ":".join(f"{LINKS}/{short_name(one)}" for one in below).encode(), place)
            else:
                _unlink("lower", place)
                # Stands for the layers below where podman mounts this one alone.
                os.close(_made("empty", place))
            _write("link", short_name(layer_id).encode(), place)
        finally:
            os.close(place)
        _link(short_name(layer_id), f"../{layer_id}/diff", self._open[LINKS])

    def _remove_layer(self, name: str) -> None:
        try:
            place = open_directory(name, self._open[TREES])
        except OSError:
            return
        try:
            facts = look("diff", place)
            if facts is not None and not stat.S_ISLNK(facts.st_mode):
                return
            if facts is not None:
                short = short_name(name)
                if _target(short, self._open[LINKS]) == f"../{name}/diff":
                    os.unlink(short, dir_fd=self._open[LINKS])
                for file in ("link", "lower", _DRAFT):
                    _unlink(file, place)
                _unlink(name + _SPLIT, self._open[LAYERS])
                # podman 4 makes the others where it mounts the layer.
                for inner in ("empty", "merged", "work"):
                    with contextlib.suppress(OSError):
                        os.rmdir(inner, dir_fd=place)
                # Last, or what an interruption leaves would be nobody's.
                os.unlink("diff", dir_fd=place)
        finally:
            os.close(place)
        try:
            os.rmdir(name, dir_fd=self._open[TREES])
        except OSError:
            if facts is not None:
                self.busy.append(name)

    def _clear_image(self, name: str, needed: Collection[str]) -> None:
        try:
            place = open_directory(name, self._open[IMAGES])
        except OSError:
            return
        try:
            for file in _all_names(place):
                if file not in needed and (file in ("manifest", _DRAFT) or file.startswith("=")):
                    _unlink(file, place)
        finally:
            os.close(place)
        if not needed:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=self._open[IMAGES])

    def _publish(self, place: str, what: str, content: bytes) -> None:
        if not _write(f"{what}.json", content, self._open[place]):
            return
        # A podman that runs on, as a service, reads it again when the lock has another ticket.
        lock = os.open(f"{what}.lock", _LOCK_FLAGS, dir_fd=self._open[place])
        try:
            os.pwrite(lock, os.urandom(_TICKET), 0)
        finally:
            os.close(lock)


def _all_names(directory: int) -> list[str]:
    return os.listdir(directory)


def _names(directory: int) -> list[str]:
    """What layers and images are called: anything else was not made here."""
    return [name for name in _all_names(directory) if _ID.fullmatch(name)]


def _made(name: str, directory: int) -> int:
    """A descriptor of a directory, made where it is missing; raises OSError where anything else has its name."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=directory)
    return open_directory(name, directory)


def _read(name: str, directory: int, size: int) -> bytes | None:
    try:
        handle = open_file(name, directory)
    except OSError:
        return None
    try:
        return os.read(handle, size) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    finally:
        os.close(handle)


def _content(digest: str, files: Mapping[str, str], directory: int) -> bytes | None:
    """A document that lies in a directory under one of its names."""
    found = (_read(name, directory, DOCUMENT_LIMIT) for name, known in files.items() if known == digest)
    return next((data for data in found if data is not None and str(Digest.of(data)) == digest), None)


def _write(name: str, content: bytes, directory: int) -> bool:
    """Gives a file its content, all of it at once; False where it has it already. Raises OSError."""
    if _read(name, directory, len(content) + 1) == content:
        return False
    _unlink(_DRAFT, directory)
    with open(create_file(_DRAFT, directory), "wb") as file:
        file.write(content)
    os.rename(_DRAFT, name, src_dir_fd=directory, dst_dir_fd=directory)
    return True


def _link(name: str, target: str, directory: int) -> None:
    """Makes a symlink lead to ``target``, without a moment in which there is none; raises OSError."""
    if _target(name, directory) == target:
        return
    _unlink(_DRAFT, directory)
    os.symlink(target, _DRAFT, dir_fd=directory)
    os.rename(_DRAFT, name, src_dir_fd=directory, dst_dir_fd=directory)


def _target(name: str, directory: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def write_json(path: Path, document: object) -> None:
    """Replaces a JSON file beside which nothing of another name is touched; raises OSError."""
    handle = open_directory(path.parent)
    try:
        _write(path.name, json.dumps(document).encode() + b"\n", handle)
    finally:
        os.close(handle)
