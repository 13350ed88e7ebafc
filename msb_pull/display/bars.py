"""Live rows on a terminal, drawn with rich: finished layers stay as lines, the rest moves below them.

rich's own Progress is not used: with more bars than rows it hides the newest, and its updates take the lock that a
blocked terminal holds. It is the console, its styles and its control codes that serve here.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TextIO, cast

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment
from rich.text import Text

from msb_pull.display.board import Board, Row
from msb_pull.display.lines import change, remark
from msb_pull.display.streams import write_aside
from msb_pull.ground import events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.ground.events import Event

# DECAWM: a row that is too long for a window just made narrower is cut, so that a row is always one line when drawn.
_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"
# The line of the cursor, then all below: erased at once, from the top of a window, tmux would keep them as history.
_ERASE = "\r\x1b[K\x1b7\x1b[B\x1b[J\x1b8"


class _Forgiving:
    """The terminal for rich; one that has gone away must not end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding
        self.isatty = stream.isatty
        self.fileno = stream.fileno

    def write(self, text: str) -> int:
        write_aside(self._stream, text)
        return len(text)

    def flush(self) -> None: ...


class BarsRenderer:
    """Draws a board at the bottom of what has been printed so far."""

    def __init__(self, stream: TextIO, *, jobs: int, color: bool, unicode: bool, several: bool = False) -> None:
        self._console = Console(
            file=cast("TextIO", _Forgiving(stream)),
            force_terminal=True,
            no_color=not color,
            color_system="standard" if color else None,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
        )
        self._stream = stream
        self._several = several
        self._board = Board(jobs=jobs, unicode=unicode, color=color, several=several)
        self._drawn = 0
        self._seen: set[Event] = set()
        self._clock = time.monotonic

    def draw(self, batch: Sequence[Event]) -> None:
        """Takes events and draws the rows again, with what is finished above them, in one write."""
        now = self._clock()
        above: list[Row] = []
        for event in batch:
            self._board.take(event, now)
            above += self._board.finished() + self._remarks(event)
        width, height = self._size()
        rows = self._board.rows(width, height, now)
        if above or rows or self._drawn:
            self._replace(above, rows)

    def settle(self) -> None:
        """Takes the live rows away until something new happens, or with several images until the next drawing."""
        self._board.settle()
        self._replace([], [])

    def _size(self) -> tuple[int, int]:
        """Columns and lines of the terminal as it is now; rich would believe a COLUMNS that was exported long ago."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def _remarks(self, event: Event) -> list[Row]:
        if isinstance(event, events.Warned):
            if event in self._seen:
                return []
            self._seen.add(event)
        text = remark(event, 0, several=self._several)
        if text is None and isinstance(event, events.Retrying):
            text = change(event)
        if text is None:
            return []
        label, colon, rest = text.partition(":") if isinstance(event, events.Warned) else ("", "", text)
        return [[(label + colon, "yellow"), (rest, "")]]

    def _replace(self, above: Sequence[Row], rows: Sequence[Row]) -> None:
        """Erases what is live, and draws ``above`` for good and ``rows`` below it."""
        # The context buffers: the terminal sees one write, and never half a picture.
        with self._console:
            if self._drawn:
                self._console.control(_control(_ERASE))
            for row in above:
                self._print(row, end="\n")
            if rows:
                self._console.control(_control(_WRAP_OFF))
                for number, row in enumerate(rows):
                    self._print(row, end="" if number == len(rows) - 1 else "\n")
                # The cursor rests on the first row. When the window changes its width the terminal folds the rows and
                # takes the cursor along, so erasing from there needs neither the old width nor the new one, which
                # this process learns of a quarter of a second late under tmux.
                up = f"\x1b[{len(rows) - 1}A" if len(rows) > 1 else ""
                self._console.control(_control(f"{_WRAP_ON}\r{up}"))
        self._drawn = len(rows)

    def _print(self, row: Row, end: str) -> None:
        self._console.print(Text.assemble(*row, end=""), end=end, soft_wrap=True)


def _control(codes: str) -> Control:
    """Codes that rich has no names for."""
    control = Control()
    control.segment = Segment(codes, None, [(ControlType.CARRIAGE_RETURN,)])
    return control
