"""Everything that is drawn or printed: standard output for the result, standard error for the person.

Events arrive from any thread and are only noted; one thread of its own draws them, so that a slow terminal never slows
a download. Of the progress of one layer only the newest state is kept.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from msb_pull.display.streams import Streams, columns, is_terminal, painted, write_aside, write_out
from msb_pull.ground.errors import exhausted
from msb_pull.ground.running import MOST_AT_ONCE, start_thread
from msb_pull.ground.text import visible

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from msb_pull.config.settings import Settings
    from msb_pull.ground.errors import MsbPullError
    from msb_pull.ground.events import Event

# Ten drawings a second look smooth; more only cost.
_INTERVAL = 0.1
# Columns of a bar that stands alone.
_BAR_MIN, _BAR = 6, 30
# How long the end of a run waits for a terminal that takes no bytes (Ctrl-S) before it goes on without it.
_PATIENCE = 1.0


class Renderer(Protocol):
    """Draws events; all calls come from one thread."""

    def draw(self, batch: Sequence[Event]) -> None:
        """Takes what is new, oldest first; is called every tenth of a second, also when nothing is."""

    def settle(self) -> None:
        """Leaves the terminal so that other text may follow on a new line."""


class Display:
    """Owns the three streams of a run. Before :meth:`configure` it can only show errors."""

    def __init__(self, streams: Streams, *, color: bool | None = None) -> None:
        self.streams = streams
        self.format = "text"
        self.quiet = False
        # Whether several images are under way at the same time, so that what is shown must say which is meant.
        self.several = False
        self._color = color
        self._unicode = False
        # How progress is shown: bars, plain, json or none.
        self.mode = "none"
        self._verbosity = 0
        self._jobs = 1
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._pending: dict[Hashable, Event] = {}
        self._closing = False
        self._settling = False

    def configure(self, settings: Settings, *, form: str, quiet: bool, verbosity: int) -> None:
        """Takes over what the options say; ``form`` is that of standard output."""
        self.format = form
        self.quiet = quiet
        self._color = settings.color
        self._unicode = settings.unicode
        self._verbosity = verbosity
        self._jobs = settings.jobs or MOST_AT_ONCE
        self.mode = self._choose_mode(settings)

    @property
    def _colored_stderr(self) -> bool:
        return is_terminal(self.streams.stderr) if self._color is None else self._color

    @property
    def colored_stdout(self) -> bool:
        """Only ever on a terminal, even where colour is forced: what is piped is for a program."""
        return is_terminal(self.streams.stdout) and self._color is not False

    @property
    def room(self) -> int:
        """Columns of the terminal that standard output is, 0 where it is none."""
        return columns(self.streams.stdout) if is_terminal(self.streams.stdout) else 0

    def observe(self, event: Event) -> None:
        """Notes an event; never blocks on a stream. Callable from any thread."""
        from msb_pull.ground import events

        # A warning says that the result is not quite what was asked for; that is no progress to leave out.
        if self.quiet and not isinstance(event, events.Warned):
            return
        with self._changed:
            # Of the progress of one layer only the newest counts; everything else is shown in order.
            key: Hashable = object()
            if isinstance(event, (events.LayerProgress, events.CheckProgress, events.ExportProgress)):
                key = (type(event), event.image, event.digest)
            self._pending.pop(key, None)
            self._pending[key] = event
            if self._thread is None and not self._closing:
                self._thread = start_thread(self._draw, "display")

    def settle(self) -> None:
        """Waits until everything that was observed is drawn and the live rows are gone."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                return
            self._settling = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._settling, _PATIENCE)

    def close(self) -> None:
        """Draws what is left and ends the thread; may be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE)

    def result(self, text: str) -> None:
        """Writes lines of the result to standard output; raises OutputClosed."""
        self.settle()
        if text:
            write_out(self.streams.stdout, text if text.endswith("\n") else text + "\n")

    def document(self, value: Any) -> None:
        """Writes the one JSON document of a run to standard output; raises OutputClosed."""
        self.result(_json(value, indent=2))

    def note(self, text: str, *, done: bool = False) -> None:
        """Says something on one line to the person, unless asked to be quiet; ``done`` puts a check mark before it."""
        if not self.quiet and self.mode != "json":
            self.settle()
            mark = painted("✓" if self._unicode else "*", "green", self._colored_stderr) + " "
            shown = done and is_terminal(self.streams.stderr)
            write_aside(self.streams.stderr, f"{mark if shown else ''}{visible(text)}\n")

    def failed(self, text: str) -> None:
        """Says, where bars are drawn, what has failed while other work goes on; its error is shown at the end."""
        if self.mode == "bars":
            self.settle()
            mark = painted("✗" if self._unicode else "x", "red", self._colored_stderr)
            write_aside(self.streams.stderr, f"{mark} {_one_line(text)}\n")

    def bar(self, done: int, total: int, beside: int) -> str:
        """A bar for standard output, "" where that is no terminal or too narrow beside so many columns of text."""
        if not is_terminal(self.streams.stdout):
            return ""
        length = min(_BAR, (columns(self.streams.stdout) or 80) - beside)
        if length < _BAR_MIN:
            return ""
        from msb_pull.display.gauge import gauge

        color = self.colored_stdout
        full, rest = gauge(length, done, total, unicode=self._unicode, color=color)
        return painted(full, "red" if done > total else "cyan", color) + painted(rest, "dim", color)

    def ask(self, question: str) -> bool:
        """Asks on standard error; only ``y`` and ``yes`` are a yes, the end of input is a no."""
        self.settle()
        write_aside(self.streams.stderr, f"{question} [y/N] ")
        answer = self.streams.stdin.readline()
        if not answer.endswith("\n"):
            write_aside(self.streams.stderr, "\n")
        return answer.strip().lower() in ("y", "yes")

    @property
    def can_ask(self) -> bool:
        """Whether there is a person to answer."""
        return is_terminal(self.streams.stdin) and is_terminal(self.streams.stderr)

    def error(self, error: MsbPullError) -> None:
        """Shows a failure in one to three lines, or as one event with ``--progress json``."""
        self.settle()
        if self.mode == "json":
            write_aside(self.streams.stderr, _json({"event": "error", **error_document(error)}) + "\n")
        else:
            write_aside(self.streams.stderr, self._error_text(error))

    def trace(self, text: str) -> None:
        """Writes a traceback for ``--debug``."""
        self.settle()
        # The message of an error, which may hold text from an image, is part of it.
        write_aside(self.streams.stderr, "\n".join(visible(line) for line in text.split("\n")))

    def _error_text(self, error: MsbPullError) -> str:
        color = self._colored_stderr
        lines = [f"{painted('error:', 'red', color)} {_one_line(error.message)}"]
        if error.cause:
            lines.append(f"  {painted('cause:', 'dim', color)} {_one_line(error.cause)}")
        if error.hint:
            lines.append(f"  {painted('hint:', 'cyan', color)} {_one_line(error.hint)}")
        return "\n".join(lines) + "\n"

    def _choose_mode(self, settings: Settings) -> str:
        mode = settings.progress
        if self.quiet:
            return "none"
        # Log lines and bars would fight for the same rows.
        drawable = is_terminal(self.streams.stderr) and settings.moving and not self._verbosity
        if mode == "auto":
            return "bars" if drawable and settings.interactive else "plain"
        if mode == "bars" and not drawable:
            return "plain"
        return mode

    def _make_renderer(self) -> Renderer:
        # A pull that finds everything in place has nothing to draw, and must not pay for what could.
        if self.mode == "json":
            return _JsonRenderer(self.streams, self._verbosity)
        if self.mode == "bars":
            from msb_pull.display.bars import BarsRenderer

            return BarsRenderer(
                self.streams.stderr,
                jobs=self._jobs,
                color=self._colored_stderr,
                unicode=self._unicode,
                several=self.several,
            )
        from msb_pull.display.lines import PlainRenderer

        return PlainRenderer(
            lambda text: write_aside(self.streams.stderr, text + "\n"),
            progress=self.mode == "plain",
            verbosity=self._verbosity,
            several=self.several,
        )

    def _draw(self) -> None:
        """The thread: what has happened since the last time, then a rest."""
        try:
            renderer = self._make_renderer()
            closing = False
            while not closing:
                with self._changed:
                    batch, self._pending = list(self._pending.values()), {}
                    settling, closing = self._settling, self._closing
                renderer.draw(batch)
                if settling or closing:
                    renderer.settle()
                with self._changed:
                    if settling:
                        self._settling = False
                        self._changed.notify_all()
                    if not closing:
                        self._changed.wait_for(lambda: self._settling or self._closing, _INTERVAL)
        except Exception as error:
            # The work goes on without a display; it raises an error itself if it lacks memory or descriptors.
            if exhausted(error) is None:
                raise
        finally:
            with self._changed:
                self._settling = False
                self._changed.notify_all()


class _JsonRenderer:
    """One event a line."""

    def __init__(self, streams: Streams, verbosity: int) -> None:
        self._streams = streams
        self._verbosity = verbosity

    def draw(self, batch: Sequence[Event]) -> None:
        from msb_pull.display.lines import describe
        from msb_pull.ground.events import Logged

        told = [event for event in batch if not isinstance(event, Logged) or event.level <= self._verbosity]
        if told:
            write_aside(self._streams.stderr, "".join(_json(describe(event)) + "\n" for event in told))

    def settle(self) -> None: ...


def error_document(error: MsbPullError) -> dict[str, Any]:
    """An error as the JSON documents carry it."""
    document = {"code": error.exit_code, "kind": error.kind, "message": error.message}
    return document | {"cause": error.cause, "hint": error.hint}


def _json(value: Any, indent: int | None = None) -> str:
    # `--help` and most runs write none, and should not load it.
    import json

    return json.dumps(value, indent=indent)


def _one_line(text: str) -> str:
    return visible(" ".join(text.splitlines()))
