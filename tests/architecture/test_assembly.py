"""One module knows how an engine is put together."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CALLERS = ("edge_client", "benchmarks", "examples", "tests")


def called_names(source: str) -> Iterator[str]:
    """Yield the last part of the name of every called object."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                yield function.attr
            elif isinstance(function, ast.Name):
                yield function.id


def test_only_the_assembly_builds_engines() -> None:
    files = (path for folder in CALLERS for path in (REPOSITORY / folder).rglob("*.py"))
    builders = [path for path in files if "Engine" in called_names(path.read_text(encoding="utf-8"))]
    assert builders == [REPOSITORY / "edge_client" / "assembly.py"]
