"""Pictures and pages that are made from the program are those that it would make now."""

from __future__ import annotations

import html
import re
import runpy
import subprocess

import pytest

from tests.conftest import REPOSITORY, need

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


def test_the_manual_page_is_that_of_this_help():
    """After a wanted change: ``python docs/make_man.py``."""
    made = runpy.run_path(str(DOCS / "make_man.py"))["page"]()
    assert made == (DOCS / "msb-pull.1").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "reader",
    [
        ["groff", "-man", "-Tutf8", "-ww", "-z"],
        # The page has no date, since nothing in it depends on one.
        ["mandoc", "-T", "lint", "-W", "error"],
    ],
    ids=lambda reader: reader[0],
)
def test_readers_of_manual_pages_have_no_complaint(reader):
    need(reader[0])
    done = subprocess.run([*reader, str(DOCS / "msb-pull.1")], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
