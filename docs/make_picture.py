"""Draws ``docs/pull.svg``: what a terminal shows in the middle of a pull.

    python docs/make_picture.py

The board of the live display is fed with made-up events at made-up times, so that the picture can only show what the
program draws, and is the same on every machine.
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

from msb_pull.display.board import Board
from msb_pull.display.streams import painted
from msb_pull.ground import events as e

PICTURE = Path(__file__).with_name("pull.svg")
COLUMNS, LINES = 80, 24

DEBIAN = "docker.io/library/debian:bookworm"
PYTHON = "docker.io/library/python:3.11"
PINNED = f"{DEBIAN}@sha256:b8a5e1937d5dabeecb9c649a39db72ea7cc2a762a52d8bafc923944d80ddc5c4"
SIZES = {
    "30256d83813ad4fbed0c7366c34169d48adca5b9fd5474cbb758dde2462747d5": 60_452_637,
    "3edff5152224932cf9f9c6dad4c1c783ab96fc10e1225ccc102bf6aaeb7a22fb": 1_204_700,
    "65b1a77d724614265d01ad49be1406ed86ffa8258097bb2e25922079c5157408": 175_132_219,
    "3e77be19346a33cd38bb1f7e6ab12cea96104f4e619025ce7bbb83c38d003123": 133_694_137,
}
BASE, SMALL, LARGE, MIDDLE = (f"sha256:{digest}" for digest in SIZES)


def size(digest: str) -> int:
    return SIZES[digest.removeprefix("sha256:")]


def plan(image: str, *layers: str, present: str = "") -> e.PullPlanned:
    return e.PullPlanned(image, "linux/amd64", tuple(e.PlannedLayer(x, size(x), x == present) for x in layers))


def arrived(digest: str, share: float) -> e.LayerProgress:
    return e.LayerProgress(PYTHON, digest, e.Phase.DOWNLOADING, int(share * size(digest)), size(digest))


def done(image: str, digest: str) -> e.LayerDone:
    return e.LayerDone(image, digest, size(digest), size(digest), present=False)


FIRST = [(0.0, plan(DEBIAN, BASE)), (1.0, done(DEBIAN, BASE))]
SECOND = [
    (2.0, plan(PYTHON, BASE, SMALL, LARGE, MIDDLE, present=BASE)),
    (2.1, done(PYTHON, SMALL)),
    *((2.0 + tenth / 10, arrived(LARGE, 0.021 * tenth)) for tenth in range(30)),
    *((2.0 + tenth / 10, arrived(MIDDLE, 0.027 * tenth)) for tenth in range(30)),
]


def picture() -> str:
    """The SVG."""
    console = Console(
        file=io.StringIO(), record=True, width=COLUMNS, height=LINES, force_terminal=True, color_system="standard",
        legacy_windows=False, highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    board = Board(jobs=4, unicode=True, color=True)

    def show(events: list[tuple[float, e.Event]]) -> None:
        for now, event in events:
            board.take(event, now)
        for row in [*board.finished(), *board.rows(COLUMNS, LINES, events[-1][0])]:
            console.print(Text.assemble(*row), no_wrap=True)

    console.print("$ msb-pull debian:bookworm python:3.11")
    show(FIRST)
    console.print(Text.from_ansi(f"{painted('✓', 'green', True)} Pulled {DEBIAN}: 60.5 MB in 1.1s"))
    console.print(PINNED, overflow="fold")
    show(SECOND)
    return console.export_svg(title="msb-pull", unique_id="msb-pull")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
