"""The structure of the program, read from its source: who may import whom, and how long a room may grow.

A room is a folder of the package, or a module beside the folders; the number in ``ROOMS`` is its floor. A module may
import from its own room and from lower floors, not from a room on the same floor.
"""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import isal
import pytest

TESTS = Path(__file__).resolve().parent.parent
PACKAGE = TESTS.parent / "msb_pull"

ROOMS = {
    "msb_pull": 8,
    "__main__": 7,
    "cli": 6,
    "api": 5,
    "display": 4,
    "work": 4,
    "source": 3,
    "layer": 3,
    "store": 3,
    "trust": 3,
    "image": 2,
    "config": 2,
    "disk": 2,
    "ground": 1,
}

# The modules that run in the children that unpack and verify, without site-packages but for one module of it.
CHILD = {
    f"msb_pull.layer.{place}{module}"
    for place, modules in {
        "": "attributes child hashing limits noted notes report rules",
        "proof.": "compare contents model node prove prover standing stream task",
        "settle.": "derive directories links lowers",
        "tar.": "blocks entry record tar",
        "tree.": "dress folders holes keeping kept links tree whiteouts",
        "unpack.": "filler jail ring seccomp serve unpack",
    }.items()
    for module in modules.split()
}
# What goes on in a fork of the whole process, where nothing but the fork itself ends.
FORKED = {"msb_pull.disk.beside"}

# What they may have of the ground.
GROUND = ("below", "errors", "limits", "pax", "remove", "tarfields", "text")

OWNERS = {  # third-party package -> who alone may import it
    "typer": lambda module: module.startswith("msb_pull.cli."),
    "rich": lambda module: module.startswith("msb_pull.display."),
    "requests": lambda module: module.startswith("msb_pull.source."),
    "urllib3": lambda module: module.startswith("msb_pull.source."),
    "cryptography": lambda module: module.startswith("msb_pull.trust."),
    "sigstore": lambda module: module.startswith("msb_pull.trust."),
}

MAX_FOLDER_MODULES = 14
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MUTATORS = {"append", "add", "update", "extend", "insert", "pop", "clear", "setdefault", "remove", "discard", "popitem"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def type_only(name: str) -> set[ast.AST]:
    """The imports that only a type checker sees."""
    blocks = (node for node in tree(name).body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    return {inner for block in blocks for inner in ast.walk(block)}


def imports(name: str, *, typed: bool = True) -> set[str]:
    """Every module that ``name`` imports anywhere, also inside functions, by its full name.

    The values of ``image`` may stand in the annotations of any room. Without ``typed``, what only a type checker sees
    does not count.
    """
    found: set[str] = set()
    unseen = type_only(name)
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if node in unseen and (not typed or base.startswith("msb_pull.image.")):
                continue
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found


def functions(name: str):
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_floors_are_those_of_the_document():
    text = (TESTS.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors = [
        line[:32].strip().split(" · ") for line in text.partition("## Rooms")[2].split("```")[1].split("\n") if line
    ]
    told = {room: floor for floor, rooms in enumerate(reversed(floors), 1) for room in rooms if room}
    assert told == {room: floor for room, floor in ROOMS.items() if room != "msb_pull"}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_room(name):
    assert room(name) in ROOMS, f"{name}: say in this test where this room stands"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    here = room(name)
    wrong = []
    for other in sorted(imports(name)):
        if other.split(".")[0] != "msb_pull" or other == "msb_pull":
            continue
        there = room(other)
        if there != here and ROOMS[there] >= ROOMS[here]:
            wrong.append(f"{name} ({here}) imports {other} ({there})")
    assert not wrong


@pytest.mark.parametrize("depth", range(1, max(name.count(".") for name in MODULES) + 1))
def test_no_circles(depth):
    """Neither rooms, nor the folders inside them, nor modules reach each other; all imports count, also of types."""
    graph = runpy.run_path(str(TESTS.parent / "docs" / "make_graph.py"))
    modules = graph["modules_of"](PACKAGE)
    assert modules == MODULES
    assert graph["circles_of"](graph["rooms_of"](modules, depth)) == []
    assert graph["circles_of"]({name: graph["imports_of"](name, modules) for name in modules}) == []


def test_folders_are_small():
    """A folder can be taken in at a glance."""
    held = Counter(str(path.parent.relative_to(PACKAGE)) for path in MODULES.values() if path.name != "__init__.py")
    assert {folder: count for folder, count in held.items() if count > MAX_FOLDER_MODULES} == {}


@pytest.mark.parametrize("name", MODULES)
def test_packages_stay_with_their_owner(name):
    wrong = [
        f"{name} imports {other}"
        for other in sorted(imports(name))
        if (owner := OWNERS.get(other.split(".")[0])) and not owner(name)
    ]
    assert not wrong


@pytest.mark.parametrize("name", sorted(CHILD))
def test_child_modules_need_the_standard_library_and_isal_only(name):
    if name not in MODULES:
        pytest.fail(f"{name} is gone: correct CHILD in this test")
    packages = {child.rpartition(".")[0] for child in CHILD}
    allowed = CHILD | packages | {"msb_pull", *(f"msb_pull.ground.{module}" for module in GROUND)}
    wrong = [
        other
        for other in sorted(imports(name, typed=False))
        if other not in allowed
        and other.split(".")[0] not in {*sys.stdlib_module_names, "isal"}
        # On macOS alone, whose Python has no functions for attributes.
        and (name, other) != ("msb_pull.layer.attributes", "xattr")
    ]
    assert not wrong


def test_child_starts_without_site_packages():
    code = (
        f"import sys; sys.path += {str(PACKAGE.parent)!r}, {str(Path(isal.__file__).parent.parent)!r}\n"
        "import msb_pull.layer.unpack.unpack\n"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] not in sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    strangers = {module for module in run.stdout.split() if not module.startswith(("msb_pull", "isal", "__"))}
    assert strangers == set()


@pytest.mark.parametrize("module", ["unpack.unpack", "proof.prove", "proof.prover"])
def test_child_loads_nothing_that_takes_longer_than_a_small_layer(module):
    code = (
        f"import sys; sys.path += {str(PACKAGE.parent)!r}, {str(Path(isal.__file__).parent.parent)!r}\n"
        f"import msb_pull.layer.{module}\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    assert not {"typing", "base64", "hashlib", "pathlib"} & set(run.stdout.split())


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_short(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_MODULE_LINES, f"{name}: {lines} lines"


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_short(name):
    long = [
        f"{name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in functions(name)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("name", MODULES)
def test_no_module_level_state(name):
    """No ``global``, and a table at module level is a constant that nothing in its module changes."""
    tables = set()
    for node in tree(name).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        called = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
        container = isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp)
        if container or called in {"dict", "list", "set", "defaultdict", "deque", "Counter", "OrderedDict"}:
            tables.update(target.id for target in targets if isinstance(target, ast.Name))
    wrong = [
        f"{name}: {table} is a mutable at module level without the name of a constant"
        for table in sorted(tables)
        if table != "__all__" and not table.lstrip("_").isupper()
    ]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Global):
            wrong.append(f"{name}:{node.lineno}: global {', '.join(node.names)}")
        subscript = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
        mutator = isinstance(node, ast.Attribute) and node.attr in MUTATORS
        if (subscript or mutator) and isinstance(node.value, ast.Name) and node.value.id in tables:
            wrong.append(f"{name}:{node.lineno}: changes the table {node.value.id}")
    assert not wrong


@pytest.mark.parametrize("name", MODULES)
def test_library_neither_prints_nor_exits_nor_reads_the_environment(name):
    if room(name) in ("__main__", "cli", "display") or name in (
        "msb_pull.config.settings",
        "msb_pull.source.login.credentials",
    ):
        return
    wrong = []
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
            wrong.append(f"{name}:{node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            reads = (node.value.id, node.attr)
            exits = reads in {("sys", "exit"), ("os", "_exit")} and name not in CHILD | FORKED
            if exits or reads in {("os", "environ"), ("os", "getenv"), ("os", "putenv")}:
                wrong.append(f"{name}:{node.lineno}: {'.'.join(reads)}")
    assert not wrong


@pytest.mark.parametrize("name", MODULES)
def test_no_error_is_swallowed(name):
    wrong = [
        f"{name}:{node.lineno}"
        for node in ast.walk(tree(name))
        if isinstance(node, ast.ExceptHandler)
        and len(node.body) == 1
        and isinstance(node.body[0], ast.Pass)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
    ]
    assert not wrong


def test_no_test_imports_another():
    """What two of them need lies in tests/support."""
    wrong = [
        f"{path.relative_to(TESTS)} imports {node.module}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2].startswith("test_")
    ]
    assert not wrong
