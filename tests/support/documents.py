"""The fenced blocks of README.md and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import dedent

from tests.support.processes.commands import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^( *)```(.*)$")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_INNER = re.compile(r"\$\(([^()]*)\)")  # a command whose output the line uses


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str  # relative to the repository
    line: int  # of its first line, from 1
    language: str
    text: str

    def __str__(self) -> str:
        """Return the place, for the name of a test."""
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    """Yield all fenced blocks."""
    for page in PAGES:
        begun: int | None = None
        language = ""
        lines = page.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if (fence := _FENCE.match(line)) is None:
                continue
            if begun is None:
                begun, language = number + 1, fence[2]
            else:
                text = dedent("\n".join(lines[begun:number]))
                yield Block(str(page.relative_to(ROOT)), begun + 1, language, text)
                begun = None
        assert begun is None, f"{page}: a block has no end"


def blocks_of(language: str) -> list[Block]:
    """Return the blocks of a language; fails if there are none."""
    found = [block for block in blocks() if block.language == language]
    assert found, language
    return found


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a shell script without control flow, with its variables filled in."""
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = re.sub(rf"\${name}\b", value, line)
        for inner in _INNER.findall(line):
            yield shlex.split(inner)
        words = shlex.split(line, comments=True)
        if len(words) == 1 and _ASSIGNMENT.match(words[0]):
            name, _, value = words[0].partition("=")
            variables[name] = value
            continue
        yield from _split(words)


def _split(words: list[str]) -> Iterator[list[str]]:
    """Yield the commands of a line: without assignments in front, and without the files of redirections."""
    command: list[str] = []
    for word in [*words, "&&"]:
        if word != "&&":
            command.append(word)
            continue
        while command and _ASSIGNMENT.match(command[0]):
            command.pop(0)
        if ">" in command:
            command = command[: command.index(">")]
        if command:
            yield command
        command = []
