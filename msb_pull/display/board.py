"""What the live rows say: the state of every layer under way, laid out for a width, without a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull.display.gauge import gauge
from msb_pull.display.lines import Meter, fraction, headline, outcome, short, short_name
from msb_pull.ground import events
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.ground.events import Event

    _Progress = events.LayerProgress | events.CheckProgress | events.ExportProgress
    _OfLayer = _Progress | events.LayerWaiting | events.LayerDone

# A row is a list of pieces: text and the look it has ("" for plain).
Row = list[tuple[str, str]]

_LABEL = 12
_BAR_MIN, _BAR_MAX = 6, 40
# Free at the right edge, so that a window just made a little narrower cuts nothing off.
_MARGIN = 2
# Columns that follow the sizes: two blanks and the rate, and then two more and the time left.
_RATE = 2 + 11
_RATE_AND_TIME = _RATE + 2 + 7


@dataclass(slots=True)
class _Layer:
    """A layer under way. ``unit`` is that of ``done`` and ``total``; ``note`` stands in place of a bar."""

    done: int = 0
    total: int = 0
    phase: events.Phase = events.Phase.WAITING
    unit: str = "bytes"
    note: str = ""
    finished: bool = False
    meter: Meter = field(default_factory=Meter)

    @property
    def rank(self) -> int:
        """Layers that move come first when there is no room for all."""
        if self.note or self.phase is events.Phase.WAITING:
            return 1
        return 2 if self.done >= self.total else 0


@dataclass(slots=True)
class _Image:
    """The layers of an image by digest, lowest first, and its lines that wait until it has ended."""

    layers: dict[str, _Layer] = field(default_factory=dict)
    lines: list[Row] = field(default_factory=list)


class Board:
    """Takes events, gives finished lines once and live rows again and again.

    With ``several`` images under way, rows stand below the name of their image, and its finished lines come together
    when it has ended.
    """

    def __init__(self, *, jobs: int, unicode: bool, color: bool, several: bool = False) -> None:
        self._jobs = jobs
        self._several = several
        self._unicode = unicode
        self._color = color
        self._images: dict[str, _Image] = {}
        self._status = ""
        self._planned = False
        self._meter = Meter()
        self._finished: list[Row] = []

    def take(self, event: Event, now: float) -> None:
        """Brings the board up to date."""
        match event:
            case events.Resolving(image=image):
                self._status = f"Resolving {visible(image)}"
            case events.StoreWaiting(holder=holder):
                self._status = f"Waiting for {visible(holder)}"
            case events.Delivering(image=image, place=place):
                self._status = f"Loading {visible(image)} into {visible(place)}"
            case events.Removing(name=name, number=number, layers=count):
                self._status = f"Removing layer {short_name(name)} ({number} of {count})"
            case events.PullPlanned():
                self._plan(event)
            case events.LayerProgress() | events.CheckProgress() | events.ExportProgress():
                self._progress(event, now)
            case events.LayerWaiting(holder=holder):
                self._layer(event).note = f"waiting for {visible(holder)}"
            case events.LayerDone():
                self._done(event)
            case events.ImageDone() | events.ImageFailed():
                self._end(event)

    def finished(self) -> list[Row]:
        """Lines that belong above the live rows for good, each given once."""
        lines, self._finished = self._finished, []
        return lines

    def settle(self) -> None:
        """Forgets what is under way, unless that may be more than what has come to an end."""
        if not self._several:
            self.clear()

    def clear(self) -> None:
        """Forgets everything under way."""
        self._images.clear()
        self._planned = False
        self._status = ""
        self._meter = Meter()

    def rows(self, width: int, height: int, now: float) -> list[Row]:
        """The live rows: at most one for each job and one for the total, and never more than the terminal has."""
        shown = self._shown(height)
        if not shown:
            return [_plain_row(self._status, width)] if self._status else []
        layers = self._distinct()
        whole = _whole(layers)
        layout = _Layout.of([layer for _, _, layer in shown] + [whole], width)
        heading, rows = "", list[Row]()
        for name, digest, layer in shown:
            if name != heading and height > 3:
                rows.append(_plain_row(visible(name), width))
                heading = name
            rows.append(self._layer_row(name, digest, layer, layout, now))
        # A verification learns the size of a layer when it comes to it: the total is not known before.
        if self._planned and len(layers) > 1 and height > 2:
            left = sum(not layer.finished for layer in layers)
            tail = "" if whole.done < whole.total else f"{counted(left, 'layer')} to finish"
            rows.append(self._bar_row("total", whole, self._meter.rate(now), tail, layout))
        return rows

    def _shown(self, height: int) -> list[tuple[str, str, _Layer]]:
        """Image, digest and state of the layers that there is room for, image by image, lowest first."""
        active = [
            (name, digest, layer)
            for name, image in self._images.items()
            for digest, layer in image.layers.items()
            if _is_active(layer)
        ]
        room, headed, chosen = max(1, height - 2), {""}, set[tuple[str, str]]()
        for name, digest, _ in sorted(active, key=lambda item: item[2].rank):
            rows = 1 + (name not in headed)
            if len(chosen) < self._jobs and (rows <= room or not chosen):
                room -= rows
                headed.add(name)
                chosen.add((name, digest))
        return [item for item in active if item[:2] in chosen]

    def _plan(self, event: events.PullPlanned) -> None:
        if not self._several:
            self.clear()
        if all(layer.present for layer in event.layers):
            return
        self._planned = True
        # What an interrupted pull left is removed first, which takes its time on a busy disk.
        self._status = "Preparing"
        self._say(event, [(headline(event), "")])
        for layer in event.layers:
            if layer.present:
                self._say(event, self._checked(layer.digest))
            else:
                self._image(event).layers[layer.digest] = _Layer(total=layer.size)

    def _end(self, event: events.Event) -> None:
        if not self._several:
            self.clear()
            return
        image, self._status = self._image(event), ""
        self._finished += image.lines
        image.lines = []
        if isinstance(event, events.ImageFailed):
            image.layers.clear()

    def _progress(self, event: _Progress, now: float) -> None:
        self._status = ""
        layer = self._layer(event)
        layer.done, layer.total = event.done, event.total
        if isinstance(event, events.LayerProgress):
            layer.phase, layer.note = event.phase, ""
        else:
            layer.phase = events.Phase.VERIFYING
            layer.unit = event.unit if isinstance(event, events.CheckProgress) else "bytes"
            layer.finished = layer.finished or event.done >= event.total
        layer.meter.add(now, event.done)
        self._meter.add(now, sum(x.done for x in self._distinct()))

    def _done(self, event: events.LayerDone) -> None:
        layer = self._layer(event)
        self._status = ""
        layer.finished, layer.done, layer.total = True, event.size, event.size
        self._say(event, self._checked(event.digest, outcome(event) or f"{format_size(event.size):>8}"))

    def _image(self, event: events.Event) -> _Image:
        return self._images.setdefault(event.image if self._several else "", _Image())

    def _layer(self, event: _OfLayer) -> _Layer:
        return self._image(event).layers.setdefault(event.digest, _Layer())

    def _say(self, event: events.Event, row: Row) -> None:
        (self._image(event).lines if self._several else self._finished).append(row)

    def _distinct(self) -> list[_Layer]:
        """Each layer once: of one that several images have, the one that is furthest."""
        found: dict[str, _Layer] = {}
        for image in self._images.values():
            for digest, layer in image.layers.items():
                if digest not in found or (layer.finished, layer.done) > (found[digest].finished, found[digest].done):
                    found[digest] = layer
        return list(found.values())

    def _checked(self, digest: str, size: str = "") -> Row:
        return [("✓" if self._unicode else "*", "green"), (f" {short(digest)}  {size or 'already here'}", "")]

    def _layer_row(self, name: str, digest: str, layer: _Layer, layout: _Layout, now: float) -> Row:
        if layer.note:
            return _plain_row(f"  {short(digest):<{_LABEL}}  {layer.note}", layout.width)
        tail = "" if layer.done < layer.total else self._after_the_last_byte(name, digest, layer)
        return self._bar_row(short(digest), layer, layer.meter.rate(now), tail, layout)

    def _after_the_last_byte(self, name: str, digest: str, layer: _Layer) -> str:
        if layer.phase is events.Phase.VERIFYING:
            return "verifying"
        # Layers are published bottom first, whatever the order in which they arrive.
        for lower, other in self._images[name].layers.items():
            if lower == digest:
                return "unpacking"
            if not other.finished:
                return "waiting its turn"
        return "unpacking"

    def _bar_row(self, label: str, layer: _Layer, rate: float | None, tail: str, layout: _Layout) -> Row:
        """Label, bar, sizes and, where there is room, rate and time left; ``tail`` stands in their place."""
        start = f"  {label:<{_LABEL}}  "
        if not layout.bar:
            percent = 100 * layer.done // layer.total if layer.total else 100
            return _plain_row(f"{start}{percent:>3}%", layout.width)
        speed = "" if rate is None else f"{format_size(rate)}/s" if layer.unit == "bytes" else f"{rate:,.0f}/s"
        left = _clock((layer.total - layer.done) / rate) if rate else "-:--:--"
        ends = {_RATE_AND_TIME: f"  {speed:>11}  {left}", _RATE: f"  {speed:>11}", 0: ""}
        end = f"  {tail}"[: layout.end] if tail else ends[layout.end]
        bar = self._bar(layout.bar, layer.done, layer.total)
        return [(start, ""), *bar, (f"  {_sizes(layer):>{layout.sizes}}{end}", "")]

    def _bar(self, length: int, done: int, total: int) -> Row:
        full, rest = gauge(length, done, total, unicode=self._unicode, color=self._color)
        return [(full, "cyan" if self._unicode else ""), (rest, "dim" if self._unicode else "")]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How wide the parts of all rows of one picture are; a bar of width 0 means a percentage instead."""

    width: int
    sizes: int
    end: int
    bar: int

    @classmethod
    def of(cls, layers: Sequence[_Layer], width: int) -> _Layout:
        """The layout with the longest end that leaves room for a bar."""
        sizes = max([13, *(len(_sizes(layer)) for layer in layers)])
        for end in (_RATE_AND_TIME, _RATE, 0):
            room = width - _MARGIN - (2 + _LABEL + 2) - (2 + sizes) - end
            if room >= _BAR_MIN:
                return cls(width, sizes, end, min(room, _BAR_MAX))
        return cls(width, sizes, 0, 0)


def _sizes(layer: _Layer) -> str:
    if layer.unit == "bytes":
        return fraction(layer.done, layer.total)
    return f"{layer.done}/{layer.total} {layer.unit}"


def _whole(layers: Sequence[_Layer]) -> _Layer:
    return _Layer(sum(layer.done for layer in layers), sum(layer.total for layer in layers), unit=layers[0].unit)


def _plain_row(text: str, width: int) -> Row:
    return [(text[: max(width - _MARGIN, 1)], "")]


def _is_active(layer: _Layer) -> bool:
    return not layer.finished and (bool(layer.note) or layer.phase is not events.Phase.WAITING)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(min(seconds, 359_999)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
