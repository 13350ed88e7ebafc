"""Which stored images are meant: by name, or by filters ``key=value``, of which each key must hold with any value."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, NotFoundError, UsageError
from msb_pull.ground.running import Cancel
from msb_pull.ground.sizes import counted
from msb_pull.image.platform import Platform
from msb_pull.store.locks import Busy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:(\d+)([smhdw]))+", re.ASCII)
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images to take; an empty field takes all. ``before`` is the newest time of a pull that still counts."""

    references: tuple[str, ...] = ()
    platforms: tuple[Platform, ...] = ()
    before: tuple[datetime, ...] = ()
    incomplete: tuple[bool, ...] = ()

    def takes(self, image: StoredImage, store: Store) -> bool:
        """Whether all kinds of filters that were given let the image pass."""
        return (
            (not self.references or any(_named(image.reference, pattern) for pattern in self.references))
            and (not self.platforms or (image.platform and image.platform.normalized()) in self.platforms)
            and (not self.before or image.pulled_at <= max(self.before))
            and (not self.incomplete or self._lacks_layers(image, store) in self.incomplete)
        )

    @staticmethod
    def _lacks_layers(image: StoredImage, store: Store) -> bool:
        return not all(store.has_directory(layer.key) for layer in image.layers)


def stored_images(store: Store, references: Sequence[str]) -> list[StoredImage]:
    """The named images as recorded, all of them when none is named; raises NotFoundError."""
    with store.database(create=False) as database:
        if not references:
            return database.images()
        images = []
        for reference in references:
            image = database.find(reference)
            if image is None:
                raise NotFoundError(f"{reference}: not in the store", hint="`msb-pull ls` shows what is")
            images.append(image)
        return images


def still_stored(store: Store, references: Iterable[str]) -> list[StoredImage]:
    """Those of the named images that have not been removed meanwhile, as recorded."""
    with store.database(create=False) as database:
        return [image for reference in references if (image := database.find(reference)) is not None]


def lost_database(store: Store) -> ContentError | None:
    """What to say where layers lie and nothing is left that tells of which images; None anywhere else.

    None, too, while another command is at work on the store: it may be the first pull.
    """
    if lost_images(store) is None:
        return None
    try:
        # The first pull records its image after the last layer.
        with store.lock_exclusive(lambda holder: None, Cancel(), wait=False):
            return lost_images(store)
    except Busy:
        return None


def lost_images(store: Store) -> ContentError | None:
    """The same for a caller that holds the store alone."""
    # Another home may need the layers; its images are no business of this one.
    if store.has_images or store.homes.others() or not (layers := store.layers_there()):
        return None
    return ContentError(
        f"{store.database_path}: missing, with {counted(len(layers), 'layer')} left in {store.layers}",
        hint="restore it from a copy, or pull the images again: the layers that are here will not be fetched again",
    )


def parse_filters(texts: Sequence[str], now: datetime | None = None) -> Selection:
    """Parses ``reference=GLOB``, ``platform=OS/ARCH``, ``until=24h``, ``incomplete=true``; raises UsageError."""
    now = now or datetime.now(UTC)
    references: list[str] = []
    platforms: list[Platform] = []
    before: list[datetime] = []
    incomplete: list[bool] = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise UsageError(f"--filter {text!r}: not KEY=VALUE", hint=_KEYS)
        if key == "reference":
            references.append(value)
        elif key == "platform":
            platforms.append(Platform.parse(value))
        elif key == "until":
            before.append(_moment(now, value))
        elif key == "incomplete" and value.lower() in _TRUTH:
            incomplete.append(_TRUTH[value.lower()])
        else:
            raise UsageError(f"--filter {text!r}: unknown filter", hint=_KEYS)
    return Selection(tuple(references), tuple(platforms), tuple(before), tuple(incomplete))


_KEYS = "filters are reference=GLOB, platform=OS/ARCH, until=24h and incomplete=true"


def _moment(now: datetime, text: str) -> datetime:
    """The time as long before ``now`` as ``text`` says; raises UsageError."""
    if not _DURATION.fullmatch(text):
        raise UsageError(f"--filter until={text}: not a duration", hint="write it like 90m, 24h, 7d or 1h30m")
    try:
        # ValueError is for numbers of thousands of digits.
        seconds = sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhdw])", text))
        return now - timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise UsageError(f"--filter until={text[:40]}: too long") from None


def _named(reference: str, pattern: str) -> bool:
    """Whether a glob means the image, by its whole name or as people write it: without Docker Hub or tag."""
    names = {reference}
    for prefix in ("docker.io/library/", "docker.io/"):
        if reference.startswith(prefix):
            names.add(reference.removeprefix(prefix))
    for name in tuple(names):
        head = name.partition("@")[0]
        colon = head.rfind(":")
        names.add(head[:colon] if colon > head.rfind("/") else head)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
