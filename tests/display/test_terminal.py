"""The display on real terminals: a pseudo-terminal that is read byte by byte, and tmux for what a person sees."""

from __future__ import annotations

import re
import time

import pytest

from tests.conftest import REPOSITORY, program_environment
from tests.support.events import IMAGE, digest, name
from tests.support.screen import FAKE, Screen, ended
from tests.support.terminal import Terminal, plain

PINNED = f"{IMAGE}@{digest(0)}"


def fake(count, jobs, seconds, *, columns=80, lines=24, stdout=None, **env):
    return Terminal(
        [*FAKE, str(count), str(jobs), str(seconds)],
        env=program_environment(PYTHONPATH=str(REPOSITORY), **{"LC_ALL": "C.UTF-8", **env}),
        columns=columns,
        lines=lines,
        stdout=stdout,
    )


def test_bars_on_a_terminal():
    with fake(4, 2, 1.0) as terminal:
        assert terminal.wait() == 0
    assert "\x1b[36m━" in terminal.text
    assert "?1049" not in terminal.text  # no other screen: what was printed stays
    text = plain(terminal.text)
    for layer in (1, 2, 3):
        assert f"✓ {name(layer)}   10.0 MB" in text
    assert text.rstrip().endswith(PINNED)
    # How often they are drawn at most is seen in test_display.
    assert len(re.findall(r"  total  ", text)) > 1


def test_the_result_goes_to_a_file_while_bars_move(tmp_path):
    """rich's Progress would send it to the terminal."""
    with fake(3, 2, 0.5, stdout=tmp_path / "out") as terminal:
        assert terminal.wait() == 0
    assert (tmp_path / "out").read_text() == PINNED + "\n"
    assert PINNED not in plain(terminal.text)
    assert "total" in terminal.text


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true"}])
def test_d37_no_escapes_where_nobody_can_read_them(env):
    with fake(3, 2, 0.3, **env) as terminal:
        assert terminal.wait() == 0
    text = terminal.text.replace("\r\n", "\n")
    assert f"layer {name(1)} done 10.0 MB\n" in text
    assert "\x1b" not in text.replace("\x1b[32m✓\x1b[0m", "")
    assert "\r" not in text


def test_an_exported_width_is_not_believed():
    with fake(3, 2, 0.4, COLUMNS="300", LINES="100") as terminal:
        assert terminal.wait() == 0
    assert max(len(row) for row in re.split(r"[\r\n]+", plain(terminal.text)) if "total" in row) < 80


def test_no_color():
    with fake(3, 2, 0.3, NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.text)
    assert "total" in terminal.text


def test_d38_ascii_where_the_locale_says_so():
    with fake(3, 2, 0.5, LC_ALL="C") as terminal:
        assert terminal.wait() == 0
    assert terminal.text.isascii()
    assert re.search(r"#+\.+", terminal.text)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 12)])
def test_screen(columns, lines):
    with Screen(columns, lines, 6, 3, 2.0) as screen:
        rows = screen.wait(lambda rows: len(rows) > 4 and rows[-1].startswith("  total") and "/" in rows[-1])
        live = [row for row in rows if row.startswith("  ")]
        assert len(live) == 4
        assert [row.split()[0] for row in live[:3]] == [name(1), name(2), name(3)]
        assert all("━" in row or "B" in row for row in live)
        screen.wait(ended)
        rows = screen.rows(history=True)
    assert [row for row in rows if row.startswith("✓")][:6] == [
        f"✓ {name(0)}  already here",
        *(f"✓ {name(layer)}   10.0 MB" for layer in range(1, 6)),
    ]
    assert "total" not in "".join(rows)


def test_many_layers_on_a_small_screen():
    """Nothing is drawn twice and nothing is lost when the rows scroll."""
    with Screen(80, 8, 30, 16, 2.0) as screen:
        rows = screen.wait(lambda rows: rows[-1:] and rows[-1].startswith("  total"))
        assert len([row for row in rows if row.startswith("  ")]) == 7
        screen.wait(ended)
        rows = screen.rows(history=True)
    assert [row for row in rows if row.startswith("✓ 0")] == [
        f"✓ {name(0)}  already here",
        *(f"✓ {name(layer)}   10.0 MB" for layer in range(1, 30)),
    ]
    assert not [row for row in rows if "total" in row or "━" in row]


DRAGGED = [(columns, 24) for columns in range(110, 50, -5)]


@pytest.mark.parametrize(
    ("before", "sizes", "pause"),
    [
        (0, [(50, 24)], 0.4),
        (40, [(50, 24)], 0.4),
        (0, [(90, 24), (120, 24), (60, 24), (44, 20)], 0.4),
        (40, DRAGGED, 0.03),
        (40, DRAGGED, 0.12),
    ],
)
def test_resizing_leaves_no_remains(before, sizes, pause):
    """At once or dragged, with lines above and without; the program hears of a new width later than the terminal."""
    with Screen(120, 24, 5, 2, 4.0, argv=["sh", "-c", f'seq {before}; exec "$@"', "sh", *FAKE]) as screen:
        screen.wait(lambda rows: rows[-1:] and rows[-1].startswith("  total"))
        for columns, lines in sizes:
            screen.resize(columns, lines)
            time.sleep(pause)
        # What tmux has scrolled out of the window while it folded rows is out of reach; all else must be clean.
        rows = screen.wait(ended)
        history = screen.rows(history=True)
    assert not [row for row in rows if "total" in row or "━" in row], rows
    assert len([row for row in history if row.startswith("✓ 0")]) == 5
    assert [row for row in history if re.fullmatch(r"[1-9]\d?", row)] == [str(x) for x in range(1, before + 1)]
