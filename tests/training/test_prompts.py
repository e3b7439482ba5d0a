"""Prompts for training: functions, reasoning, questions, and files of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.task_suites import REASONING_SEED
from chaperone_common.errors import ConfigError
from training.__main__ import main
from training.prompt import Prompt, read_prompts, write_prompts
from training.prompts import functions, questions, reasoning
from training.prompts.overlap import words_of
from training.prompts.reported import reported_tasks

MODULE = '''
def clamp(value, low, high):
    """Return the value, but no less than `low` and no more than `high`.

    Args:
        value: a number
    """
    if value < low:
        return low
    return min(value, high)


def _own(value):
    """A private function with a docstring that is long enough to be taken."""
    a = value
    b = a
    return b


def bare(value):
    a = value
    b = a
    return b


class Thing:
    def method(self):
        """Return a thing, with a docstring that is long enough to be taken."""
        a = 1
        b = a
        return b
'''


def test_public_functions_with_docstrings_are_taken() -> None:
    (function,) = functions.functions_in(MODULE, "package")
    assert function.name == "clamp"
    assert function.purpose == "Return the value, but no less than `low` and no more than `high`."
    assert function.head.startswith("def clamp(value, low, high):")
    assert function.head.endswith('"""')
    assert function.source.endswith("return min(value, high)")


def test_a_file_that_is_no_python_gives_nothing() -> None:
    assert list(functions.functions_in("def broken(:", "package")) == []


def test_packages_take_turns_and_no_function_is_there_twice() -> None:
    def function(package: str, name: str) -> functions.Function:
        return functions.Function(package, name, f"def {name}():", f"def {name}(): pass", f"Do what {name} does.")

    found = [
        *(function("large", f"l{number}") for number in range(50)),
        function("small", "s"),
        function("small", "l0"),
    ]
    prompts = functions.tasks(found, 4, seed=3)
    assert len(prompts) == 4
    assert any("`s`" in prompt.text or "def s" in prompt.text for prompt in prompts)
    assert len({prompt.id for prompt in prompts}) == 4
    assert functions.tasks(found, 4, seed=3) == prompts
    assert len(functions.tasks(found, 1000, seed=3)) == 51  # `l0` of the other package is left out


def test_only_packages_with_permissive_licences_are_read() -> None:
    names = {package.metadata["Name"].lower() for package in functions.permissive_packages()}
    assert "numpy" in names
    assert names.isdisjoint({"certifi", "tqdm"})  # these name the MPL


def test_reasoning_tasks_are_none_of_the_reported_ones() -> None:
    reported = {words_of(task) for task in reported_tasks()}
    prompts = reasoning.tasks(60, 7, reported)
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 60
    assert reasoning.tasks(60, 7, reported) == prompts
    first = words_of(prompts[2].text)
    assert all(words_of(prompt.text) != first for prompt in reasoning.tasks(60, 7, {*reported, first}))
    with pytest.raises(ConfigError, match=f"--seed: {REASONING_SEED} is the seed of reported tasks"):
        reasoning.tasks(1, REASONING_SEED, reported)


def test_no_tasks_of_reasoning_can_be_wanted() -> None:
    assert reasoning.tasks(0, 7, set()) == []


def test_questions_are_the_numbered_lines_of_an_answer() -> None:
    answer = (
        'Sure! Here are some:\n1. "Why is the sky blue in the morning?"\n2) Too short\n**3.** Write a poem about rain.'
    )
    assert list(questions.questions_in(answer)) == ["Why is the sky blue in the morning?", "Write a poem about rain."]


def test_each_answer_gives_a_question_in_turn_and_none_twice() -> None:
    answers = [
        "1. How do bees find flowers?\n2. What do bees eat in winter?",
        "1. How do bees find flowers??\n2. Why rain?",
    ]
    texts = [prompt.text for prompt in questions.questions(answers, 10)]
    assert texts == ["How do bees find flowers?", "What do bees eat in winter?"]
    assert len(questions.questions(answers, 1)) == 1


def test_requests_for_questions_differ_and_follow_from_the_seed() -> None:
    asked = questions.requests(500, seed=1)
    assert len(set(asked)) == 500
    assert asked == questions.requests(500, seed=1) != questions.requests(500, seed=2)


def test_a_file_of_prompts_is_read_back(tmp_path: Path) -> None:
    prompts = [Prompt("a", "code", "Zeile\nzwei, é"), Prompt("b", "general", "x")]
    write_prompts(tmp_path / "deep" / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "deep" / "p.jsonl") == prompts


def test_a_file_of_other_prompts_is_left_as_it_is(tmp_path: Path) -> None:
    file, prompts = tmp_path / "p.jsonl", [Prompt("a", "code", "x")]
    for _ in range(2):
        write_prompts(file, prompts)
    with pytest.raises(ConfigError, match="it holds other prompts, and is left as it is; name another --out"):
        write_prompts(file, [*prompts, Prompt("b", "general", "y")])
    assert read_prompts(file) == prompts


def test_own_prompts_are_added_and_need_names_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, out = tmp_path / "own.jsonl", tmp_path / "p.jsonl"
    write_prompts(own, [Prompt("support/1", "general", "How do I return a parcel?")])
    made = ["prompts", "--pair", "tiny", "--code", "2", "--reasoning", "0", "--general", "0"]
    assert main([*made, "--own", str(own), "--out", str(out)]) == 0
    written = read_prompts(out)
    assert [prompt.kind for prompt in written] == ["code", "code", "general"]
    assert written[-1].id == "support/1"
    taken = tmp_path / "taken.jsonl"
    write_prompts(taken, [Prompt(written[0].id, "code", "x")])
    assert main([*made, "--own", str(taken), "--out", str(tmp_path / "q.jsonl")]) == 1
    assert "is there twice; give each prompt its own" in capsys.readouterr().err


def test_an_unknown_pair_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "--pair", "tyni", "--out", str(tmp_path / "p.jsonl")]) == 1
    assert "tyni" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "it holds no prompt"),
        ("{}\n", ":1: not a prompt"),
        ('{"id": "a", "kind": "poem", "text": "x"}', "kind 'poem' is none; there are code, general, reasoning"),
        ('{"id": "a", "kind": "code", "text": ""}', "must be texts that are not empty"),
        ('{"id": "a", "kind": "code", "text": "x"}\n' * 2, "id 'a' is there twice"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        read_prompts(path)
