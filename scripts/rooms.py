"""The import graph of t2i_rl as two lines of figures: between its files, and between its rooms.

    python scripts/rooms.py               # of this checkout
    python scripts/rooms.py OTHER         # of another one, such as an older

A room is a folder or a file at the top of the package. Floors: the longest way along imports, in files or rooms; a
circle counts as one. Imports inside functions and for type checkers count like any other.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import grimp

PACKAGE = "t2i_rl"
Graph = Mapping[str, frozenset[str]]


def files(root: Path) -> Graph:
    """Which files of the package each of them imports; empty `__init__.py` files are left out."""
    sys.path.insert(0, str(root))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    shown = {name for name in graph.modules if graph.find_modules_directly_imported_by(name) or leaf(root, name)}
    return {name: graph.find_modules_directly_imported_by(name) & shown for name in shown}


def leaf(root: Path, name: str) -> bool:
    return root.joinpath(*name.split(".")).with_suffix(".py").is_file()


def rooms(graph: Graph) -> Graph:
    """The same between the names below the package."""

    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    found: dict[str, set[str]] = {room(name): set() for name in graph}
    for name, imported in graph.items():
        found[room(name)] |= {room(other) for other in imported} - {room(name)}
    return {name: frozenset(imported) for name, imported in found.items()}


def reached(graph: Graph, start: str) -> set[str]:
    """All that a node imports, at any distance."""
    found, waiting = set[str](), [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def circles(graph: Graph) -> set[frozenset[str]]:
    """The groups of nodes that import each other at some distance."""
    below = {name: reached(graph, name) for name in graph}
    joined = {frozenset(o for o in below[name] if name in below[o]) | {name} for name in graph}
    return {circle for circle in joined if len(circle) > 1}


def floors(graph: Graph) -> int:
    """The longest way, in nodes, a circle being one."""
    of = {name: circle for circle in circles(graph) for name in circle}
    heights: dict[frozenset[str], int] = {}

    def height(node: frozenset[str]) -> int:
        if node not in heights:
            below = {of.get(o, frozenset({o})) for name in node for o in graph[name]} - {node}
            heights[node] = 1 + max(map(height, below), default=0)
        return heights[node]

    return max(height(of.get(name, frozenset({name}))) for name in graph)


def line(what: str, graph: Graph) -> str:
    arrows = sum(map(len, graph.values()))
    return f"{what}: {len(graph)} on {floors(graph)} floors, {arrows} arrows, {len(circles(graph))} circles"


if __name__ == "__main__":
    found = files(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
    print(line("files", found))
    print(line("rooms", rooms(found)))
