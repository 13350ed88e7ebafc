"""Every row of ``docs/edge-cases.md`` has a test that carries its id.

The rows are those of five sections: layers (A), registries (B), references (C), the store (D) and the stat override
(E). A test carries an id at the start of its name (``test_a19_…``, ``test_d1_d2_…``), or it is one of a table
whose rows begin with the id (``("C52-docker", …)``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

CATALOGUE = (REPOSITORY / "docs" / "edge-cases.md").read_text(encoding="utf-8")
IDS = re.findall(r"^\| ([A-E]\d+)[!+]? \|", CATALOGUE, re.MULTILINE)
FILES = sorted((REPOSITORY / "tests").rglob("test_*.py"))
_NAME = re.compile(r"test((?:_[a-e]\d+)+)(?:_|$)")
_IN_TABLE = re.compile(r"([A-E]\d+)(?:-.+)?")


def carried(tree: ast.AST) -> Iterator[str]:
    """Every id in the names of test functions and at the beginning of tables' rows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            if found := _NAME.match(node.name):
                yield from found[1].upper().strip("_").split("_")
        elif isinstance(node, ast.List):
            rows = (row.elts[0] for row in node.elts if isinstance(row, ast.Tuple) and row.elts)
            for first in rows:
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found = _IN_TABLE.fullmatch(first.value)
                    if found:
                        yield found[1]


def ids_of(path: Path) -> set[str]:
    return set(carried(ast.parse(path.read_text(encoding="utf-8"))))


def test_no_row_is_lost():
    """Ids are never given twice nor reused, so each section counts from 1 without a gap."""
    for section, least in {"A": 82, "B": 91, "C": 64, "D": 38, "E": 19}.items():
        numbers = sorted(int(row[1:]) for row in IDS if row[0] == section)
        assert numbers == list(range(1, max(least, len(numbers)) + 1))


def test_every_row_has_a_test():
    found = set().union(*map(ids_of, FILES))
    missing = [row for row in IDS if row not in found]
    assert not missing, f"no test for {', '.join(missing)}"


def test_every_id_is_a_row():
    unknown = {path.name: sorted(ids) for path in FILES if (ids := ids_of(path) - set(IDS))}
    assert not unknown


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        ("def test_a19_links(): ...", {"A19"}),
        ("def test_d1_d2_locks(): ...", {"D1", "D2"}),
        ("def test_e4(): ...", {"E4"}),
        ("def test_all_of_a19(): ...\ndef a19(): ...\ndef test_a19b(): ...", set()),
        ('GOOD = [("C1", "ubuntu"), ("C52-docker", "x"), ("C7 and more", "y"), ("other", 1)]\n', {"C1", "C52"}),
    ],
)
def test_what_carries_an_id(source, ids):
    assert set(carried(ast.parse(source))) == ids
