"""What can happen while msb-pull works, as small frozen values.

Work calls an :data:`Observer` with them, from any thread; only the display draws. Counts are absolute bytes (never
steps), so an event that is dropped or repeated never falsifies what is shown.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Phase(enum.StrEnum):
    """What is being done to a layer right now."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"
    VERIFYING = "verifying"


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; ``image`` is the reference as the user will recognise it ("" when none)."""

    image: str


@dataclass(frozen=True, slots=True)
class Resolving(Event):
    """The manifest is being asked for."""


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One distinct layer of a plan; ``digest`` in full, ``size`` compressed bytes."""

    digest: str
    size: int
    present: bool


@dataclass(frozen=True, slots=True)
class PullPlanned(Event):
    """The manifest is known: these distinct layers, in manifest order, make the image."""

    platform: str
    layers: tuple[PlannedLayer, ...]


@dataclass(frozen=True, slots=True)
class LayerProgress(Event):
    """``done`` of ``total`` compressed bytes of a layer have arrived."""

    digest: str
    phase: Phase
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class LayerWaiting(Event):
    """Another process holds the layer; ``holder`` says which, as text for a person."""

    digest: str
    holder: str


@dataclass(frozen=True, slots=True)
class LayerDone(Event):
    """A layer is in the store. ``fetched`` is the number of bytes that came over the network in this run.

    ``reused``: it was made from one that the store had under another digest.
    """

    digest: str
    size: int
    fetched: int
    present: bool
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Retrying(Event):
    """A request broke and is tried again after ``delay`` seconds; ``what`` names it, without secrets.

    It is number ``attempt`` of at most ``retries`` since something last came.
    """

    what: str
    reason: str
    attempt: int
    delay: float
    retries: int


@dataclass(frozen=True, slots=True)
class ImageDone(Event):
    """An image is complete and recorded."""

    pinned: str
    size: int
    fetched: int
    seconds: float
    layers: int
    present: int


@dataclass(frozen=True, slots=True)
class ImageFailed(Event):
    """One of several images that are pulled together has failed after it was planned; its error is its outcome."""


@dataclass(frozen=True, slots=True)
class StoreWaiting(Event):
    """The whole store is locked by another process."""

    holder: str


@dataclass(frozen=True, slots=True)
class CheckProgress(Event):
    """``done`` of ``total`` bytes (entries when ``unit`` is "entries") of a layer have been verified."""

    digest: str
    done: int
    total: int
    unit: str = "bytes"


@dataclass(frozen=True, slots=True)
class ExportProgress(Event):
    """``done`` of ``total`` bytes of an image's files have been written elsewhere."""

    done: int
    total: int

    @property
    def digest(self) -> str:
        """What stands in the place of a layer's digest, so that an export is drawn as a layer is."""
        return "export"


@dataclass(frozen=True, slots=True)
class Delivering(Event):
    """The store has the image, and another program that gets it too (``place``: ``microsandbox``) is waited for."""

    place: str


@dataclass(frozen=True, slots=True)
class Removing(Event):
    """A layer is being removed, the ``number``-th of ``count``; ``name`` is that of its folder."""

    name: str
    number: int
    count: int


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something a person should know, once per text."""

    text: str


@dataclass(frozen=True, slots=True)
class Logged(Event):
    """A line for ``-v`` (level 1) or ``-vv`` (level 2); secrets are already redacted."""

    level: int
    text: str


Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An observer that does nothing."""
