"""The shape of the folders: small rooms, and no import circle between modules or between rooms."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# The packages below each import root.
ROOTS = {
    "common": ["chaperone_common"],
    ".": ["edge_client", "cloud_supervisor", "link_emulator", "benchmarks", "training", "adaptive"],
}
MOST_MODULES = 14  # of a folder, apart from __init__.py and generated code


def sources() -> dict[str, Path]:
    """Return every module of the project by its dotted name; a package is named without `__init__`."""
    found = {}
    for root, packages in ROOTS.items():
        for package in packages:
            for path in sorted((REPOSITORY / root / package).rglob("*.py")):
                parts = path.relative_to(REPOSITORY / root).with_suffix("").parts
                if "pb" not in parts:
                    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names that code imports anywhere, except those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                continue
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(str(module), names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case _:
                pass
        yield from imported_names(child)


def import_graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return the modules that each module imports."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted = set()
        for imported in imported_names(ast.parse(path.read_bytes())):
            target = imported
            while target and target not in modules:
                target = target.rpartition(".")[0]
            wanted.add(target)
        graph[name] = wanted - {name, ""}
    return graph


def room_of(module: str, modules: Mapping[str, Path]) -> str:
    """Return the folder of a module; the modules of a top-level folder are rooms of their own."""
    folder = module if modules[module].name == "__init__.py" else module.rpartition(".")[0]
    return folder if "." in folder else module


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one import circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circle_in(import_graph(sources())) == []


def test_no_room_imports_itself_in_a_circle() -> None:
    modules = sources()
    rooms: dict[str, set[str]] = {}
    for module, imports in import_graph(modules).items():
        room = room_of(module, modules)
        rooms.setdefault(room, set()).update({room_of(imported, modules) for imported in imports} - {room})
    assert circle_in(rooms) == []


def test_a_circle_would_be_found() -> None:
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "line", ["import benchmarks.kit.prompts", "def f() -> None:\n    from benchmarks.kit import prompts"]
)
def test_an_import_is_found_at_any_place(line: str) -> None:
    (name,) = imported_names(ast.parse(line))
    assert name == "benchmarks.kit.prompts"


def test_folders_are_small() -> None:
    folders = [
        "common",
        "edge_client",
        "cloud_supervisor",
        "link_emulator",
        "benchmarks",
        "examples",
        "tools",
        "training",
        "adaptive",
        "tests",
    ]
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    sizes = Counter(path.parent for path in paths if path.name != "__init__.py" and "pb" not in path.parts)
    crowded = {str(folder.relative_to(REPOSITORY)): size for folder, size in sizes.items() if size > MOST_MODULES}
    assert crowded == {}
