"""Draws who imports whom in msb_pull, room by room.

    python docs/make_graph.py [--depth N] [--package DIR]      as text
    python docs/make_graph.py --svg                            writes docs/rooms.svg

A room is a folder of the package, or a file at its top; ``__init__`` counts there as a room of its own. With
``--depth 2`` folders inside folders are rooms too. Counted are imports anywhere in a module, inside functions and under
TYPE_CHECKING as well, each pair of rooms once:

- an arrow is a pair of rooms of which one imports the other
- a floor is how far a room stands above the ground: 0 imports no other room, any other stands one above the highest
  that it imports; rooms that import each other in a circle share a floor
- a circle is a set of rooms, or of modules, that reach each other
- a folder's size is the modules that lie in it, those of folders inside it and ``__init__`` left out

Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter, defaultdict
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "msb_pull"
WIDTH, HEIGHT, GAP, RISE, EDGE = 124, 34, 28, 96, 24

Graph = dict[str, set[str]]


def modules_of(package: Path) -> dict[str, Path]:
    """Every module by its dotted name, that of the package first."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that ``name`` imports."""
    path = modules[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {inner if (inner := f"{base}.{alias.name}") in modules else base for alias in node.names}
    return (found & modules.keys()) - {name}


def room_of(name: str, modules: dict[str, Path], depth: int) -> str:
    """The room of a module: ``layer``, ``api``, or with more depth ``layer/tar``."""
    parts = name.split(".")[1:]
    folders = parts if modules[name].name == "__init__.py" else parts[:-1]
    return "/".join(folders[:depth] or parts or ["__init__"])


def rooms_of(modules: dict[str, Path], depth: int) -> Graph:
    """Which rooms each room imports."""
    rooms: Graph = {room_of(name, modules, depth): set() for name in modules}
    for name in modules:
        here = room_of(name, modules, depth)
        rooms[here] |= {room_of(other, modules, depth) for other in imports_of(name, modules)} - {here}
    return rooms


def circles_of(graph: Graph) -> list[list[str]]:
    """The sets of nodes that reach each other, largest first."""
    reached = {node: _reach(graph, node) for node in graph}
    sets = {tuple(sorted(x for x in reached[node] if node in reached[x])) for node in graph if node in reached[node]}
    return sorted(map(list, sets), key=lambda members: (-len(members), members))


def _reach(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    ahead = [*graph[start]]
    while ahead:
        if (node := ahead.pop()) not in found:
            found.add(node)
            ahead.extend(graph[node])
    return found


def floors_of(graph: Graph) -> dict[str, int]:
    """The floor of each room."""
    together = {node: frozenset(members) for members in circles_of(graph) for node in members}
    floors: dict[frozenset[str], int] = {}

    def floor(node: str) -> int:
        group = together.get(node, frozenset([node]))
        if group not in floors:
            below = {other for member in group for other in graph[member]} - group
            floors[group] = max((floor(other) + 1 for other in below), default=0)
        return floors[group]

    return {node: floor(node) for node in graph}


def folders_of(modules: dict[str, Path]) -> Counter[str]:
    """How many modules lie in each folder."""
    inner = (path for path in modules.values() if path.name != "__init__.py")
    root = modules[min(modules, key=len)].parent
    return Counter(str(path.parent.relative_to(root.parent)) for path in inner)


def summary(package: Path, depth: int) -> str:
    """All figures and every room with what it imports, highest floor first."""
    modules = modules_of(package)
    rooms = rooms_of(modules, depth)
    floors = floors_of(rooms)
    folder, size = folders_of(modules).most_common(1)[0]
    inside = circles_of({name: imports_of(name, modules) for name in modules})
    lines = [
        f"{len(modules)} modules, {len(rooms)} rooms, {len(set(floors.values()))} floors, "
        f"{sum(map(len, rooms.values()))} arrows",
        f"largest folder: {folder}, {size} modules",
        *(f"circle of rooms: {', '.join(members)}" for members in circles_of(rooms)),
        *(f"circle of modules: {', '.join(members)}" for members in inside),
    ]
    for room in sorted(rooms, key=lambda x: (-floors[x], x)):
        lines.append(f"{floors[room]:3}  {room:24} {' '.join(sorted(rooms[room])) or '-'}")
    return "\n".join(lines) + "\n"


def picture(package: Path = PACKAGE, depth: int = 1) -> str:
    """The same as SVG: one row a floor, an arrow for each import between rooms."""
    rooms = rooms_of(modules_of(package), depth)
    floors = floors_of(rooms)
    rows = defaultdict(list)
    for room in sorted(rooms):
        rows[floors[room]].append(room)
    top, broadest = max(rows), max(map(len, rows.values()))
    width = EDGE * 2 + broadest * WIDTH + (broadest - 1) * GAP
    places = {}
    for floor, row in rows.items():
        # Every other floor stands a little aside, so that arrows do not run through boxes.
        left = (width - len(row) * WIDTH - (len(row) - 1) * GAP) / 2
        for position, room in enumerate(row):
            places[room] = (left + position * (WIDTH + GAP), EDGE + (top - floor) * RISE)
    height = EDGE * 2 + HEIGHT + top * RISE
    title = f"{len(rooms)} rooms, {len(rows)} floors, {sum(map(len, rooms.values()))} arrows"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f"<title>Who imports whom in msb_pull: {title}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(_arrow(places[here], places[there]) for here in sorted(rooms) for there in sorted(rooms[here])),
        *(_box(room, *places[room]) for room in sorted(rooms)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrow(here: tuple[float, float], there: tuple[float, float]) -> str:
    x, y, to_x, to_y = here[0] + WIDTH / 2, here[1] + HEIGHT, there[0] + WIDTH / 2, there[1]
    far = (to_y - y) / RISE > 1
    # Long arrows bend outwards, or they would pass behind the boxes between.
    bend = (x + to_x) / 2 + ((WIDTH + GAP) * 0.7 * (1 if x <= to_x else -1) if far else 0)
    return (
        f'<path d="M{x:g} {y:g}Q{bend:g} {(y + to_y) / 2:g} {to_x:g} {to_y:g}" fill="none" stroke="#889" '
        'stroke-opacity=".6" marker-end="url(#tip)"/>'
    )


def _box(room: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#eef3fb" stroke="#457"/>'
        f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}" text-anchor="middle">{escape(room)}</text>'
    )


def main() -> None:
    """Prints the summary, or writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", action="store_true", help="write docs/rooms.svg")
    parser.add_argument("--depth", type=int, default=1, help="how deep folders are rooms (1)")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="another checkout's msb_pull")
    options = parser.parse_args()
    if options.svg:
        (DOCS / "rooms.svg").write_text(picture(options.package.resolve(), options.depth), encoding="utf-8")
    else:
        sys.stdout.write(summary(options.package.resolve(), options.depth))


if __name__ == "__main__":
    main()
