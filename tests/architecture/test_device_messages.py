"""No message of a device names a command that only a cloud has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaperone_common.artefacts.manifest import pull_remedy
from edge_client.apps.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
CLOUD_COMMAND = "chaperone-cloud "


def texts(source: bytes) -> Iterator[tuple[int, str]]:
    """Yield the line and the value of each string that is no docstring."""
    tree = ast.parse(source)
    parents = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, parents) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_no_text_of_the_device_names_a_command_of_the_cloud() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {text}"
        for path in sorted((REPOSITORY / "edge_client").rglob("*.py"))
        for line, text in texts(path.read_bytes())
        if CLOUD_COMMAND in text
    ]
    assert found == []


def test_a_command_in_a_message_would_be_found() -> None:
    assert list(texts(b'"""run `chaperone-cloud serve`"""\nx = f"run `chaperone-cloud serve` {1}"')) == [
        (2, "run `chaperone-cloud serve` ")
    ]


def test_the_remedy_of_a_missing_model_is_a_command_of_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    remedy = pull_remedy(Path("models/tiny/edge"), "edge")
    assert remedy == "run `chaperone models pull --pair tiny --cloud HOST:PORT`"
    with pytest.raises(SystemExit) as ended:
        main([*remedy.removeprefix("run `chaperone ").rstrip("`").split()[:2], "--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert "--pair NAME" in help_text
    assert "--cloud HOST:PORT" in help_text
