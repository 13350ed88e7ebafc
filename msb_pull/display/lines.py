"""Events as lines of text, for logs and pipes, and as plain values, for programs."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from msb_pull.ground import events
from msb_pull.ground.sizes import counted, format_size, scale
from msb_pull.ground.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.ground.events import Event

# A layer that takes longer than this gets a line of its own now and then.
_LONG = 10.0
# How much of the past the shown rate is taken from: long enough to be calm, short enough to be true.
_RATE_WINDOW = 3.0
_RATE_EARLIEST = 0.3


class PlainRenderer:
    """One line per change; a line every ten seconds for a layer that takes long.

    With ``several`` images under way, each line says which one it is about.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        progress: bool,
        verbosity: int,
        several: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._progress = progress
        self._verbosity = verbosity
        self._several = several
        self._clock = clock
        self._told: dict[str, float] = {}
        self._meters: dict[str, Meter] = {}
        self._seen: set[Event] = set()

    def draw(self, batch: Sequence[Event]) -> None:
        """Writes the lines that new events are worth."""
        for event in batch:
            for line in self._lines(event):
                self._write(line)

    def settle(self) -> None:
        """Lines are always whole."""

    def _lines(self, event: Event) -> list[str]:
        text = remark(event, self._verbosity, several=self._several)
        if text is not None:
            return self._once(event, text) if isinstance(event, events.Warned) else [text]
        if not self._progress:
            return []
        if isinstance(event, (events.LayerProgress, events.CheckProgress, events.ExportProgress)):
            return [self._named(event, text) for text in self._progressed(event)]
        if isinstance(event, events.PullPlanned):
            return [self._named(event, text) for text in _planned(event)]
        if isinstance(event, events.LayerDone):
            self._told.pop(event.digest, None)
        text = change(event)
        return [] if text is None else [self._named(event, text)]

    def _named(self, event: Event, text: str) -> str:
        return _of_image(event, text) if self._several else text

    def _once(self, event: Event, text: str) -> list[str]:
        if event in self._seen:
            return []
        self._seen.add(event)
        return [text]

    def _progressed(self, event: events.LayerProgress | events.CheckProgress | events.ExportProgress) -> list[str]:
        now = self._clock()
        meter = self._meters.setdefault(event.digest, Meter())
        meter.add(now, event.done)
        if now - self._told.setdefault(event.digest, now) < _LONG:
            return []
        self._told[event.digest] = now
        percent = 100 * event.done // event.total if event.total else 100
        layer = "export" if isinstance(event, events.ExportProgress) else f"layer {short_name(event.digest)}"
        if isinstance(event, events.CheckProgress) and event.unit != "bytes":
            return [f"{layer} {event.done}/{event.total} {event.unit} ({percent}%)"]
        rate = meter.rate(now)
        tail = f" {format_size(rate)}/s" if rate else ""
        return [f"{layer} {fraction(event.done, event.total)} ({percent}%){tail}"]


class Meter:
    """The rate of the last few seconds from absolute counts."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []

    def add(self, now: float, done: int) -> None:
        """Notes that ``done`` units were done at ``now``; a count that went back starts over."""
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, done))

    def rate(self, now: float) -> float | None:
        """Units per second; 0.0 when nothing moves any more, None when it is too early to tell."""
        # What was done before the window counts from its last moment, so that one sample is left of a long standstill.
        while len(self._samples) > 1 and now - self._samples[1][0] > _RATE_WINDOW:
            del self._samples[0]
        if not self._samples or now - self._samples[0][0] < _RATE_EARLIEST:
            return None
        since, before = self._samples[0]
        return (self._samples[-1][1] - before) / (now - since)


def remark(event: Event, verbosity: int, *, several: bool = False) -> str | None:
    """The line of an event that is shown in every mode of progress; None for all others.

    With ``several`` images under way, a warning says which one it is about.
    """
    if isinstance(event, events.Warned):
        text = visible(event.text)
        return f"warning: {_of_image(event, text) if several else text}"
    if isinstance(event, events.Logged):
        return visible(event.text) if event.level <= verbosity else None
    return None


def change(event: Event) -> str | None:
    """The line of an event that changes something, without its image; None for what is not worth one."""
    match event:
        case events.LayerDone(digest=digest):
            return f"layer {short(digest)} {outcome(event) or 'done ' + format_size(event.size)}"
        case events.LayerWaiting(digest=digest, holder=holder):
            return f"layer {short(digest)} waiting for {visible(holder)}"
        case events.StoreWaiting(holder=holder):
            return f"waiting for {visible(holder)}"
        case events.Delivering(image=image, place=place):
            return f"loading {visible(image)} into {visible(place)}"
        case events.Retrying(what=what, reason=reason, attempt=attempt, delay=delay, retries=retries):
            return f"retrying {visible(what)} in {delay:.1f}s (retry {attempt} of {retries}): {visible(reason)}"
        case events.Resolving(image=image):
            return f"resolving {visible(image)}"
    return None


def outcome(event: events.LayerDone) -> str:
    """What became of a layer that was not fetched, "" of one that was."""
    return "already here" if event.present else "made from one already here" if event.reused else ""


def headline(event: events.PullPlanned) -> str:
    """``Pulling docker.io/library/ubuntu:22.04 (linux/amd64, 3 layers, 29.5 MB)``."""
    size = format_size(sum(layer.size for layer in event.layers))
    return visible(f"Pulling {event.image} ({event.platform}, {counted(len(event.layers), 'layer')}, {size})")


def describe(event: Event) -> dict[str, Any]:
    """An event as a JSON object: its kind, and its fields with their unit in the name."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", "-", type(event).__name__).lower()
    return {"event": kind, **_fields(event, unit=getattr(event, "unit", "bytes"))}


def short(digest: str) -> str:
    """The first twelve hex digits of a digest."""
    return visible(digest.partition(":")[2][:12] or digest[:12])


def short_name(name: str) -> str:
    """The same of a layer's name in the store, with what tells its form from others of the same digest."""
    digest, plus, variant = name.partition("+")
    return short(digest) + visible(plus + variant)


def fraction(done: int, total: int) -> str:
    """``21.4/28.3 MB``: both in the unit of the whole."""
    divisor, unit = scale(total)
    digits = 0 if divisor == 1 else 1
    return f"{done / divisor:.{digits}f}/{total / divisor:.{digits}f} {unit}"


def _of_image(event: Event, text: str) -> str:
    """``text`` with the name of its image before it, unless it contains that."""
    image = visible(event.image)
    return text if image in text else f"{image}: {text}"


def _planned(event: events.PullPlanned) -> list[str]:
    if all(layer.present for layer in event.layers):
        return []
    return [headline(event)] + [f"layer {short(x.digest)} already here" for x in event.layers if x.present]


def _fields(values: Event | events.PlannedLayer, *, unit: str) -> dict[str, Any]:
    counts = {"size", "fetched"} | ({"done", "total"} if unit == "bytes" else set())
    result: dict[str, Any] = {}
    for name, value in values._asdict().items():
        if isinstance(value, tuple):
            value = [_fields(x, unit=unit) for x in value]
        result[f"{name}_bytes" if name in counts else name] = value
    return result
