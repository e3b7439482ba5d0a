"""Every command in README.md and docs/ is one that its program accepts: the real parsers read it."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import parser_of
from cloud_supervisor.cli.main import _parser as cloud_parser
from edge_client import EdgeConfig
from edge_client.apps.cli.main import _parser as device_parser
from link_emulator.command import _parser as link_parser
from tests.support.documents import Block, blocks, blocks_of, commands
from tests.support.processes.commands import ROOT

LANGUAGES = {"bash", "json", "mermaid", "python", "text", "yaml"}
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "chaperone": device_parser,
    "chaperone-cloud": cloud_parser,
    "chaperone-link": link_parser,
}
# The beginnings of commands that no parser of ours reads, and the reason why they are not run here.
OF_OTHERS = {
    "source .venv/bin/activate": "the environment of `make setup`, in which the tests run",
    "umask 077": "a command of the shell",
    "eval": "the command inside is read, and tests/integration/commands/test_completion.py runs the script",
    "aider --model openai/default": "tests/integration/endpoint/test_programs.py runs it",
    "python3 -m venv": "of Python itself",
    "pip download": "sources of llama.cpp, which take an hour to build",
    "tar": "the same",
    "cmake": "the same",
    "llama-quantize": "the same",
}


def parse(command: list[str]) -> str | None:
    """Have the real parser read a command; return its beginning in OF_OTHERS if it has none."""
    program, *arguments = Path(command[0]).name, *command[1:]
    if program in PARSERS:
        _check(PARSERS[program](), arguments)
    elif program == "make":
        _check_targets(arguments)
    elif command[:3] == ["python", "-m", "benchmarks"]:
        _check(parser_of(arguments[2]), arguments[3:])
    elif command[:2] == ["python", "-m"]:
        assert find_spec(arguments[1]) is not None, command
        assert all((ROOT / argument).exists() for argument in arguments[2:] if not argument.startswith("-"))
    elif (program, arguments[:1]) == ("pip", ["install"]):
        _check_packages(arguments[1:])
    else:
        line = " ".join([program, *arguments])
        return next((beginning for beginning in OF_OTHERS if line.startswith(beginning)), f"unknown: {line}")
    return None


def _check(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    code: object = 0
    try:
        parser.parse_args(arguments)
    except SystemExit as ended:  # with 0 after its help or its version
        code = ended.code
    assert not code, f"{parser.prog} {' '.join(arguments)}"


def _check_targets(arguments: list[str]) -> None:
    declared = re.findall(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text().replace("\\\n", " "), re.MULTILINE)[0]
    assert {argument for argument in arguments if "=" not in argument} <= {*declared.split()}


def _check_packages(arguments: list[str]) -> None:
    """Check the paths and extras that are installed from a checkout."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for argument in arguments:
        if argument.startswith("."):
            path, _, chosen = argument.partition("[")
            assert (ROOT / path / "pyproject.toml").is_file()
            assert {*filter(None, chosen.rstrip("]").split(","))} <= extras.keys()


def test_every_block_has_a_language() -> None:
    assert {str(block): block.language for block in blocks() if block.language not in LANGUAGES} == {}


@pytest.mark.parametrize("block", blocks_of("bash"), ids=str)
def test_a_command_is_accepted(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = [found for command in commands(block.text) if (found := parse(command)) not in (None, *OF_OTHERS)]
    assert unknown == []


def test_each_exception_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    used = {parse(command) for block in blocks_of("bash") for command in commands(block.text)}
    assert used - {None} == OF_OTHERS.keys()


@pytest.mark.parametrize("block", blocks_of("json"), ids=str)
def test_json_lines_are_json(block: Block) -> None:
    assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())


@pytest.mark.parametrize("block", blocks_of("yaml"), ids=str)
def test_settings_are_accepted(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(block.text, encoding="utf-8")
    if isinstance(models := yaml.safe_load(block.text), list):  # of llm: tests/integration/endpoint/test_programs.py
        assert [model.keys() for model in models] == [{"model_id", "model_name", "api_base"}]
    else:
        assert EdgeConfig.load(path) != EdgeConfig()


@pytest.mark.parametrize(
    "line",
    [
        "chaperone generate --mod exact hi",
        "chaperone-cloud models push",
        "chaperone-link run --profil 4g",
        "make chek",
        "python -m benchmarks run --no-such-option",
        "python -m tools.nothing",
        "pip install '.[egde]'",
    ],
)
def test_a_wrong_command_is_caught(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = commands(line)
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        parse(command)
