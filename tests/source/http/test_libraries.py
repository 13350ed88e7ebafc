"""The parts of requests, urllib3 and http.client that are used without a promise: are they still there?"""

from __future__ import annotations

import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from msb_pull.source.http.libraries import PARTS

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_library_is_still_there(part):
    module, _, path = part.partition(":")
    owner, _, name = path.rpartition(".")
    found = importlib.import_module(module)
    found = getattr(found, owner) if owner else found
    # Some attributes are only set by the instances.
    there = hasattr(found, name) or f"self.{name}" in inspect.getsource(found)
    where = f"{module.partition('.')[0]} has no {path} any more"
    assert there, (
        f"{where} ({PARTS[part]}): find another way in msb_pull/source/http, or lower the bound of its version"
    )


@pytest.mark.parametrize("library", ["requests", "urllib3"])
def test_libraries_whose_parts_are_used_have_an_upper_bound(library):
    asked = [Requirement(x) for x in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]
    [bounds] = [x.specifier for x in asked if x.name == library]
    assert any(bound.operator == "<" for bound in bounds), f"{library}: without a bound, a new version may break it"
    assert version(library) in bounds, f"{library} {version(library)} is not one that pyproject.toml allows"
