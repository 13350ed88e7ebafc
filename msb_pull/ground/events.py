"""What can happen while msb-pull works, as named tuples: a data class takes seven times as long to be made at a start.

The ``image`` of each is the reference as the user will recognise it ("" when none). As with all tuples, two of
different kinds may be equal: ask for the kind first.

Work calls an :data:`Observer` with them, from any thread; only the display draws. Counts are absolute bytes (never
steps), so an event that is dropped or repeated never falsifies what is shown.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple


class Phase(enum.StrEnum):
    """What is being done to a layer right now."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"
    VERIFYING = "verifying"


class Resolving(NamedTuple):
    """The manifest is being asked for."""

    image: str


class PlannedLayer(NamedTuple):
    """One distinct layer of a plan; ``digest`` in full, ``size`` compressed bytes."""

    digest: str
    size: int
    present: bool


class PullPlanned(NamedTuple):
    """The manifest is known: these distinct layers, in manifest order, make the image."""

    image: str
    platform: str
    layers: tuple[PlannedLayer, ...]


class LayerProgress(NamedTuple):
    """``done`` of ``total`` compressed bytes of a layer have arrived."""

    image: str
    digest: str
    phase: Phase
    done: int
    total: int


class LayerWaiting(NamedTuple):
    """Another process holds the layer; ``holder`` says which, as text for a person."""

    image: str
    digest: str
    holder: str


class LayerDone(NamedTuple):
    """A layer is in the store. ``fetched`` is the number of bytes that came over the network in this run.

    ``reused``: it was made from one that the store had under another digest.
    """

    image: str
    digest: str
    size: int
    fetched: int
    present: bool
    reused: bool = False


class Retrying(NamedTuple):
    """A request broke and is tried again after ``delay`` seconds; ``what`` names it, without secrets.

    It is number ``attempt`` of at most ``retries`` since something last came.
    """

    image: str
    what: str
    reason: str
    attempt: int
    delay: float
    retries: int


class ImageDone(NamedTuple):
    """An image is complete and recorded."""

    image: str
    pinned: str
    size: int
    fetched: int
    seconds: float
    layers: int
    present: int


class ImageFailed(NamedTuple):
    """One of several images that are pulled together has failed after it was planned; its error is its outcome."""

    image: str


class StoreWaiting(NamedTuple):
    """The whole store is locked by another process."""

    image: str
    holder: str


class CheckProgress(NamedTuple):
    """``done`` of ``total`` bytes (entries when ``unit`` is "entries") of a layer have been verified."""

    image: str
    digest: str
    done: int
    total: int
    unit: str = "bytes"


class ExportProgress(NamedTuple):
    """``done`` of ``total`` bytes of an image's files have been written elsewhere."""

    image: str
    done: int
    total: int

    @property
    def digest(self) -> str:
        """What stands in the place of a layer's digest, so that an export is drawn as a layer is."""
        return "export"


class Delivering(NamedTuple):
    """The store has the image, and another program that gets it too (``place``: ``microsandbox``) is waited for."""

    image: str
    place: str


class Removing(NamedTuple):
    """A layer is being removed, the ``number``-th of ``layers``; ``name`` is that of its folder."""

    image: str
    name: str
    number: int
    layers: int


class Warned(NamedTuple):
    """Something a person should know, once per text."""

    image: str
    text: str


class Logged(NamedTuple):
    """A line for ``-v`` (level 1) or ``-vv`` (level 2); secrets are already redacted."""

    image: str
    level: int
    text: str


Event = (
    Resolving
    | PullPlanned
    | LayerProgress
    | LayerWaiting
    | LayerDone
    | Retrying
    | ImageDone
    | ImageFailed
    | StoreWaiting
    | CheckProgress
    | ExportProgress
    | Delivering
    | Removing
    | Warned
    | Logged
)
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An observer that does nothing."""
