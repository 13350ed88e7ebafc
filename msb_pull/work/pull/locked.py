"""Pulls beside a lock file: what its images are pinned to, and what it is to say of those that were looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.errors import UsageError
from msb_pull.ground.text import visible
from msb_pull.image.digest import Digest
from msb_pull.image.platform import Platform
from msb_pull.image.reference import parse_argument
from msb_pull.work.lockfile import LockedImage, LockFile
from msb_pull.work.pull.plan import Pin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from msb_pull.work.pull.plan import PullResult


@dataclass(frozen=True, slots=True)
class LockPlan:
    """A lock file beside a pull: the images to pull, what they are pinned to, and what is to be written, if any is."""

    path: Path
    images: Sequence[str]
    pins: Mapping[str, Pin]
    locking: Locking | None = None


def plan_locked(path: Path, images: Sequence[str], platform: Platform, default_registry: str) -> LockPlan:
    """Pins images, or all of the lock file where none is named, to what it says, and nothing else.

    Raises UsageError for the first one that it does not list, and for what is wrong with it; LocalError.
    """
    lock = LockFile.load(path)
    images = _known(lock, images, all_of_it=True)
    pins = {}
    for name in _names(images, default_registry):
        pins[name] = _exact(lock.of(name), lock.manifest(name, platform), platform)
    return LockPlan(path, images, pins)


def plan_locking(
    path: Path,
    images: Sequence[str],
    platform: Platform,
    also: Sequence[Platform],
    default_registry: str,
    *,
    upgrade: bool,
) -> LockPlan:
    """Plans to lock images for ``platform``, which is pulled, and for ``also``; see :class:`Locking`.

    With ``upgrade`` and no image all of the lock file is meant. Raises UsageError, LocalError.
    """
    lock = LockFile.load(path, create=True)
    images = _known(lock, images, all_of_it=upgrade)
    locking = Locking(lock, _names(images, default_registry), platform, also, upgrade=upgrade)
    return LockPlan(path, images, locking.pins, locking)


def _known(lock: LockFile, images: Sequence[str], *, all_of_it: bool) -> Sequence[str]:
    found = images or (sorted(lock.images) if all_of_it else ())
    if not found:
        raise UsageError(f"{visible(str(lock.path))}: there is no image in it, and none was named")
    return found


def _names(images: Sequence[str], default_registry: str) -> list[str]:
    """The canonical names of images in registries; raises UsageError for others."""
    names = []
    for text in images:
        reference = parse_argument(text, default_registry).reference
        if reference is None:
            raise UsageError(f"{visible(text)}: only images from registries can be locked")
        names.append(str(reference))
    return names


def _exact(image: LockedImage, manifest: Digest, platform: Platform) -> Pin:
    # The config of a lone manifest alone says what it is for.
    return Pin(manifest, image.index, platform.normalized() if image.index else None)


class Locking:
    """What is to be in a lock file when images have been pulled for ``platform``, and looked up for ``also``.

    What it says already stays, and is pulled, unless it is to be renewed (``upgrade``); what it lacks is looked up: in
    the index that it names, where it knows the image, else by the tag.
    """

    def __init__(
        self, lock: LockFile, names: Sequence[str], platform: Platform, also: Sequence[Platform], *, upgrade: bool
    ) -> None:
        self._lock = lock
        self._platform = platform.normalized()
        self._also = [x.normalized() for x in also]
        self._upgrade = upgrade
        self.pins = {name: self._pin(name) for name in names}

    def found(self, results: Mapping[str, PullResult]) -> dict[str, LockedImage]:
        """What the file is to say of the images that were pulled, by their names; nothing of what stays."""
        return {name: self._found(name, result) for name, result in results.items() if result.top is not None}

    def _pin(self, name: str) -> Pin:
        image = self._lock.images.get(name)
        if image is None or self._upgrade:
            return Pin(also=self._others(image.manifests if image else ()))
        others = tuple(x for x in self._others(()) if str(x) not in image.manifests)
        if (manifest := image.manifests.get(str(self._platform))) is not None:
            pin = _exact(image, manifest, self._platform)
            return Pin(pin.manifest, pin.index, pin.platform, others)
        return Pin(index=image.index or next(iter(image.manifests.values())), also=others)

    def _others(self, listed: Iterable[str]) -> tuple[Platform, ...]:
        """The platforms beside the one to pull: those of one image must be of one index."""
        wanted = {str(x): x for x in (*self._also, *map(Platform.parse, listed))}
        return tuple(x for text, x in sorted(wanted.items()) if x != self._platform)

    def _found(self, name: str, result: PullResult) -> LockedImage:
        assert result.digest is not None and result.top is not None
        held = self._lock.images.get(name)
        new = {str(self._platform): result.digest, **result.also}
        manifests = {platform: Digest.parse(digest) for platform, digest in new.items()}
        if held is not None and not self._upgrade:
            return LockedImage(held.index, {**held.manifests, **manifests})
        return LockedImage(Digest.parse(result.top) if result.top != result.digest else None, manifests)
