"""Digests of everything that a result depends on: values, files and source."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PRODUCT = ("common", "edge_client", "cloud_supervisor", "link_emulator")
OURS = "benchmarks"


def digest_of(parts: Mapping[str, Any]) -> str:
    """Return sixteen hexadecimal digits for any value that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_files(paths: Iterable[Path], root: Path) -> str:
    """Return a digest of the files' contents and of their names relative to `root`."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def digest_of_source(root: Path, module: str) -> str:
    """Return a digest of the source that runs with a module of `benchmarks`: the product and `files_of` the module."""
    product = [path for package in PRODUCT for path in (root / package).glob("**/*.py")]
    return digest_of_files({*product, *files_of(root, module)}, root)


def files_of(root: Path, module: str) -> set[Path]:
    """Return the file of a module, and those of all modules below `benchmarks` that it imports, at any depth.

    Imports inside functions count. So does a string that is the whole name of a module: `python -m` starts it.
    Raises ValueError if there is no such module.
    """
    first = _file_of(root, module)
    if first is None:
        raise ValueError(f"module: {module!r} has no file below {root}")
    found, pending = {first}, [first]
    while pending:
        names = set(_names_in(ast.parse(pending.pop().read_bytes())))
        new = {path for name in names if (path := _file_of(root, name)) is not None} - found
        found |= new
        pending += sorted(new)
    return found


def _names_in(tree: ast.Module) -> Iterator[str]:
    """Yield each dotted name below `benchmarks` that may be a module, and the packages above it."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(str(module), aliases, level=0):
                names = [f"{module}.{alias.name}" for alias in aliases]
            case ast.Constant(str(text)):
                names = [text]
            case _:
                continue
        for name in names:
            parts = name.split(".")
            if parts[0] == OURS:
                yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _file_of(root: Path, name: str) -> Path | None:
    """Return the file of a module or package; None if the name is that of neither."""
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
