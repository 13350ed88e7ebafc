"""Every help page, word by word. After a wanted change: ``UPDATE_GOLDEN=1 pytest tests/cli/test_help.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import program_environment
from tests.support.program import run_program

GOLDEN = Path(__file__).parent / "help"
# Read before the environment of the tests is cleaned.
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))


@pytest.mark.parametrize("command", ["", "pull", "ls", "inspect", "verify", "prune", "df", "rm", "save", "export"])
def test_help_is_what_it_was(command):
    done = run_program([*([command] if command else []), "--help"], env=program_environment(COLUMNS="80"))
    assert (done.returncode, done.stderr) == (0, "")
    path = GOLDEN / f"{command or 'msb-pull'}.txt"
    if UPDATE:
        path.write_text(done.stdout, encoding="utf-8")
    assert done.stdout == path.read_text(encoding="utf-8")
