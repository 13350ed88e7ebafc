"""Lock files: what names of images meant when they were locked, for each platform that was asked for.

A person's file beside a project, in TOML. The locks that keep processes apart are in ``store/locks``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msb_pull.ground.errors import LocalError, UsageError, local_error
from msb_pull.ground.places import read_regular
from msb_pull.ground.text import in_ascii, visible
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.platform import Platform
from msb_pull.image.reference import Reference
from msb_pull.store.locks import flock
from msb_pull.store.staging import Places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VERSION = 1
_HEADER = """\
# What `msb-pull pull --lock` has found; `msb-pull pull --locked` pulls exactly that. Not to be edited by hand.
version = 1
"""
_INDEX = "index"
# Ten thousand images for three platforms.
_MAX_BYTES = 4 << 20
_RENEW = "restore it, or remove it and lock the images again"


@dataclass(frozen=True, slots=True)
class LockedImage:
    """What a name means: ``index``, None where it is that of a lone manifest, and ``manifests`` by platform."""

    index: Digest | None
    manifests: Mapping[str, Digest]

    def joined(self, other: LockedImage) -> LockedImage:
        """This, with the platforms of ``other`` as well where both are of one index."""
        if self.index is None or self.index != other.index:
            return self
        return replace(self, manifests={**other.manifests, **self.manifests})


@dataclass(frozen=True, slots=True)
class LockChange:
    """One digest that is another than it was in a lock file, or is new: of a platform, or of the index (None)."""

    image: str
    platform: str | None
    old: Digest | None
    new: Digest | None

    def __str__(self) -> str:
        """For a person, in words that are also true of a change that is only planned."""
        what = f"{self.image} {self.platform or 'index'}"
        if self.old is None:
            return f"{what}: new, {self.new}"
        return f"{what}: gone, was {self.old}" if self.new is None else f"{what}: {self.old} -> {self.new}"


class LockFile:
    """The images of one lock file, by their canonical names."""

    def __init__(self, path: Path, images: Mapping[str, LockedImage]) -> None:
        self.path = path
        self.images = dict(images)

    @classmethod
    def load(cls, path: Path, *, create: bool = False) -> LockFile:
        """Reads a lock file; with ``create`` one that is missing has no images.

        Raises UsageError that names the line of what is wrong with it, LocalError where it cannot be read, or where one
        that may be written (``create``) could not be replaced: a rename would take the place of a pipe or a device.
        """
        shown = visible(str(path))
        if create and path.exists() and not path.is_file():
            raise LocalError(f"{shown}: not a file", hint="choose another place with --lock")
        try:
            data = read_regular(path, _MAX_BYTES)
        except FileNotFoundError:
            if not create:
                hint = f"`msb-pull pull --lock {shown} IMAGE...` writes it"
                raise UsageError(f"{shown}: no such lock file", hint=hint) from None
            if not path.parent.is_dir():
                raise LocalError(f"{visible(str(path.parent))}: no such folder") from None
            data = b""
        except OSError as error:
            raise LocalError(f"{shown}: cannot read the lock file", cause=error.strerror) from error
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{shown}: larger than a lock file may be ({_MAX_BYTES} bytes)", hint=_RENEW)
        return cls(path, _Reader(shown, data).images() if data.strip() or not create else {})

    def of(self, name: str) -> LockedImage:
        """The image of this canonical name; raises UsageError where it is not listed."""
        image = self.images.get(name)
        if image is None:
            hint = f"`msb-pull pull --lock {visible(str(self.path))} IMAGE` adds it"
            raise UsageError(f"{name}: not in {visible(str(self.path))}", hint=hint)
        return image

    def manifest(self, name: str, platform: Platform) -> Digest:
        """The manifest of an image for a platform; raises UsageError where it is not listed."""
        image = self.of(name)
        digest = image.manifests.get(str(platform.normalized()))
        if digest is None:
            raise UsageError(
                f"{name}: not in {visible(str(self.path))} for {platform.normalized()}",
                cause=f"it is there for {', '.join(sorted(image.manifests))}",
                hint="add it with --lock instead of --locked, or choose another --platform",
            )
        return digest

    def text(self) -> str:
        """The file: sorted, so that what is the same gives the same bytes."""
        parts = [_HEADER]
        for name, image in sorted(self.images.items()):
            keys = {_INDEX: image.index} if image.index else {}
            lines = [f'"{platform}" = "{digest}"' for platform, digest in sorted(image.manifests.items())]
            # A canonical name has nothing in it that TOML would want escaped.
            parts.append("\n".join([f'\n[images."{name}"]', *(f'{key} = "{keys[key]}"' for key in keys), *lines, ""]))
        return "".join(parts)


def update(path: Path, found: Mapping[str, LockedImage], *, write: bool = True) -> list[LockChange]:
    """Puts ``found`` into a lock file, beside all else that is in it by then, and returns what is new.

    The file is the old one or the new one at any moment, and stays untouched where nothing changes, or without
    ``write``. Raises UsageError, LocalError.
    """
    # Where a link leads is meant, as with any program that simply opens the file.
    path = Path(os.path.realpath(path))
    try:
        with _alone(path.parent):
            lock = LockFile.load(path, create=True)
            changes = _merge(lock, found)
            text = lock.text().encode("ascii")
            if write and changes:
                _write(path, text)
    except OSError as error:
        raise local_error(error, path.parent) from error
    return changes


def _merge(lock: LockFile, found: Mapping[str, LockedImage]) -> list[LockChange]:
    changes = []
    for name, image in sorted(found.items()):
        held = lock.images.get(name)
        lock.images[name] = merged = image.joined(held) if held else image
        if held and held.index != merged.index:
            changes.append(LockChange(name, None, held.index, merged.index))
        for platform in sorted({*merged.manifests, *(held.manifests if held else ())}):
            old, new = held.manifests.get(platform) if held else None, merged.manifests.get(platform)
            if old != new:
                changes.append(LockChange(name, platform, old, new))
    return changes


def _write(path: Path, data: bytes) -> None:
    places = Places(path.parent, ".msb-pull-lock")
    # What a killed run has left.
    places.sweep()
    with places.private(".msb-pull-lock") as draft:
        draft.write_bytes(data)
        os.replace(draft, path)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps others who write a lock file into this folder waiting: without that, one would lose what another adds."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class _Reader:
    """Takes a lock file apart; whatever is wrong with it is an error that names the line."""

    def __init__(self, shown: str, data: bytes) -> None:
        self._shown = shown
        self._data = data
        self._text = ""

    def images(self) -> dict[str, LockedImage]:
        """Raises UsageError."""
        document = self._parse()
        if (version := document.pop("version", None)) != _VERSION or isinstance(version, bool):
            what = f"version {in_ascii(str(version), 20)}" if version is not None else "no version"
            self._refuse(f"it has {what}, this program knows {_VERSION}", "version", hint="update msb-pull")
        images = document.pop("images", {})
        for key in document:
            self._refuse(f"unknown key {_quoted(key)}", key)
        if not isinstance(images, dict):
            self._refuse("images must be a table", "images")
        return {name: self._image(name, image) for name, image in images.items()}

    def _parse(self) -> dict[str, Any]:
        # Few users have such a file.
        import tomli

        try:
            self._text = self._data.decode()
            return tomli.loads(self._text)
        except UnicodeDecodeError as error:
            line = self._data.count(b"\n", 0, error.start) + 1
            raise UsageError(f"{self._shown}, line {line}: not text in UTF-8", hint=_RENEW) from None
        except (ValueError, RecursionError) as error:
            # tomli says at which line.
            raise UsageError(f"{self._shown}: not valid TOML", cause=str(error), hint=_RENEW) from None

    def _image(self, name: str, image: Any) -> LockedImage:
        try:
            canonical = str(Reference.parse(name))
        except UsageError as error:
            self._refuse(error.message, name)
        if canonical != name:
            self._refuse(f"{_quoted(name)} is not the whole name of an image", name, hint=f"write {canonical}")
        if not isinstance(image, dict):
            self._refuse(f"{_quoted(name)} must be a table", name)
        digests = {key: self._digest(name, key, value) for key, value in image.items()}
        index = digests.pop(_INDEX, None)
        if not digests:
            self._refuse(f"{_quoted(name)} has no platform", name)
        if index is None and len(set(digests.values())) > 1:
            self._refuse(f"{_quoted(name)} has several manifests and no index", name)
        return LockedImage(index, digests)

    def _digest(self, name: str, key: str, value: Any) -> Digest:
        if key != _INDEX:
            try:
                platform = str(Platform.parse(key))
            except UsageError as error:
                self._refuse(error.message, name, key)
            if platform != key:
                self._refuse(f"{_quoted(key)} is not how a platform is written", name, key, hint=f"write {platform}")
        if not isinstance(value, str):
            self._refuse(f"{_quoted(key)} must be a digest", name, key)
        try:
            return Digest.parse(value)
        except InvalidDigest as error:
            self._refuse(str(error), name, key)

    def _refuse(self, what: str, *keys: str, hint: str = _RENEW) -> NoReturn:
        """Raises UsageError for what stands at these keys, of which each lies in the table of the one before."""
        start = at = 0
        for key in keys:
            written = next((x for x in (f'"{key}"', f"'{key}'", key) if self._text.find(x, at) >= 0), "")
            start = self._text.find(written, at)
            at = start + len(written)
        line = self._text.count("\n", 0, start) + 1
        raise UsageError(f"{self._shown}, line {line}: {what}", hint=hint)


def _quoted(text: str) -> str:
    return f'"{in_ascii(text, 200)}"'
