"""Text for standard output: columns that are never cut, facts below one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.display.streams import painted
from msb_pull.ground.sizes import counted
from msb_pull.ground.text import visible

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

_SPANS = {"year": 365 * 86400, "month": 30 * 86400, "week": 7 * 86400, "day": 86400, "hour": 3600, "minute": 60}


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    color: bool = False,
    room: int = 0,
    spare: Sequence[str] = (),
) -> str:
    """Columns as wide as their widest cell; those named in ``right`` are aligned there. One line each, no end.

    Where lines would take more than ``room`` columns of a terminal (0: as many as they like), those named in ``spare``
    are left out, the first ones first, until they fit. Cells are escaped here: any of them may come from an image.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for name in spare if room else ():
        if sum(widths) + 2 * (len(widths) - 1) <= room:
            break
        at = header.index(name)
        header, *rows = [[*row[:at], *row[at + 1 :]] for row in (header, *rows)]
        del widths[at]
    lines = [_line(row, widths, [name in right for name in header]) for row in (header, *rows)]
    return "\n".join([painted(lines[0], "bold", color), *lines[1:]])


def facts(pairs: Sequence[tuple[str, str | Sequence[str]]], *, color: bool = False) -> str:
    """``Name     value`` lines; a value of several lines stays in its column. Values are escaped here."""
    width = max((len(name) for name, _ in pairs), default=0)
    lines = []
    for name, value in pairs:
        first, *rest = [visible(line) for line in ([value] if isinstance(value, str) else value)]
        lines.append(f"{painted(name, 'bold', color)}{' ' * (width - len(name))}  {first}".rstrip())
        lines += [f"{'':{width}}  {line}" for line in rest]
    return "\n".join(lines)


def ago(then: datetime, now: datetime) -> str:
    """``just now``, ``5 minutes ago``, ``3 weeks ago``; both times with a zone."""
    seconds = max(0, int((now - then).total_seconds()))
    for name, span in _SPANS.items():
        if seconds >= span:
            return f"{counted(seconds // span, name)} ago"
    return "just now"


def rfc3339(time: datetime) -> str:
    """``2026-11-24T11:15:00Z``, for a time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(row, widths, right, strict=True)
    ]
    return "  ".join(cells).rstrip()
