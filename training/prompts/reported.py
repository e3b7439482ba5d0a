"""The texts that this project reports results on or calibrates with, without the instructions around them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.kit.prompts import INSTRUCTION, humaneval, read_prompts
from benchmarks.quality.task_suites import HUMANEVAL_PROBLEMS, PROMPT_SETS, tasks_of

_SETS = ("reporting", "tuning", "whole")


def reported_texts() -> Iterator[str]:
    """Yield HumanEval's problems and solutions, the general prompts, and the tasks of the suites without scores."""
    for problem in humaneval(0, HUMANEVAL_PROBLEMS):
        yield problem.head
        yield problem.solution
    for name in _SETS:
        prompts = read_prompts(PROMPT_SETS / f"{name}.jsonl")
        yield from (prompt.text for prompt in prompts if prompt.category != "humaneval")
    yield from (task.message for task in tasks_of("prose"))
    yield from (task.message.removeprefix(INSTRUCTION) for task in tasks_of("code"))


def reported_tasks() -> Iterator[str]:
    """Yield the reasoning tasks."""
    return (task.message.rpartition("\n\n")[0] for task in tasks_of("reasoning"))
