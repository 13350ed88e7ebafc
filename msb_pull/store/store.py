"""What lies on disk: the names of everything, private staging, publishing by rename."""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.errors import LocalError, local_error
from msb_pull.remove import remove_tree
from msb_pull.store.exchange import exchange, flush
from msb_pull.store.locks import Locks

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from msb_pull.image.digest import Digest
    from msb_pull.store.keys import LayerKey

    Name = Digest | LayerKey

VERSION = 1
_SHORT = 12


class LayerState(enum.StrEnum):
    """What the store knows of a layer's directory."""

    ABSENT = "absent"
    COMPLETE = "complete"
    FOREIGN = "foreign"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class Staging:
    """A private place on the layers' file system: the tree to be, its record and its notes."""

    path: Path
    record: Path
    notes: Path


class Store:
    """The layers, records and locks below one home; a digest that was parsed is all that ever makes a path.

    Layout: ``<layers>/<digest>.extracted`` for each layer, and ``<layers>/.msb-pull/`` for all that is ours alone.
    """

    def __init__(self, home: Path, layers: Path, *, sync: bool, warn: Callable[[str], None]) -> None:
        self.home = home
        self.layers = layers
        self.database_path = home / "oci.db"
        self.own = layers / ".msb-pull"
        self.locks = Locks(self.own / "locks", warn)
        self._sync = sync
        self._xattrs: bool | None = None

    @classmethod
    def open(
        cls,
        home: Path,
        layers_dir: Path | None = None,
        *,
        create: bool = True,
        sync: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Store:
        """Opens the store at ``home``; symlinks to it are resolved once, here. Raises LocalError.

        With ``create`` its folders are made where they are missing; a store that was laid out by a newer version is
        refused untouched.
        """
        home = Path(os.path.realpath(home))
        layers = Path(os.path.realpath(layers_dir)) if layers_dir else home / "layers"
        store = cls(home, layers, sync=sync, warn=warn)
        try:
            store._check_version()
            if create:
                store._make()
        except OSError as error:
            raise local_error(error, home) from error
        return store

    # Names

    def layer_dir(self, layer: Name) -> Path:
        """The directory of a layer, there or not."""
        return self.layers / f"{layer}.extracted"

    def record_path(self, layer: Name) -> Path:
        """The record of a layer: its tar stream without payloads."""
        return self.own / "records" / f"{layer}.tar"

    def notes_path(self, layer: Name) -> Path:
        """What is known of a layer beside its record."""
        return self.own / "records" / f"{layer}.json"

    def partial_path(self, layer: Name) -> Path:
        """What has arrived of a blob so far."""
        return self.own / "partial" / str(layer)

    def link_path(self, layer: Name) -> Path:
        """A short symlink to the layer's directory, without a colon, for mount options."""
        target = self._link_target(layer)
        length = _SHORT
        while True:
            path = self.own / "l" / layer.hex[:length]
            if length >= len(layer.hex) or _read_link(path) in (None, target):
                return path
            length += 4

    @property
    def scratch(self) -> Path:
        """A folder for temporary files that must not outlive a run; swept like staging."""
        return self.own / "staging"

    # State

    def has_layer(self, layer: Name) -> bool:
        """Whether a layer is complete: published by us, and so verified twice."""
        return self.layer_state(layer) is LayerState.COMPLETE

    def layer_state(self, layer: Name) -> LayerState:
        """What stands under a layer's name. A directory without our notes is somebody else's."""
        try:
            mode = os.lstat(self.layer_dir(layer)).st_mode
        except FileNotFoundError:
            return LayerState.ABSENT
        if not stat.S_ISDIR(mode):
            return LayerState.SYMLINK
        return LayerState.COMPLETE if self.notes_path(layer).exists() else LayerState.FOREIGN

    def check_file_system(self, *, need_xattrs: bool) -> bool:
        """Whether files below the layers folder take user attributes; LocalError when they must and do not."""
        if self._xattrs is None:
            self._xattrs = self._probe_attributes()
        if need_xattrs and not self._xattrs:
            raise LocalError(
                f"{self.layers}: this file system takes no user attributes, so owners and modes would be lost",
                hint="choose another place with --home or --layers-dir, or accept the loss with --allow-no-xattr",
            )
        return self._xattrs

    # Locks

    def lock_shared(self, on_wait: Callable[[str], None], cancel: threading.Event) -> AbstractContextManager[None]:
        """What every pull and verify holds."""
        return self.locks.hold("store", exclusive=False, on_wait=on_wait, cancel=cancel)

    def lock_exclusive(
        self, on_wait: Callable[[str], None], cancel: threading.Event, *, wait: bool = True
    ) -> AbstractContextManager[None]:
        """What prune and rm hold while they remove."""
        return self.locks.hold("store", exclusive=True, on_wait=on_wait, cancel=cancel, wait=wait)

    def lock_layer(
        self, layer: Name, on_wait: Callable[[str], None], cancel: threading.Event
    ) -> AbstractContextManager[None]:
        """What the one holds that makes a layer."""
        return self.locks.hold(str(layer), exclusive=True, on_wait=on_wait, cancel=cancel)

    # Writing

    @contextlib.contextmanager
    def staging(self, layer: Name) -> Iterator[Staging]:
        """A fresh staging place; whatever is left in it at the end is removed. Its lock is held while it lives."""
        name = f"{layer.short}-{os.getpid()}-{_random_name()}"
        folder = self.own / "staging" / name
        with _locked_name(folder):
            try:
                folder.mkdir(mode=0o700)
                place = Staging(folder / "tree", folder / "record", folder / "notes")
                place.path.mkdir(mode=0o700)
                yield place
            finally:
                if folder.exists():
                    remove_tree(folder)

    def publish(self, staging: Staging, layer: Name, *, replace: bool = False) -> Path:
        """Gives a finished layer its name: the record first, then the directory, then the short link.

        From the rename on the layer counts as complete. With ``replace`` a directory that stands there is swapped out
        with no moment in which a reader finds none. Raises LocalError, OSError.
        """
        final = self.layer_dir(layer)
        if self._sync:
            flush(self.layers)
        if self.layer_state(layer) is LayerState.SYMLINK:
            raise LocalError(f"{final}: is no directory but a symlink or a file", hint="remove it by hand")
        os.replace(staging.record, self.record_path(layer))
        os.replace(staging.notes, self.notes_path(layer))
        try:
            os.rename(staging.path, final)
        except OSError:
            if not (replace and final.is_dir()):
                raise
            exchange(staging.path, final, aside=staging.path.with_name("aside"))
        link = self.link_path(layer)
        if not link.is_symlink():
            with contextlib.suppress(FileExistsError):
                link.symlink_to(self._link_target(layer))
        if self._sync:
            flush(self.layers)
        return final

    def sweep(self) -> int:
        """Removes staging that no living process holds; returns how much it found."""
        found = 0
        folder = self.own / "staging"
        names = {entry.name.removesuffix(".lock") for entry in os.scandir(folder)} if folder.is_dir() else set()
        for name in names:
            with _try_lock(folder / f"{name}.lock") as free:
                if free:
                    found += 1
                    if (folder / name).is_dir():
                        remove_tree(folder / name)
                    else:
                        (folder / name).unlink(missing_ok=True)
        return found

    def trash(self, path: Path) -> None:
        """Removes a directory: first out of everybody's sight, then for good."""
        name = self.own / "staging" / f"trash-{os.getpid()}-{_random_name()}"
        with _locked_name(name):
            os.rename(path, name)
            remove_tree(name)

    def _link_target(self, layer: Name) -> str:
        return f"../../{layer}.extracted"

    def _check_version(self) -> None:
        try:
            version = int((self.own / "version").read_text(encoding="ascii"))
        except (FileNotFoundError, NotADirectoryError):
            return
        except ValueError:
            version = VERSION + 1
        if version > VERSION:
            raise LocalError(
                f"{self.layers}: laid out by a newer msb-pull", hint="update msb-pull, or use another --home"
            )

    def _make(self) -> None:
        if (self.own / "version").exists():
            return
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.layers.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("staging", "partial", "records", "locks", "l", "images"):
            (self.own / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.own / "version").write_text(f"{VERSION}\n", encoding="ascii")

    def _probe_attributes(self) -> bool:
        name = f"probe-{os.getpid()}-{_random_name()}"
        with _locked_name(self.own / "staging" / name):
            probe = self.own / "staging" / name
            try:
                probe.touch(mode=0o600)
                os.setxattr(probe, "user.containers.override_stat", b"0:0:0100644")
            except OSError as error:
                if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
                    return False
                raise local_error(error, self.layers) from error
            finally:
                probe.unlink(missing_ok=True)
        return True


def _random_name() -> str:
    # What `secrets` does, without the 2 ms that importing it costs every command.
    return os.urandom(4).hex()


@contextlib.contextmanager
def _locked_name(path: Path) -> Iterator[None]:
    """Holds ``path``'s own lock file, from before ``path`` is made until after it is gone."""
    lock = path.with_name(f"{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _flock(descriptor)
        # A sweep may have taken the file for a leftover between its creation and its lock.
        if _same_file(descriptor, lock):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def _try_lock(lock: Path) -> Iterator[bool]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        free = _flock(descriptor, wait=False) and _same_file(descriptor, lock)
        yield free
        if free:
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, *, wait: bool = True) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        # Without locks nothing tells the living from the dead: what is there stays.
        return wait
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _read_link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
