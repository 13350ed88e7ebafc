"""What a test does about something that only some machines have."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

# The environment of a test is cleaned before it runs, so this is read here.
REQUIRE_TOOLS = os.environ.get("REQUIRE_TOOLS") == "1"


def lacking(reason: str) -> NoReturn:
    """Skips the test for something that this machine lacks; fails it on one that is set up for the tests."""
    (pytest.fail if REQUIRE_TOOLS else pytest.skip)(reason)


def need(*programs: str) -> None:
    """Calls :func:`lacking` unless all programs are there."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        lacking(f"not installed: {', '.join(missing)}")
