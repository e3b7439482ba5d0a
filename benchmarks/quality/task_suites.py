"""Suites of tasks: HumanEval's problems, seeded ones of reasoning-gym, and two sets without scores.

`prose` is reported on. `code` is for calibrating gates, and no result is reported on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kit.prompts import Problem, humaneval
from benchmarks.quality.sandbox import Outcome, run_python
from chaperone_common.errors import ConfigError

SUITES = ("humaneval", "reasoning", "prose", "code")
HUMANEVAL_PROBLEMS = 164
PROMPT_SETS = Path(__file__).parents[1] / "prompt_sets"
REASONING_SEED = 20260101
REASONING_EACH = 10
# Kinds of reasoning-gym that mostly need fewer than 400 tokens, in sizes that a small model can compute.
REASONING: Mapping[str, Mapping[str, int]] = {
    "basic_arithmetic": {"max_terms": 4, "max_digits": 2},
    "chain_sum": {"max_terms": 5, "max_digits": 3},
    "count_bits": {"max_n": 1000},
    "decimal_arithmetic": {"max_terms": 3},
    "fraction_simplification": {"max_value": 20, "max_factor": 10},
    "gcd": {"max_value": 100},
    "lcm": {"max_value": 30},
    "leg_counting": {"max_animals": 4},
    "letter_counting": {"max_words": 6},
    "number_filtering": {"max_numbers": 6},
    "number_sequence": {"max_complexity": 2},
    "number_sorting": {"max_numbers": 6},
    "prime_factorization": {"max_value": 200},
    "products": {"max_digits": 2},
    "simple_equations": {"max_terms": 3},
    "spell_backward": {"max_word_len": 6},
    "string_manipulation": {"max_string_length": 8, "max_num_rules": 3},
    "time_intervals": {},
    "word_sequence_reversal": {"max_words": 6},
    "word_sorting": {"max_words": 6},
}
_INSTRUCTION = "\n\nThink step by step, then give the answer alone on the last line, after `Answer:`."
_FENCED = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_ANSWER = re.compile(r"answer[*_`]*\s*:(?:[\s*`$]|\\[\[(])*(.*)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")  # models of this family box their results
_QUOTED = re.compile(r"`([^`]+)`")
_DECORATION = re.compile(r"^(?:[\s*`$]|\\[\[(])+|(?:[\s*`$.]|\\[\])])+$")  # Markdown and marks of formulas
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and the score of its answers; None if there is no right answer."""

    id: str
    message: str
    score: Callable[[str], Outcome] | None = None


def tasks_of(suite: str, count: int | None = None) -> list[Task]:
    """Return the tasks of a suite, or `count` of them, spread evenly; raise ConfigError for an unknown suite."""
    match suite:
        case "humaneval":
            tasks = [
                Task(problem.id, problem.message, partial(_passes, problem))
                for problem in humaneval(0, HUMANEVAL_PROBLEMS)
            ]
        case "reasoning":
            tasks = list(_reasoning())
        case "prose" | "code":
            tasks = list(_unscored(PROMPT_SETS / f"{suite}.jsonl"))
        case _:
            raise ConfigError(f"--suite: {suite!r} is none; there are {', '.join(SUITES)}")
    if count is None or count >= len(tasks):
        return tasks
    if count < 1:
        raise ConfigError(f"--tasks: {count}; at least 1")
    return [tasks[index * len(tasks) // count] for index in range(count)]


def code_of(answer: str) -> str:
    """Return the first block of code in an answer, or all of it."""
    found = _FENCED.search(answer)
    return found.group(1) if found else answer


def last_answer(answer: str) -> str:
    """Return the text after the last `Answer:`, or the boxed one after it, else the last line; without decoration."""
    answers = [(found.start(), found[1]) for marks in (_ANSWER, _BOXED) for found in marks.finditer(answer)]
    marked = [text for _, text in sorted(answers) if _bare(text)]
    lines = [line for line in answer.splitlines() if _bare(line)]
    text = ["", *lines, *marked][-1]
    return _bare([text, *_QUOTED.findall(text)][-1])


def _bare(text: str) -> str:
    return _TEXT.sub(r"\1", _DECORATION.sub("", text)).replace(r"\times", "×")


def _passes(problem: Problem, answer: str) -> Outcome:
    """Return whether the code passes; the head comes first for its imports and helpers, and the answer overrides it."""
    code = code_of(answer)
    first = "\n".join(_FUTURE.findall(code))  # they must be the first statements
    body = _FUTURE.sub("", code)
    program = f"{first}\n{problem.head}    pass\n\n{body}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"
    return run_python(program)


def _unscored(path: Path) -> Iterator[Task]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Task(row["id"], row["prompt"])


def _reasoning() -> Iterator[Task]:
    try:
        import reasoning_gym  # the import takes seconds
    except ImportError as error:
        raise ConfigError(f"--suite: reasoning needs {error.name}; run `pip install 'chaperone-llm[dev]'`") from None
    for name, sizes in REASONING.items():
        dataset = reasoning_gym.create_dataset(name, size=REASONING_EACH, seed=REASONING_SEED, **sizes)
        for index in range(REASONING_EACH):
            entry = dataset[index]
            yield Task(f"{name}/{index}", entry["question"] + _INSTRUCTION, partial(_answers, dataset, dict(entry)))


def _answers(dataset: Any, entry: dict[str, Any], answer: str) -> Outcome:
    given = last_answer(answer)
    try:
        passed = float(dataset.score_answer(answer=given, entry=entry)) >= 1.0
    except Exception as error:  # scorers raise any error for answers of another form
        return Outcome(False, f"{given[:80]!r} cannot be scored: {error}"[:200])
    return Outcome(passed, "" if passed else f"{given[:80]!r}, expected {str(entry['answer'])[:80]!r}")
