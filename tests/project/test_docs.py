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


def test_the_picture_of_the_rooms_is_that_of_these_imports():
    """After a wanted change: ``python docs/make_graph.py --svg``."""
    made = runpy.run_path(str(DOCS / "make_graph.py"))["picture"]()
    assert made == (DOCS / "rooms.svg").read_text(encoding="utf-8")


GRAPH = {
    "__init__": "from pkg.b.one import x",
    "a": "import pkg.b.two\nfrom pkg import c",
    "b/__init__": "",
    "b/one": "from . import two\nfrom .deep import three",
    "b/two": "def f():\n    from pkg.c import y",
    "b/deep/__init__": "",
    "b/deep/three": "if TYPE_CHECKING:\n    from pkg.b.one import z",
    "c": "import os",
}


def test_what_the_graph_counts(tmp_path):
    """Imports inside functions and for types, relative ones, floors, circles, and modules of a folder."""
    for name, text in GRAPH.items():
        path = tmp_path / "pkg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = runpy.run_path(str(DOCS / "make_graph.py"))
    modules = graph["modules_of"](tmp_path / "pkg")
    rooms = graph["rooms_of"](modules, 1)
    assert rooms == {"__init__": {"b"}, "a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert graph["floors_of"](rooms) == {"__init__": 2, "a": 2, "b": 1, "c": 0}
    deep = graph["rooms_of"](modules, 2)
    assert (deep["b"], deep["b/deep"]) == ({"b/deep", "c"}, {"b"})
    assert graph["floors_of"](deep)["b"] == graph["floors_of"](deep)["b/deep"] == 1
    assert graph["circles_of"](deep) == [["b", "b/deep"]]
    assert graph["folders_of"](modules) == {"pkg": 2, "pkg/b": 2, "pkg/b/deep": 1}
    text = graph["summary"](tmp_path / "pkg", 1)
    assert text.startswith("8 modules, 4 rooms, 3 floors, 4 arrows\nlargest folder: pkg, 2 modules\n")


def test_architecture_names_what_there_is():
    """Each ``room/module`` between backticks is a folder or a module of the package."""
    package = REPOSITORY / "msb_pull"
    rooms = "|".join(path.name for path in package.iterdir() if path.is_dir())
    named = set()
    for page in ("docs/architecture.md", "docs/store.md", "docs/glossary.md", "CONTRIBUTING.md"):
        named.update(re.findall(rf"`((?:{rooms})/[\w/]+)(?:\.py)?`", (REPOSITORY / page).read_text(encoding="utf-8")))
    assert len(named) > 20
    assert {x for x in named if not (package / x).is_dir() and not (package / f"{x}.py").is_file()} == set()


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
