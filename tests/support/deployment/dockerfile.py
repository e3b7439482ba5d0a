"""The stages and steps of a Dockerfile."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dockerfile_parse import DockerfileParser


class Step(NamedTuple):
    """One instruction; lines that continue each other are joined."""

    instruction: str
    value: str


class Stage(NamedTuple):
    """The steps from one FROM to the next."""

    name: str
    base: str  # an image with its tag, or the name of an earlier stage
    steps: list[Step]

    def values(self, instruction: str) -> list[str]:
        """Return the values of all steps of one kind."""
        return [step.value for step in self.steps if step.instruction == instruction]

    def settings(self, instruction: str) -> dict[str, str]:
        """Return what ENV or ARG sets."""
        return {name: text for value in self.values(instruction) for name, text in assignments(value).items()}

    def exec_form(self, instruction: str) -> list[str]:
        """Return the words of the last ENTRYPOINT or CMD; raise ValueError for the form that needs a shell."""
        words = json.loads(self.values(instruction)[-1])
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise ValueError(f"{instruction} of {self.name}: not a list of strings")
        return words


def stages(path: Path) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name, in their order. Each must have a name."""
    found: dict[str, Stage] = {}
    current = Stage("", "", [])  # nothing may stand before the first FROM
    for step in _steps(path):
        if step.instruction == "FROM":
            base, separator, name = step.value.partition(" AS ")
            if not separator:
                raise ValueError(f"{path.name}: the stage on {base} has no name")
            current = found[name] = Stage(name, base, [])
        else:
            if not found:
                raise ValueError(f"{path.name}: {step.instruction} before the first FROM")
            current.steps.append(step)
    return found


def assignments(value: str) -> dict[str, str]:
    """Return what one ENV or ARG sets."""
    return {name: text for name, _, text in (word.partition("=") for word in shlex.split(value))}


def _steps(path: Path) -> Iterator[Step]:
    parser = DockerfileParser(fileobj=io.BytesIO(path.read_bytes()))
    for entry in parser.structure:
        if entry["instruction"] != "COMMENT":
            yield Step(entry["instruction"], entry["value"])
