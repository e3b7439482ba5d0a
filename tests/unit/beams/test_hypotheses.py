"""Finished beams: their ranks, and the end of a search."""

from __future__ import annotations

import pytest

from chaperone_common.beams.hypotheses import Hypotheses, Hypothesis


def _text(length: int, logprob: float, first: int = 0) -> Hypothesis:
    return Hypothesis(tuple(range(first, first + length)), logprob, "stop")


def test_the_length_penalty_divides_the_log_probability() -> None:
    assert _text(4, -2.0).score(1.0) == -0.5
    assert _text(4, -2.0).score(0.0) == -2.0
    assert _text(4, -2.0).score(2.0) == -0.125
    assert _text(4, -2.0).score(-1.0) == -8.0


def test_the_best_are_kept_best_first() -> None:
    found = Hypotheses(2)
    for hypothesis in (_text(2, -2.0), _text(4, -2.0, 10), _text(3, -9.0, 20), _text(1, -0.5, 30)):
        found.add(hypothesis)
    assert [hypothesis.token_ids[0] for hypothesis in found.best] == [10, 30]


def test_a_text_is_kept_once() -> None:
    found = Hypotheses(3)
    found.add(_text(2, -2.0))
    found.add(_text(2, -2.0))
    assert len(found.best) == 1


@pytest.mark.parametrize(
    ("finished", "best_running", "length", "early_stopping", "final"),
    [
        ((), None, 3, False, True),  # no beam runs
        ((-1.0,), -9.0, 3, False, False),  # one is missing
        ((-1.0, -2.0), -9.0, 3, False, True),  # -3 a token, the worst finished has -1
        ((-1.0, -2.0), -2.4, 3, False, False),
        ((-1.0, -2.0), -2.4, 3, True, True),
    ],
)
def test_a_search_ends_when_no_running_beam_can_be_among_the_best(
    finished: tuple[float, ...], best_running: float | None, length: int, early_stopping: bool, final: bool
) -> None:
    found = Hypotheses(2, early_stopping=early_stopping)
    for number, logprob in enumerate(finished):
        found.add(_text(2, logprob, 10 * number))
    assert found.are_final(best_running, length) is final
