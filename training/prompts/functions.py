"""Tasks about Python functions, from the sources of installed packages with permissive licences."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import numpy as np

from training.prompt import Prompt

_PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|0BSD|Zlib)\b", re.IGNORECASE)
_RESTRICTED = re.compile(r"\b(GPL|LGPL|AGPL|MPL|GNU)\b", re.IGNORECASE)
_LARGEST_FILE = 200_000  # bytes; longer ones are mostly tables
_FILES_EACH = 60  # of a package, spread evenly
_OTHER_FOLDERS = {"tests", "test", "testing", "_vendor", "vendor"}
_DOCSTRING = (40, 900)  # characters
_BODY = (3, 30)  # lines without the docstring
_SECTION = re.compile(r"\n\s*(Args|Arguments|Parameters|Returns|Raises|Example|Examples|:param|>>>)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Function:
    """A function with its docstring, taken from a package."""

    package: str
    name: str
    head: str  # signature and docstring
    source: str  # the whole function, with the docstring
    purpose: str  # the first paragraph of the docstring


def permissive_packages() -> list[Distribution]:
    """Return the installed packages whose metadata name permissive licences alone, by name."""
    found = {}
    for distribution in distributions():
        fields = distribution.metadata
        classifiers = (text for text in fields.get_all("Classifier") or () if text.startswith("License ::"))
        stated = " ".join((*(fields.get_all("License-Expression") or ()), *classifiers))
        if _PERMISSIVE.search(stated) and not _RESTRICTED.search(stated):
            found[fields["Name"]] = distribution
    return [found[name] for name in sorted(found, key=str.lower)]


def functions_of(distribution: Distribution) -> Iterator[Function]:
    """Yield the documented functions of a package's sources; files that are no Python are passed over."""
    package = distribution.metadata["Name"]
    sources = [
        file
        for file in sorted(distribution.files or ())
        if file.suffix == ".py" and not any(part in _OTHER_FOLDERS for part in file.parts)
    ]
    for file in sources[:: -(-len(sources) // _FILES_EACH) or 1]:
        path = Path(str(distribution.locate_file(file)))
        try:
            if path.stat().st_size <= _LARGEST_FILE:
                yield from functions_in(path.read_text(encoding="utf-8"), package)
        except (OSError, UnicodeDecodeError):
            continue


def functions_in(code: str, package: str) -> Iterator[Function]:
    """Yield the documented functions of a module; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old sources: invalid escapes and the like
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = code.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (function := _function(node, lines, package)) is not None:
            yield function


def _function(node: ast.FunctionDef, lines: list[str], package: str) -> Function | None:
    docstring = ast.get_docstring(node)
    if docstring is None or not docstring.isascii() or not _DOCSTRING[0] <= len(docstring) <= _DOCSTRING[1]:
        return None
    if node.name.startswith("_") or node.decorator_list or len(node.body) < 2 or node.end_lineno is None:
        return None
    if any(argument.arg in ("self", "cls") for argument in node.args.args):
        return None
    if not _BODY[0] <= node.end_lineno - node.body[1].lineno + 1 <= _BODY[1]:
        return None
    source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]))
    purpose = " ".join(_SECTION.split(docstring)[0].split("\n\n")[0].split())
    return Function(package, node.name, head, source, purpose) if len(purpose) >= 20 else None


_FORMS = (
    "Here is the beginning of a Python function. Write it to the end, and reply with nothing but code.\n\n{head}",
    "Finish this function:\n\n```python\n{head}\n```",
    "Write a Python function `{name}`. {purpose}",
    "I need a function in Python with this signature and behaviour. Please implement it and add two examples.\n\n"
    "```python\n{head}\n```",
    "What does this function do? Explain it step by step.\n\n```python\n{source}\n```",
    "Write pytest tests for this function.\n\n```python\n{source}\n```",
    "Review this code. Name possible problems, and show a better version.\n\n```python\n{source}\n```",
    "Add type hints and a clearer docstring to this function:\n\n{source}",
)


def tasks(functions: list[Function], count: int, seed: int) -> list[Prompt]:
    """Return `count` tasks, or fewer, each about another function; packages take turns, so that no one rules."""
    draws = np.random.default_rng(seed)
    by_package: dict[str, list[Function]] = {}
    for function in functions:
        by_package.setdefault(function.package, []).append(function)
    for members in by_package.values():
        draws.shuffle(members)
    prompts: list[Prompt] = []
    names: set[str] = set()
    while len(prompts) < count and by_package:
        for package in sorted(by_package):
            function = by_package[package].pop()
            if not by_package[package]:
                del by_package[package]
            if function.name in names or len(prompts) == count:
                continue
            names.add(function.name)
            form = _FORMS[len(prompts) % len(_FORMS)]
            text = form.format(head=function.head, name=function.name, purpose=function.purpose, source=function.source)
            prompts.append(Prompt(f"code/{len(prompts)}", "code", text))
    return prompts
