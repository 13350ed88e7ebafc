"""The homes whose images lie in one layers folder, which knows them all, so that none removes what another needs.

The home that has the folder as its own ``layers`` needs no entry: its database is found beside the folder, its copies
of images in ``.msb-pull/images``. Any other has a name of its own, written down in the home, and under that name in
``.msb-pull/homes/`` a folder with its copies and its path. A home that was moved, or is mounted elsewhere, keeps it.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.errors import LocalError
from msb_pull.ground.sizes import counted
from msb_pull.store.index.keys import copies_in, copy_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from msb_pull.store.index.database import Database

_NAME_FILE = ".msb-pull-home"
_PATH_FILE = "path"
# The first line of that file, if Microsandbox finds the layers through a link in the home.
_MICROSANDBOX = b"microsandbox"
_NAME = re.compile(r"[0-9a-f]{16}", re.ASCII)


class OtherHome(NamedTuple):
    """A home that has images in a layers folder. ``name`` is "" for the one that the folder is a part of.

    ``path`` is where it was last, "" if unknown. ``copies`` is the folder with the copies of its images;
    ``microsandbox`` says that Microsandbox may have recorded images there, of which no copies are kept.
    """

    name: str
    path: str
    copies: Path
    microsandbox: bool

    @property
    def visible(self) -> bool:
        """Whether its database can be read here: in another container the same path may be another home's."""
        try:
            there = bool(self.path) and Path(self.path, "oci.db").exists()
        except OSError:
            return False  # It lies in another user's folder.
        return there and (not self.name or _name_of(self.path) == self.name)

    def layers(self) -> set[str]:
        """The names of all layers that its images reach; raises LocalError where that cannot be known."""
        from msb_pull.store.index.database import Database

        if self.visible:
            try:
                with Database.open(Path(self.path, "oci.db"), create=False) as database:
                    found = database.layer_digests()
            except LocalError as error:
                if self.microsandbox:
                    raise self._unknown(error.message) from error
            else:
                # A database that is just being rebuilt reads like one without images; and a home in another container
                # may go by the same name.
                return found | self._copied(damaged=True) if self.name or not found else found
        elif self.microsandbox:
            raise self._unknown("its oci.db is missing")
        return self._copied()

    @property
    def how_to_forget(self) -> str:
        """What to do about a home that is gone for good."""
        from shlex import quote

        return f"if it is gone for good, `rm -r {quote(str(self.copies))}` removes its entry"

    def _copied(self, *, damaged: bool = False) -> set[str]:
        from msb_pull.store.index.backup import layers_in

        try:
            return layers_in(self.copies, damaged=damaged)
        except ValueError as error:
            raise self._unknown(str(error)) from None

    def _unknown(self, cause: str) -> LocalError:
        return LocalError(
            f"{self.path or self.copies}: another home uses these layers, and what it needs is unknown",
            cause=cause,
            hint=f"`msb-pull verify` with that home checks and repairs it; {self.how_to_forget}",
        )


class Homes:
    """What one home and its layers folder, both without symlinks on the way, know of each other."""

    def __init__(self, home: Path, layers: Path, own: Path) -> None:
        self._home = home
        self._layers = layers
        self._flat = own / "images"
        self._folder = own / "homes"

    @property
    def copies(self) -> Path:
        """The folder with the copies of this home's images."""
        if self._is_part():
            return self._flat
        if (name := _name_of(self._home)) and (self._folder / name).is_dir():
            return self._folder / name
        # Before homes had names, all had one folder; but a lost database must not be rebuilt from another's copies.
        old = (self._home / "oci.db").exists() and not self._folder.is_dir()
        return self._flat if old else self._folder / "none"

    def others(self) -> list[OtherHome]:
        """All other homes that are known to have images here."""
        found = []
        mine = _name_of(self._home)
        for name in sorted(_listed(self._folder)):
            if _NAME.fullmatch(name) and (name != mine or self._is_part()):
                path, microsandbox = _read_entry(self._folder / name)
                found.append(OtherHome(name, path, self._folder / name, microsandbox))
        if not self._is_part():
            # Copies in the common folder may also belong to a home that has not been used since homes have names.
            above = self._above()
            if self._lies_in_a_home() or any(copies_in(self._flat)):
                found.append(OtherHome("", str(above or ""), self._flat, above is not None))
        return found

    def _above(self) -> Path | None:
        """The home that the layers folder is a part of, if it is one."""
        return self._layers.parent if self._layers.name == "layers" else None

    def _lies_in_a_home(self) -> bool:
        above = self._above()
        return above is not None and (above / "oci.db").exists()

    def register(
        self,
        lock: Callable[[], AbstractContextManager[None]],
        database: Callable[[], AbstractContextManager[Database]],
        warn: Callable[[str], None],
    ) -> None:
        """Makes this home known, under ``lock``, with copies of the images it has; raises OSError, LocalError.

        Copies of unknown images in its entry come from another home of the same name and path, as in two containers
        made from one image. This home then takes a new name, and ``warn`` hears of it. The old entry stays as that of
        a home that cannot be seen from here, so what it needs is kept.

        A place that cannot be written to is left as it is: nothing gets recorded there either.
        """
        if self._is_part() or not all(os.access(folder, os.W_OK) for folder in (self._home, self._folder.parent)):
            return
        if self._is_known() and not self._strays(database):
            return
        with lock():
            strays = self._strays(database) if (known := self._is_known()) else []
            if known and not strays:
                return
            entry = self._folder / (self._new_name() if strays else self._choose_name())
            if not (entry / _PATH_FILE).exists():
                self._fill(entry, database)
            # Last: what an interruption leaves without it is filled again.
            _write(entry / _PATH_FILE, self._entry_text())
        if strays:
            warn(
                f"{self._home}: another home uses its entry in {self._layers} (it lists {strays[0]}, and oci.db "
                "does not); this home has its own entry now, and the layers of both are kept"
            )

    def _strays(self, database: Callable[[], AbstractContextManager[Database]]) -> list[str]:
        """The references of copies in the home's entry that its database does not know; none while that is lost."""
        if not (self._home / "oci.db").exists():
            return []
        with database() as opened:
            return opened.strays()

    def _is_part(self) -> bool:
        """Whether the layers folder is the home's own, whatever paths the two are mounted at."""
        inside = self._home / "layers"
        if inside == self._layers:
            return True
        try:
            return os.path.samestat(inside.lstat(), self._layers.stat())
        except OSError:
            return False

    def _is_known(self) -> bool:
        name = _name_of(self._home)
        try:
            return bool(name) and (self._folder / name / _PATH_FILE).read_bytes() == self._entry_text()
        except OSError:
            return False

    def _entry_text(self) -> bytes:
        try:
            microsandbox = self._layers.samefile(self._home / "layers")
        except OSError:
            microsandbox = False
        return (_MICROSANDBOX if microsandbox else b"") + b"\n" + os.fsencode(self._home)

    def _choose_name(self) -> str:
        name = _name_of(self._home)
        if name:
            path, _ = _read_entry(self._folder / name)
            # A home that was moved has left its place; where it still stands, this one is a copy of it.
            if path in ("", str(self._home)) or _name_of(path) != name or self._home.samefile(path):
                return name
        return self._new_name()

    def _new_name(self) -> str:
        name = os.urandom(8).hex()
        _write(self._home / _NAME_FILE, name.encode())
        return name

    def _fill(self, entry: Path, database: Callable[[], AbstractContextManager[Database]]) -> None:
        """Copies of all images of this home, taken over from the common folder if they lie there."""
        first = not any((self._folder / name / _PATH_FILE).exists() for name in _listed(self._folder))
        entry.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A new home has no images; the copies are another's.
        if not (self._home / "oci.db").exists():
            return
        common = [] if self._lies_in_a_home() else list(copies_in(self._flat))
        # A damaged database is rebuilt from them.
        for path in common if first else ():
            _write(entry / path.name, path.read_bytes())
        with database() as opened:
            names = opened.references()
            for name in names:
                opened.copy_again(name)
        mine = {copy_name(name) for name in names}
        for path in common:
            there = entry / path.name
            if path.name not in mine:
                there.unlink(missing_ok=True)
            elif there.exists() and there.read_bytes() == path.read_bytes():
                path.unlink(missing_ok=True)


class Elsewhere:
    """What the images of other homes reach in the same layers folder; making one raises LocalError."""

    def __init__(self, homes: Homes) -> None:
        self._needed = [(home, home.layers()) for home in homes.others()]

    @property
    def layers(self) -> set[str]:
        """The names of all these layers."""
        return set().union(*(layers for _, layers in self._needed))

    def remarks(self, going: set[str]) -> tuple[str, ...]:
        """Which homes that cannot be looked into keep layers that would go."""
        return tuple(
            f"{home.path or home.copies}: {counted(len(kept), 'layer')} kept for another home, which is not "
            f"reachable from here; {home.how_to_forget}"
            for home, layers in self._needed
            if (kept := layers & going) and not home.visible
        )


def _name_of(home: str | Path) -> str:
    """The name that is written down in a home, "" where there is none."""
    try:
        with open(os.path.join(home, _NAME_FILE), encoding="ascii") as file:
            text = file.read(100)
    except (OSError, ValueError):
        return ""
    return text if _NAME.fullmatch(text) else ""


def _read_entry(entry: Path) -> tuple[str, bool]:
    """Where a home was last, "" if unknown, and whether Microsandbox finds these layers there."""
    try:
        kind, _, path = (entry / _PATH_FILE).read_bytes().partition(b"\n")
    except OSError:
        return "", False
    return os.fsdecode(path), kind == _MICROSANDBOX


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
    try:
        draft.write_bytes(content)
        draft.chmod(0o600)
        draft.replace(path)
    except OSError as error:
        # Writing names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def _listed(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [entry.name for entry in folder.iterdir()]
    return []
