"""Tasks are scored as their suites define it: right answers pass, wrong ones fail with a reason."""

from __future__ import annotations

import pytest

from benchmarks.kit.prompts import humaneval
from benchmarks.quality.task_suites import Task, code_of, last_answer, tasks_of
from chaperone_common.errors import ConfigError


def scored(task: Task, answer: str) -> tuple[bool, str]:
    assert task.score is not None
    outcome = task.score(answer)
    return outcome.passed, outcome.reason


def test_the_given_solutions_of_humaneval_pass_and_others_do_not() -> None:
    [problem] = humaneval(0, 1)
    [task] = [task for task in tasks_of("humaneval") if task.id == problem.id]
    solution = f"{problem.head}{problem.solution}"
    assert scored(task, f"Here it is:\n```python\n{solution}\n```\nThat is all.") == (True, "")
    assert scored(task, solution.replace('"""', "'''")) == (True, "")
    passed, reason = scored(task, f"```python\n{problem.head}    return None\n```")
    assert not passed
    assert reason == "AssertionError"
    future = f"```python\nfrom __future__ import annotations\n{solution}\n```"
    assert scored(task, future) == (True, "")
    assert scored(task, "I cannot.") == (False, "SyntaxError: invalid syntax")


def test_a_bare_body_uses_the_helpers_of_its_head() -> None:
    """HumanEval/38 calls a function that only its head defines."""
    [problem] = humaneval(38, 1)
    [task] = [task for task in tasks_of("humaneval") if task.id == problem.id]
    alone = f"def {problem.entry_point}(s):\n{problem.solution}"
    assert scored(task, f"```python\n{alone}\n```") == (True, "")


def test_reasoning_tasks_use_their_authors_seeds_and_scores() -> None:
    tasks = tasks_of("reasoning")
    assert len(tasks) == 200
    assert [task.message for task in tasks] == [task.message for task in tasks_of("reasoning")]
    assert len({task.id for task in tasks}) == len({task.message for task in tasks}) == 200
    [task] = [task for task in tasks if task.id == "gcd/0"]
    assert not scored(task, "Answer: 10000019")[0]
    assert sum(scored(task, f"We see.\n**Answer: {number}**")[0] for number in range(1, 2000)) == 1


def test_every_answer_is_scored() -> None:
    for task in tasks_of("reasoning", 40):
        for answer in ("", "Answer: 2^2 * 3", "Answer: I do not know", "Answer: 1/0", "\ufffd", "Answer: []"):
            assert isinstance(scored(task, answer)[0], bool)


def test_prose_is_not_scored() -> None:
    assert all(task.score is None for task in tasks_of("prose"))


def test_a_part_of_a_suite_is_evenly_spread() -> None:
    ids = [task.id for task in tasks_of("humaneval", 4)]
    assert ids == [f"HumanEval/{number}" for number in (0, 41, 82, 123)]
    with pytest.raises(ConfigError, match="--tasks: 0; at least 1"):
        tasks_of("humaneval", 0)
    with pytest.raises(ConfigError, match="'gsm8k' is none"):
        tasks_of("gsm8k")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\nx = 1\n```\n```\ny\n```", "x = 1\n"),
        ("```\nx = 1", "x = 1"),
        ("x = 1", "x = 1"),
    ],
)
def test_the_first_block_of_code_is_the_answer(answer: str, code: str) -> None:
    assert code_of(answer) == code


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        ("Well.\nAnswer: 42.", "42"),
        ("answer: 1\nNo.\n**Answer:** `2`", "2"),
        ("It is\n7\n", "7"),
        ("**Answer:**\n\n42", "42"),
        ("Answer: 5\nAnswer:", "5"),
        (r"Answer: \(\boxed{13}\).", "13"),
        (r"Answer: \( -4 \)", "-4"),
        ("So\n\\[\n\\boxed{x + 1}\n\\]", "x + 1"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{3}" + "\nAnswer: 4", "4"),
        ("**Answer**: It is 45.\n" + r"So it is \(\boxed{45}\).", "45"),
        ("Answer:\n\\[\n\\boxed{42}\n\\]", "42"),
        (r"Answer: \[ 5 \]", "5"),
        (r"**Answer: \(13\)**", "13"),
        ("**Answer**: 5", "5"),
        (r"\boxed{\text{olleh}}", "olleh"),
        (r"\boxed{2 \times 3 \times 3}", "2 × 3 × 3"),
        ("So, the final answer is `7`.", "7"),
        ("Sorted:\n```\n['1', '2']\n```", "['1', '2']"),
        ("Answer: []", "[]"),
        ("", ""),
    ],
)
def test_the_last_answer_counts(answer: str, last: str) -> None:
    assert last_answer(answer) == last
