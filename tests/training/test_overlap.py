"""Near copies of reported texts."""

from __future__ import annotations

import pytest

from training.prompts.overlap import WORDS, Reported
from training.prompts.reported import reported_tasks, reported_texts

REPORTED = "Write a function that returns the sum of all even numbers in a list of integers."


@pytest.mark.parametrize(
    "text",
    [
        REPORTED,
        "please: WRITE a function\n that returns the sum -- of all even numbers",
        f"Before it. {REPORTED} And after it.",
    ],
)
def test_a_text_that_shares_a_run_of_words_is_a_near_copy(text: str) -> None:
    assert Reported([REPORTED]).overlaps(text)


def test_a_text_that_shares_one_word_less_is_none() -> None:
    shared = " ".join(REPORTED.split()[: WORDS - 1])
    assert not Reported([REPORTED]).overlaps(f"{shared} something else entirely")


def test_a_short_reported_text_is_found_inside_a_longer_one() -> None:
    reported = Reported(["What is a black hole?"])
    assert reported.overlaps("Say: what is a black hole, and who found the first?")
    assert not reported.overlaps("What is a black cat?")


def test_an_empty_text_overlaps_with_nothing() -> None:
    assert not Reported(["", "!!"]).overlaps("anything at all")
    assert not Reported([REPORTED]).overlaps("")


def test_every_reported_text_is_found() -> None:
    reported = Reported(reported_texts())
    assert all(reported.overlaps(text) for text in reported_texts())
    assert len(list(reported_texts())) > 400


def test_reported_tasks_are_the_questions_without_the_instruction() -> None:
    tasks = list(reported_tasks())
    assert len(tasks) == 200
    assert not any("Think step by step" in task for task in tasks)
