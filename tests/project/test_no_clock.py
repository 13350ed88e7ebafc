"""No test asserts what a clock says: that fails on a busy machine, and passes on a quick one whatever the program does.

A clock may end a wait in vain; :mod:`tests.support.counting` has what takes its place otherwise.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CLOCKS = {"monotonic", "perf_counter", "process_time", "thread_time", "time", "clock_gettime"}
PROCESSOR = {"ru_utime", "ru_stime", "children_user", "elapsed"}
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py") if path.parent.name != "bench")


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((TESTS / name).read_text(encoding="utf-8"))


def nodes(node: ast.AST):
    """The node and all below it that belongs to its own value: what a lambda reads, it reads later."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Lambda):
            yield from nodes(child)


def reads_clock(node: ast.AST, tellers: frozenset[str], names: set[str]) -> bool:
    """Whether a value holds the reading of a clock: of ``time``, of a function that tells one, or kept in a name."""
    for part in nodes(node):
        if isinstance(part, ast.Name) and part.id in names:
            return True
        if isinstance(part, ast.Attribute) and part.attr in PROCESSOR:
            return True
        if isinstance(part, ast.Call):
            called = part.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "time":
                if called.attr.removesuffix("_ns") in CLOCKS:
                    return True
            elif isinstance(called, ast.Name) and called.id in tellers:
                return True
    return False


def kept(function: ast.AST, tellers: frozenset[str]) -> set[str]:
    """The names in a function that hold a reading, or something worked out from one."""
    names: set[str] = set()
    assignments = [x for x in ast.walk(function) if isinstance(x, ast.Assign | ast.AugAssign | ast.NamedExpr)]
    while True:
        before = len(names)
        for one in assignments:
            if reads_clock(one.value, tellers, names):
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                names |= {x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)}
        if len(names) == before:
            return names


def functions(name: str) -> list[ast.FunctionDef]:
    return [x for x in ast.walk(tree(name)) if isinstance(x, ast.FunctionDef)]


@cache
def telling(name: str) -> frozenset[str]:
    """The functions of a module that return a reading, its own and those of other tests."""
    found = frozenset(
        alias.asname or alias.name
        for one in ast.walk(tree(name))
        if isinstance(one, ast.ImportFrom) and (file := (one.module or "").replace(".", "/") + ".py")[6:] in FILES
        for alias in one.names
        if alias.name in telling(file[6:])
    )
    while True:
        more = found | {
            function.name
            for function in functions(name)
            for one in ast.walk(function)
            if isinstance(one, ast.Return) and one.value and reads_clock(one.value, found, kept(function, found))
        }
        if more == found:
            return found
        found = more


def wrong(name: str) -> list[str]:
    said = set()
    for function in functions(name):
        names = kept(function, telling(name))
        for one in ast.walk(function):
            if not isinstance(one, ast.Assert):
                continue
            for part in ast.walk(one.test):
                if isinstance(part, ast.Compare) and reads_clock(part, telling(name), names):
                    said.add(f"{name}:{one.lineno}: {ast.unparse(one.test)}")
    return sorted(said)


def test_all_folders_are_looked_at():
    assert {"conftest.py", "whole/test_crash.py", "project/test_no_clock.py"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_no_assertion_compares_the_reading_of_a_clock(name):
    assert wrong(name) == []


@pytest.mark.parametrize(
    "body",
    [
        "assert time.monotonic() < 3",
        "started = time.time()\n    work()\n    assert time.time() - started < 1",
        "took = time.perf_counter_ns() - at\n    assert 0.2 < took",
        "used = resource.getrusage(0)\n    assert used.ru_utime < 1",
        "def took():\n        return time.monotonic() - at\n    assert took() < 5",
        "a, b = time.process_time(), 1\n    c = a + b\n    assert not c > 5",
    ],
)
def test_such_an_assertion_is_found(body, monkeypatch):
    monkeypatch.setattr(f"{__name__}.tree", lambda name: ast.parse(f"def test_x(at):\n    {body}\n"))
    telling.cache_clear()
    assert wrong("made up") != []
