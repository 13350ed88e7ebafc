"""Pictures and pages that are made from the program are those that it would make now."""

from __future__ import annotations

import html
import re
import runpy

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"


def lines_of(svg: str) -> list[tuple[float, str]]:
    """Each piece of text with the height at which it stands: what versions of rich agree on."""
    pieces = re.findall(r'<text class="msb-pull-r\d+" x="[\d.]+" y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
    return [(float(height), html.unescape(text).replace("\xa0", " ")) for height, text in pieces]


def test_the_picture_is_what_the_display_draws():
    """After a wanted change: ``python docs/make_picture.py``."""
    made = runpy.run_path(str(DOCS / "make_picture.py"))["picture"]()
    kept = (DOCS / "pull.svg").read_text(encoding="utf-8")
    assert len(lines_of(kept)) > 20
    assert lines_of(made) == lines_of(kept)
