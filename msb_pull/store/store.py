"""What lies on disk: the names of everything, private staging, publishing by rename."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError, local_error
from msb_pull.ground.running import Cancel
from msb_pull.image.digest import InvalidDigest
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.locks import Locks
from msb_pull.store.paths import LayerState, Paths
from msb_pull.store.staging import Places, Staging
from msb_pull.store.uses import Uses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from msb_pull.ground.running import Flag
    from msb_pull.store.index.database import Database
    from msb_pull.store.paths import Name
    from msb_pull.store.probe import FileSystem

VERSION = 1
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FOLDERS = ("staging", "partial", "records", "locks", "l", "images")


class Store(Paths):
    """The layers, records and locks below one home: opened, locked, and written to by rename alone."""

    def __init__(self, home: Path, layers: Path, *, create: bool, sync: bool, warn: Callable[[str], None]) -> None:
        super().__init__(home, layers)
        self.locks = Locks(self.own / "locks", warn)
        self.places = Places(self.own / "staging")
        self.uses = Uses(self.own, self.homes, self.locks)
        self._create = create
        self._sync = sync
        self._warn = warn
        self._file_system: FileSystem | None = None

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

        With ``create`` its folders are made where they are missing; a store laid out by a newer version is refused
        untouched. ``warn`` hears, here and later, what a person should know about the place.
        """
        try:
            home = Path(os.path.realpath(home))
            layers = Path(os.path.realpath(layers_dir)) if layers_dir else Path(os.path.realpath(home / "layers"))
            store = cls(home, layers, create=create, sync=sync, warn=warn)
            store._check_version()
            if create:
                store._make()
                store.register(needed=False)
            store._check_owner()
        except OSError as error:
            raise local_error(error, home) from error
        return store

    def register(self, *, needed: bool) -> None:
        """Makes the home known to a layers folder that is not its own; raises LocalError.

        Recording an image requires it (``needed``). A removal only tries: unregistered, the home would take its own
        images for another's, but a full disk must not keep anybody from making room.
        """
        try:
            self.homes.register(partial(self._lock_briefly, "homes"), partial(self.database, create=True), self._warn)
        except (OSError, LocalError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if needed or not (isinstance(cause, OSError) and cause.errno in _FULL):
                raise error if isinstance(error, LocalError) else local_error(error, self.own) from error

    def database(self, *, create: bool) -> Database:
        """Opens the database; one that is lost or damaged is rebuilt from the copies beside the layers.

        Without ``create`` it is for reading, and a store that has none reads like one without images. Raises
        LocalError. SQLite is loaded here and not before.
        """
        from msb_pull.store.index.backup import Backup
        from msb_pull.store.index.recovery import Recovery

        return Recovery(
            self.database_path,
            Backup(self.homes.copies, sync=self._sync),
            partial(self._lock_briefly, "database"),
            self._warn,
            create=create,
            writable=create or self._create,
            sync=self._sync,
        ).open()

    def begin(self) -> None:
        """Makes the database of a store that has neither images nor layers, before it gets the first layer.

        So layers without a database mean that it was lost, not that the first pull was interrupted. Whatever keeps it
        from being made is said when the image is recorded.
        """
        with contextlib.suppress(OSError, LocalError):
            if not self.has_images and not self.homes.others() and not self.layers_there():
                self.database(create=True).close()

    def disk_usage(self, layer: Name) -> int:
        """The bytes that a layer and its record take on the disk; 0 for what is not there."""
        from msb_pull.ground.remove import disk_usage

        total = 0
        for path in (self.layer_dir(layer), self.record_path(layer), self.notes_path(layer), self.kept_path(layer)):
            with contextlib.suppress(FileNotFoundError):
                total += disk_usage(path)
        return total

    def check_file_system(self, *, need_xattrs: bool) -> bool:
        """Whether files below the layers folder take user attributes; tried once.

        Raises LocalError that names all that layers need and this file system lacks.
        """
        from msb_pull.store.probe import check, probe

        if self._file_system is None:
            try:
                with self.places.private("probe") as place:
                    place.mkdir(mode=0o700)
                    self._file_system = probe(place)
            except OSError as error:
                raise local_error(error, self.layers) from error
        check(self._file_system, self.layers, need_attributes=need_xattrs)
        return self._file_system.attributes

    def check_space(self, needed: int) -> None:
        """Raises LocalError when fewer than ``needed`` bytes are free for the layers: then nothing need be fetched."""
        try:
            facts = os.statvfs(self.layers)
        except OSError as error:
            raise local_error(error, self.layers) from error
        free = facts.f_bavail * facts.f_frsize
        # Some network file systems say nothing of their size.
        if facts.f_blocks and free < needed:
            cause = f"the missing layers alone are {needed} bytes compressed, {free} bytes are free"
            hint = "free some space (`msb-pull prune` removes what no image needs), or use --layers-dir"
            raise LocalError(f"{self.layers}: not enough space", cause=cause, hint=hint)

    # Locks

    def lock_shared(self, on_wait: Callable[[str], None], cancel: Flag) -> AbstractContextManager[None]:
        """Held by every pull, verify and save."""
        return self.locks.hold("store", exclusive=False, on_wait=on_wait, cancel=cancel)

    def lock_exclusive(
        self, on_wait: Callable[[str], None], cancel: Flag, *, wait: bool = True
    ) -> AbstractContextManager[None]:
        """Held by prune and rm while they remove."""
        return self.locks.hold("store", exclusive=True, on_wait=on_wait, cancel=cancel, wait=wait)

    def lock_layer(
        self, layer: Name, on_wait: Callable[[str], None], cancel: Flag, *, wait: bool = True
    ) -> AbstractContextManager[None]:
        """Held while a layer is made; raises Busy when somebody else holds it and ``wait`` is False."""
        return self.locks.hold(str(layer), exclusive=True, on_wait=on_wait, cancel=cancel, wait=wait)

    def _lock_briefly(self, name: str) -> AbstractContextManager[None]:
        """For work that takes moments, so that nothing needs to cancel it."""

        def on_wait(holder: str) -> None:
            self._warn(f"waiting for {holder}")

        return self.locks.hold(name, exclusive=True, on_wait=on_wait, cancel=Cancel())

    # Writing

    @contextlib.contextmanager
    def staging(self, layer: Name) -> Iterator[Staging]:
        """A fresh staging place; whatever is left in it at the end is removed. Its lock is held while it lives.

        Raises OSError, and LocalError, before anything is fetched, when the layer's name is taken by a non-directory.
        """
        self.refuse_symlink(layer)
        with self.places.private(layer.short) as folder:
            folder.mkdir(mode=0o700)
            place = Staging(folder / "tree", folder / "record", folder / "notes", folder / "kept")
            place.path.mkdir(mode=0o700)
            yield place

    def publish(self, staging: Staging, layer: Name, *, replace: bool = False) -> Path:
        """Gives a finished layer its name: short link, record and notes first, then the directory.

        From then on it counts as complete. A directory that stands there is swapped out with no moment in which a
        reader finds none (but for file systems that cannot move it), if it is not complete or with ``replace``; else it
        stays and the new one is dropped. An interruption at any point leaves a layer that counts as missing, or the
        finished one. Raises LocalError, OSError.
        """
        from msb_pull.store.publish import publish

        return publish(self, self.places, staging, layer, replace=replace, sync=self._sync)

    def sweep(self) -> int:
        """Removes staging that no living process holds and databases that were never finished; returns how much."""
        from msb_pull.store.index.connect import sweep_drafts

        return len(self.places.sweep()) + sweep_drafts(self.database_path)

    def sweep_locks(self) -> None:
        """Removes the lock files of images and layers that are gone, unless they are in use.

        Whoever wants one makes it again, so what cannot be removed stays for later.
        """

        def is_gone(lock: str) -> bool:
            with contextlib.suppress(InvalidDigest):
                return self.layer_state(LayerKey.parse(lock)) is LayerState.ABSENT
            return unrecorded(lock)

        with contextlib.suppress(OSError):
            unrecorded = self.uses.unrecorded()
            self.locks.sweep(is_gone)

    def trash(self, path: Path) -> None:
        """Removes a directory: first moved out of sight, then deleted; in place where it cannot be moved.

        So nothing may count it as complete any more. Raises OSError.
        """
        from msb_pull.store.publish import trash

        trash(self.places, path)

    def _check_version(self) -> None:
        try:
            text = (self.own / "version").read_text(encoding="ascii", errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return
        # Nothing in it is what a power cut may leave of a file that was just made.
        if text and not text.isdecimal():
            cause = f"it holds {text[:20]!r} where a number should be"
            hint = "restore it from a backup, or remove it if no other program has changed the store"
            raise LocalError(f"{self.own / 'version'}: damaged", cause=cause, hint=hint)
        if text and int(text[:20]) > VERSION:
            cause = f"the store has version {text[:20]}, this program supports {VERSION}"
            hint = "update msb-pull, or use another --home"
            raise LocalError(f"{self.layers}: laid out by a newer msb-pull", cause=cause, hint=hint)

    def _make(self) -> None:
        if (self.own / "version").exists():
            # The layers may have been another home's.
            _make_private(self.home)
            return
        for folder in (self.home, self.layers, self.own, *(self.own / name for name in _FOLDERS)):
            _make_private(folder)
        with self.places.private("version") as draft:
            draft.write_text(f"{VERSION}\n", encoding="ascii")
            os.replace(draft, self.own / "version")

    def _check_owner(self) -> None:
        """Warns of a store that another user owns or may write to: its database and layers can be changed unseen."""
        try:
            facts = os.stat(self.layers)
        except FileNotFoundError:
            return
        if facts.st_uid != os.geteuid():
            self._warn(f"{self.layers} belongs to another user (uid {facts.st_uid}); new files will not")
            return
        loose = [str(x) for x in (self.home, self.layers) if x.exists() and x.stat().st_mode & _OTHERS_WRITE]
        if loose:
            import shlex

            names = " ".join(map(shlex.quote, loose))
            self._warn(f"{' and '.join(loose)} can be written to by other users; `chmod go-w {names}` prevents that")


def _make_private(folder: Path) -> None:
    """Makes a folder that only its owner enters, whatever the umask; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)
