"""The coupled margin and the runner-up: the second best token, and its distance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.sampling import MAX_COUPLED_MARGIN, choose, softmax
from chaperone_common.types import SamplingParams
from tests.support.models.sampling import EXAMPLE, FILTERS, POSITIONS, SEEDS, brute_choice, make_logits, scores

# The margin


@settings(max_examples=150)
@given(values=st.lists(st.integers(-16, 16), min_size=2, max_size=9), seed=SEEDS, position=POSITIONS)
def test_margin_is_best_minus_second_best_score(values: list[int], seed: int, position: int) -> None:
    logits = np.array([value / 4 for value in values], np.float32)  # all weights above the threshold for rivals
    params = SamplingParams(1.0, seed=seed)
    second, best = np.sort(scores(logits, params, position))[-2:]
    for filters in (params, SamplingParams(1.0, top_k=len(values), seed=seed)):
        choice = choose(softmax(logits, 1.0), filters, position)
        assert choice.coupled_margin == pytest.approx(min(best - second, MAX_COUPLED_MARGIN), abs=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_margin_counts_rivals_that_truncation_removed(top_k: int) -> None:
    params = SamplingParams(1.0, top_k=top_k, seed=4)
    cut_off = 0
    for position in range(200):
        choice = choose(softmax(EXAMPLE, 1.0), params, position)
        raced = scores(EXAMPLE, params, position)
        best_other = max(score for token_id, score in enumerate(raced) if token_id != choice.token_id)
        expected = max(raced[choice.token_id] - best_other, 0.0)
        assert choice.coupled_margin == pytest.approx(expected, abs=1e-5)
        cut_off += expected == 0
    assert cut_off > 0


def test_margin_of_greedy_is_the_logit_gap() -> None:
    assert choose(softmax(np.array([1, 4, 2.5, 0], np.float32), 0.0), SamplingParams(), 5).coupled_margin == 1.5
    assert choose(softmax(np.array([3, 3], np.float32), 0.0), SamplingParams(), 5).coupled_margin == 0.0
    far = choose(softmax(np.array([0, 99], np.float32), 0.0), SamplingParams(), 5)
    assert far.coupled_margin == MAX_COUPLED_MARGIN


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(1.0), SamplingParams(1.0, top_k=1)])
def test_a_vocabulary_of_one_has_no_rival(params: SamplingParams) -> None:
    choice = choose(softmax(np.array([0.5], np.float32), params.temperature), params, 0)
    assert choice.token_id == 0
    assert choice.coupled_margin == MAX_COUPLED_MARGIN


# The runner-up


@pytest.mark.parametrize(
    ("logits", "winner", "second"),
    [
        ([1, 4, 2.5, 0], 1, 2),
        ([2.5, 4, 1, 0], 1, 0),
        ([4, 1, 2, 3], 0, 3),
        ([1, 2, 3, 4], 3, 2),
        ([1, 5, 5, 5], 1, 2),  # ties go to the lower id, for the second place too
        ([3, 5, 1, 3], 1, 0),
        ([7, 3, 3, 0], 0, 1),
        ([2, 2], 0, 1),
        ([2], 0, 0),  # without a rival the choice is its own runner-up
    ],
)
def test_greedy_names_the_second_largest_logit(logits: list[float], winner: int, second: int) -> None:
    choice = choose(softmax(np.array(logits, np.float32), 0.0), SamplingParams(), 5)
    assert (choice.token_id, choice.runner_up) == (winner, second)


@pytest.mark.parametrize("shape", ["flat", "normal", "peaked", "tied"])
@pytest.mark.parametrize("size", [2, 4, 63, 64, 5000])
def test_sampling_names_the_second_best_score(shape: str, size: int) -> None:
    logits = make_logits(shape, size, 4)
    for position in range(60):
        params = SamplingParams(0.5 + position % 3, seed=10)
        choice = choose(softmax(logits, params.temperature), params, position)
        first, second = np.argsort(-scores(logits, params, position))[:2]
        assert (choice.token_id, choice.runner_up) == (first, second), position


@pytest.mark.parametrize("size", [2, 7, 50])
def test_under_truncation_the_runner_up_is_the_best_of_all_others(size: int) -> None:
    """It counts even if truncation removed it, because the cloud's distribution may have kept it."""
    logits = np.random.default_rng(6).standard_normal(size).astype(np.float32)  # no weight is too small for a rival
    removed_is_ahead = 0
    for number, (top_k, top_p, min_p) in enumerate(FILTERS):
        params = SamplingParams(1.5, top_p, top_k, min_p, seed=number)
        for position in range(5):
            choice = choose(softmax(logits, params.temperature), params, position)
            others = scores(logits, params, position)
            gap = float(others[choice.token_id])
            others[choice.token_id] = -np.inf
            gap -= float(others.max())
            assert choice.token_id == brute_choice(logits, params, position)
            assert choice.runner_up == int(others.argmax()), params
            assert choice.coupled_margin == pytest.approx(max(gap, 0.0), abs=1e-6)
            removed_is_ahead += gap < 0
    assert removed_is_ahead > 0


@pytest.mark.parametrize("params", [SamplingParams(0.1), SamplingParams(1.0, top_k=2), SamplingParams(1.0, top_p=0.9)])
def test_the_runner_up_of_an_overwhelmingly_likely_token_is_the_likeliest_other(params: SamplingParams) -> None:
    logits = np.full(100, -200.0, np.float32)
    logits[[40, 70]] = [0.0, -120.0]
    choice = choose(softmax(logits, params.temperature), params, 3)
    assert (choice.token_id, choice.coupled_margin) == (40, MAX_COUPLED_MARGIN)
    assert choice.runner_up == 70


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(1.0), SamplingParams(1.0, top_k=1)])
def test_the_only_token_is_its_own_runner_up(params: SamplingParams) -> None:
    assert choose(softmax(np.array([0.5], np.float32), params.temperature), params, 0).runner_up == 0
