"""What the live rows say: the state of every layer under way, laid out for a width, without a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull.display.lines import Meter, fraction, headline, short
from msb_pull.ground import events
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.ground.events import Event

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


class Board:
    """Takes events, gives finished lines once and live rows again and again."""

    def __init__(self, *, jobs: int, unicode: bool, color: bool) -> None:
        self._jobs = jobs
        self._unicode = unicode
        self._color = color
        self._layers: dict[str, _Layer] = {}
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
            case events.PullPlanned():
                self._plan(event)
            case events.LayerProgress() | events.CheckProgress():
                self._progress(event, now)
            case events.LayerWaiting(digest=digest, holder=holder):
                self._layer(digest).note = f"waiting for {visible(holder)}"
            case events.LayerDone():
                self._done(event)
            case events.ImageDone():
                self.clear()

    def finished(self) -> list[Row]:
        """Lines that belong above the live rows for good, each given once."""
        lines, self._finished = self._finished, []
        return lines

    def clear(self) -> None:
        """Forgets everything under way."""
        self._layers.clear()
        self._planned = False
        self._status = ""
        self._meter = Meter()

    def rows(self, width: int, height: int, now: float) -> list[Row]:
        """The live rows: at most one for each job and one for the total, and never more than the terminal has."""
        active = [(digest, layer) for digest, layer in self._layers.items() if _is_active(layer)]
        if not active:
            return [_plain_row(self._status, width)] if self._status else []
        room = max(1, min(self._jobs, height - 2))
        shown = {digest for digest, _ in sorted(active, key=lambda item: item[1].rank)[:room]}
        whole = self._whole()
        layout = _Layout.of([layer for digest, layer in active if digest in shown] + [whole], width)
        rows = [self._layer_row(digest, layer, layout, now) for digest, layer in active if digest in shown]
        # A verification learns the size of a layer when it comes to it: the total is not known before.
        if self._planned and len(self._layers) > 1 and height > 2:
            left = sum(not layer.finished for layer in self._layers.values())
            tail = "" if whole.done < whole.total else f"{counted(left, 'layer')} to finish"
            rows.append(self._bar_row("total", whole, self._meter.rate(now), tail, layout))
        return rows

    def _plan(self, event: events.PullPlanned) -> None:
        self.clear()
        if all(layer.present for layer in event.layers):
            return
        self._planned = True
        # What an interrupted pull left is removed first, which takes its time on a busy disk.
        self._status = "Preparing"
        self._finished.append([(headline(event), "")])
        for layer in event.layers:
            if layer.present:
                self._finished.append(self._checked(layer.digest, "already here"))
            else:
                self._layers[layer.digest] = _Layer(total=layer.size)

    def _progress(self, event: events.LayerProgress | events.CheckProgress, now: float) -> None:
        self._status = ""
        layer = self._layer(event.digest)
        layer.done, layer.total = event.done, event.total
        if isinstance(event, events.LayerProgress):
            layer.phase, layer.note = event.phase, ""
        else:
            layer.phase, layer.unit = events.Phase.VERIFYING, event.unit
            layer.finished = layer.finished or event.done >= event.total
        layer.meter.add(now, event.done)
        self._meter.add(now, sum(x.done for x in self._layers.values()))

    def _done(self, event: events.LayerDone) -> None:
        layer = self._layer(event.digest)
        self._status = ""
        layer.finished, layer.done, layer.total = True, event.size, event.size
        self._finished.append(
            self._checked(event.digest, "already here" if event.present else f"{format_size(event.size):>8}")
        )

    def _layer(self, digest: str) -> _Layer:
        return self._layers.setdefault(digest, _Layer())

    def _checked(self, digest: str, text: str) -> Row:
        return [("✓" if self._unicode else "*", "green"), (f" {short(digest)}  {text}", "")]

    def _whole(self) -> _Layer:
        layers = self._layers.values()
        unit = next(iter(layers)).unit
        return _Layer(sum(layer.done for layer in layers), sum(layer.total for layer in layers), unit=unit)

    def _layer_row(self, digest: str, layer: _Layer, layout: _Layout, now: float) -> Row:
        if layer.note:
            return _plain_row(f"  {short(digest):<{_LABEL}}  {layer.note}", layout.width)
        tail = "" if layer.done < layer.total else self._after_the_last_byte(digest, layer)
        return self._bar_row(short(digest), layer, layer.meter.rate(now), tail, layout)

    def _after_the_last_byte(self, digest: str, layer: _Layer) -> str:
        if layer.phase is events.Phase.VERIFYING:
            return "verifying"
        # Layers are published bottom first, whatever the order in which they arrive.
        for lower, other in self._layers.items():
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
        halves = 2 * length if not total else min(2 * length, 2 * length * done // total)
        full, half = divmod(halves, 2)
        if not self._unicode:
            return [("#" * full, ""), ("." * (length - full), "")]
        # Without colour the part that is missing cannot be told from the part that is there: leave it empty.
        rest = ("━" if self._color else " ") * (length - full - half)
        return [("━" * full + "╸" * half, "cyan"), (rest, "dim")]


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


def _plain_row(text: str, width: int) -> Row:
    return [(text[: max(width - _MARGIN, 1)], "")]


def _is_active(layer: _Layer) -> bool:
    return not layer.finished and (bool(layer.note) or layer.phase is not events.Phase.WAITING)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(min(seconds, 359_999)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
