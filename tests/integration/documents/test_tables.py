"""The tables of docs/using.md have every field of a result, and every exported error with its exit code."""

from __future__ import annotations

import pickle
import re
from dataclasses import fields
from typing import Any

import pytest

import edge_client
from chaperone_common.command.console import Console
from chaperone_common.command.program import run_program
from edge_client import (
    ChaperoneError,
    Generation,
    GenerationParams,
    GenerationStats,
    Mode,
    PartialGeneration,
    Promises,
)
from edge_client.config import GateSettings
from tests.support.processes.commands import ROOT

PAGE = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
ERRORS = [
    error
    for error in map(vars(edge_client).get, edge_client.__all__)
    if isinstance(error, type) and issubclass(error, ChaperoneError)
]


def rows(head: str) -> dict[str, list[str]]:
    """Return the cells of a table after the first, by the name in the first."""
    _, found, rest = PAGE.partition(f"| {head} |")
    assert found, head
    lines = [line for line in rest.partition("\n\n")[0].splitlines() if line.startswith("| ")]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("| meaning")
    ]
    return {first.strip("` "): others for first, *others in cells if first.startswith("`")}


@pytest.mark.parametrize(
    ("head", "kind"), [("field of `Generation`", Generation), ("field of `stats`", GenerationStats)]
)
def test_each_field_has_a_row_in_the_order_of_the_class(head: str, kind: Any) -> None:
    table = rows(head)
    assert [*table] == [field.name for field in fields(kind)]
    assert all(all(cells) for cells in table.values())


def test_each_exported_error_has_a_row_with_its_exit_code() -> None:
    table = rows("class")
    assert {*table} == {error.__name__ for error in ERRORS}
    for error in ERRORS:

        def fail(error: type[ChaperoneError] = error) -> int:
            raise error("this")

        assert int(table[error.__name__][-1]) == run_program(Console("chaperone", None, None, {}), fail), error.__name__


def test_the_defaults_of_the_promises_are_those_of_the_settings() -> None:
    for name in ("catch", "max_deviation"):
        (row,) = re.findall(rf"^\| `{name}` \|.*promise.*$", PAGE, re.MULTILINE)
        assert f"({getattr(GateSettings(), name)}" in row


def test_a_partial_can_be_pickled() -> None:
    partial = PartialGeneration((1, 2), (3,), "a", (), GenerationParams(), Mode.GATED, Promises())
    assert pickle.loads(pickle.dumps(partial)) == partial
