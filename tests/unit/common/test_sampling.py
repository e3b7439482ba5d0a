"""Coupled choice is an exact sample of the warped distribution, and its shortcuts change nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chaperone_common.errors import ModelCorrupt
from chaperone_common.ranges import MAX_SEED
from chaperone_common.sampling import MAX_COUPLED_MARGIN, choose, noise, noise_at, softmax, warp
from chaperone_common.types import SamplingParams
from tests.support.models import oracle
from tests.support.models.sampling import (
    EXAMPLE,
    FILTERS,
    POSITIONS,
    SEEDS,
    Float64s,
    Logits,
    brute_choice,
    make_logits,
)

ALPHA = 1e-4


def chosen(logits: Logits, params: SamplingParams, position: int) -> int:
    return choose(softmax(logits, params.temperature), params, position).token_id


@pytest.mark.parametrize("shape", ["flat", "normal", "peaked", "tail", "tied"])
@pytest.mark.parametrize("size", [1, 2, 4, 63, 64, 1000, 4095, 4096, 6000])
def test_choice_equals_brute_force_for_every_filter(shape: str, size: int) -> None:
    logits = make_logits(shape, size, size)
    for number, (top_k, top_p, min_p) in enumerate(FILTERS):
        for temperature in (0.15, 1.0, 2.5):
            params = SamplingParams(temperature, top_p, top_k, min_p, seed=number)
            assert chosen(logits, params, 1000 + number) == brute_choice(logits, params, 1000 + number), params


@pytest.mark.parametrize("shape", ["flat", "normal", "peaked", "tied"])
@pytest.mark.parametrize("size", [4, 64, 5000])
def test_whole_row_race_equals_brute_force(shape: str, size: int) -> None:
    """Without filters, over many positions, the pruning by one comparison decides."""
    logits = make_logits(shape, size, 3)
    for position in range(150):
        params = SamplingParams(0.5 + position % 3, seed=9)
        assert chosen(logits, params, position) == brute_choice(logits, params, position), position


@pytest.mark.parametrize("shape", ["flat", "normal", "peaked", "tied"])
def test_choice_equals_an_independent_oracle(shape: str) -> None:
    for size, (top_k, top_p, min_p) in itertools.product([4, 37], FILTERS):
        logits = make_logits(shape, size, top_k + size)
        params = SamplingParams(0.8, top_p, top_k, min_p, seed=MAX_SEED - top_k)
        expected = oracle.choice(
            logits, 77, temperature=0.8, top_p=top_p, top_k=top_k, min_p=min_p, seed=MAX_SEED - top_k
        )
        assert chosen(logits, params, 77) == expected, params


@settings(max_examples=200)
@given(
    values=st.lists(st.integers(-40, 40), min_size=1, max_size=9),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 5.0]),
    filters=st.sampled_from(FILTERS),
    seed=SEEDS,
    position=POSITIONS,
)
def test_choice_lies_in_the_support_and_equals_brute_force(
    values: list[int], temperature: float, filters: tuple[int, float, float], seed: int, position: int
) -> None:
    top_k, top_p, min_p = filters
    logits = np.array([value / 4 for value in values], np.float32)
    params = SamplingParams(temperature, top_p, top_k, min_p, seed)
    p = warp(logits, params)
    assert p.sum() == pytest.approx(1.0)
    if temperature == 0:
        assert chosen(logits, params, position) == int(np.argmax(logits))
    else:
        assert chosen(logits, params, position) == brute_choice(logits, params, position)


# Warp


@pytest.mark.parametrize("size", [4, 50, 3000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_warp_equals_the_processors_of_transformers(size: int, temperature: float) -> None:
    logits = make_logits("normal", size, 11)
    for top_k, top_p, min_p in FILTERS:
        processors: Any = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        if top_k:
            processors.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            processors.append(TopPLogitsWarper(top_p))
        if min_p > 0:
            processors.append(MinPLogitsWarper(min_p))
        warped = processors(torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits)[None].double())
        expected = torch.softmax(warped, -1)[0].numpy()
        ours = warp(logits, SamplingParams(temperature, top_p, top_k, min_p))
        assert np.array_equal(ours > 0, expected > 0), (top_k, top_p, min_p)
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("params", "support"),
    [
        (SamplingParams(0.0), [1]),
        (SamplingParams(1.0, top_k=1), [1]),
        (SamplingParams(1.0, top_k=2), [1, 3]),
        (SamplingParams(1.0, top_p=0.5), [1, 3]),  # 0.3 + 0.3
        (SamplingParams(1.0, top_p=0.61), [0, 1, 3]),
        (SamplingParams(1.0, min_p=0.6), [0, 1, 2, 3]),
        (SamplingParams(1.0, min_p=0.7), [1, 3]),
        (SamplingParams(1.0, top_k=3, top_p=0.74), [1, 3]),  # of 0.8: 0.375 + 0.375 + 0.25
        (SamplingParams(1.0, top_k=3, top_p=0.76), [0, 1, 3]),
    ],
)
def test_ties_go_to_the_lower_id(params: SamplingParams, support: list[int]) -> None:
    logits = np.log(np.array([0.2, 0.3, 0.2, 0.3], np.float32))
    assert np.flatnonzero(warp(logits, params)).tolist() == support


def test_top_p_stops_exactly_where_the_mass_is_reached() -> None:
    assert np.flatnonzero(warp(np.zeros(4, np.float32), SamplingParams(1.0, top_p=0.5))).tolist() == [0, 1]
    assert np.flatnonzero(warp(np.zeros(4, np.float32), SamplingParams(1.0, top_p=0.51))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("top_p", [0.5, 0.8, 0.9, 0.99])
def test_top_p_reaches_into_a_long_tail(top_p: float) -> None:
    logits = make_logits("tail", 6000, 5)
    p = np.sort(np.exp(logits.astype(np.float64)))[::-1]
    expected = int(np.searchsorted(np.cumsum(p), top_p * p.sum())) + 1
    assert np.count_nonzero(warp(logits, SamplingParams(1.0, top_p=top_p))) == expected


@pytest.mark.parametrize("least", [-700.0, -740.0, -744.5, -800.0])
def test_weights_at_the_end_of_float64_never_win(least: float) -> None:
    """The time of such a token is infinite, and no warning says so."""
    logits = np.array([0.0, -3.0, least], np.float32)
    params = SamplingParams(temperature=1.0, seed=7)
    assert {chosen(logits, params, position) for position in range(200)} == {0, 1}


def test_greedy_takes_the_first_of_equals() -> None:
    assert chosen(np.array([1, 5, 5, 5], np.float32), SamplingParams(seed=3), 8) == 1


@pytest.mark.parametrize("logits", [[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_scores_that_are_not_numbers_are_refused(logits: list[float], temperature: float) -> None:
    with pytest.raises(ModelCorrupt, match="its scores are not numbers"):
        softmax(np.array(logits, np.float32), temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_token_of_probability_zero_is_not_chosen(temperature: float) -> None:
    logits = np.array([-math.inf, 0.0], np.float32)
    assert {chosen(logits, SamplingParams(temperature=temperature), position) for position in range(50)} == {1}


def test_shifting_all_logits_changes_nothing() -> None:
    logits = make_logits("tied", 40, 1)
    for params in (SamplingParams(1.0, seed=2), SamplingParams(1.0, top_k=9, seed=2)):
        assert [chosen(logits, params, n) for n in range(50)] == [chosen(logits + 64, params, n) for n in range(50)]


@pytest.mark.parametrize("size", [2, 4, 100, 5000])
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("filters", [(0, 1.0, 0.0), (2, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1)])
def test_one_overwhelmingly_likely_token_is_chosen(
    size: int, temperature: float, filters: tuple[int, float, float]
) -> None:
    """Weights underflow here; warnings are errors, so this also shows that nothing divides by them."""
    top_k, top_p, min_p = filters
    logits = np.full(size, -200.0, np.float32)
    logits[size // 2] = 0.0
    soft = softmax(logits, temperature)
    for position in range(3):
        choice = choose(soft, SamplingParams(temperature, top_p, top_k, min_p), position)
        assert choice.token_id == size // 2
        assert choice.coupled_margin == MAX_COUPLED_MARGIN


def test_an_extreme_temperature_is_uniform() -> None:
    p = warp(np.array([0, -1, -2, -3], np.float32), SamplingParams(1e300))
    np.testing.assert_allclose(p, 0.25)


# The distribution


WARPS = [
    SamplingParams(0.9),
    SamplingParams(0.8, top_p=0.9),
    SamplingParams(1.0, top_p=0.95, top_k=8, min_p=0.1),
]


def p_value(tokens: list[int], p: Float64s) -> float:
    counts = np.bincount(tokens, minlength=len(p))
    if counts[p == 0].any():
        return 0.0
    support = p > 0
    return float(stats.chisquare(counts[support], p[support] * len(tokens)).pvalue)


def with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(params.temperature, params.top_p, params.top_k, params.min_p, seed)


@pytest.mark.parametrize("params", WARPS)
@pytest.mark.parametrize("position", [1, 4097])
def test_over_seeds_a_later_position_follows_the_warped_distribution(params: SamplingParams, position: int) -> None:
    soft = softmax(EXAMPLE, params.temperature)
    tokens = [choose(soft, with_seed(params, seed), position).token_id for seed in range(1500)]
    assert p_value(tokens, warp(EXAMPLE, params)) > ALPHA


@pytest.mark.parametrize("params", WARPS)
def test_over_positions_one_seed_follows_the_warped_distribution(params: SamplingParams) -> None:
    soft = softmax(EXAMPLE, params.temperature)
    tokens = [choose(soft, with_seed(params, 2**63 + 5), position).token_id for position in range(1, 2501)]
    assert p_value(tokens, warp(EXAMPLE, params)) > ALPHA
    # Neighbours are independent: with the same uniform everywhere, every pair would be equal.
    pairs = np.zeros((3, 3))
    kinds = [min(token, 2) for token in tokens]
    np.add.at(pairs, (kinds[:-1:2], kinds[1::2]), 1)
    assert stats.chi2_contingency(pairs).pvalue > ALPHA


def test_the_statistical_test_rejects_wrong_distributions() -> None:
    params = WARPS[0]
    soft = softmax(EXAMPLE, params.temperature)
    right = warp(EXAMPLE, params)
    tokens = [choose(soft, with_seed(params, seed), 1).token_id for seed in range(3000)]
    assert p_value(tokens, warp(EXAMPLE, SamplingParams(0.75))) < ALPHA
    assert p_value(tokens, warp(EXAMPLE, SamplingParams(0.9, top_k=9))) < ALPHA
    swapped = right.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    assert p_value(tokens, swapped) < ALPHA
    reset = [choose(soft, with_seed(params, 7), 1).token_id for _ in range(3000)]  # resets the seed in the loop
    assert p_value(reset, right) < ALPHA


# Coupling


def total_variation(p: Float64s, q: Float64s) -> float:
    return 0.5 * float(np.abs(p - q).sum())


@pytest.mark.parametrize("case", range(6))
def test_two_models_agree_as_often_as_promised(case: int) -> None:
    rng = np.random.default_rng(case)
    size, draws = int(rng.integers(2, 30)), 800
    left = (2 * rng.standard_normal(size)).astype(np.float32)
    right = left + (rng.uniform(0.1, 2) * rng.standard_normal(size)).astype(np.float32)
    params = SamplingParams(1.0, top_p=1.0 if case % 2 else 0.95, seed=case)
    distance = total_variation(warp(left, params), warp(right, params))
    promised = (1 - distance) / (1 + distance)
    agreed = sum(chosen(left, params, n) == chosen(right, params, n) for n in range(draws)) / draws
    slack = 4 * math.sqrt(promised * (1 - promised) / draws) + 1e-9
    assert agreed >= promised - slack
    assert agreed <= 1 - distance + 4 * math.sqrt(distance * (1 - distance) / draws) + 1e-9  # no coupling does better


def test_independent_noise_would_not_agree_as_often() -> None:
    """The promise is not trivial: without shared noise, agreement is far lower."""
    logits = EXAMPLE
    left, right = SamplingParams(1.0, seed=1), SamplingParams(1.0, seed=2)
    together = sum(chosen(logits, left, n) == chosen(logits, left, n) for n in range(500))
    apart = sum(chosen(logits, left, n) == chosen(logits, right, n) for n in range(500))
    assert together == 500
    assert apart < 250


# The noise


@given(
    seed=SEEDS,
    position=POSITIONS,
    stream=st.integers(0, 2**20),
    ids=st.lists(st.integers(0, 499), min_size=1, max_size=20),
)
def test_noise_of_some_ids_equals_the_row(seed: int, position: int, stream: int, ids: list[int]) -> None:
    row = noise(seed, position, 500, stream=stream)
    some = noise_at(seed, position, np.array(ids, np.intp), stream=stream)
    assert some.tolist() == row[ids].tolist()
    assert ((row > 0) & (row <= 1)).all()


def test_noise_of_the_last_id_of_a_large_vocabulary() -> None:
    ids = np.array([0, 100_000, 151_664], np.intp)
    assert noise_at(MAX_SEED, 2**32 - 1, ids).tolist() == noise(MAX_SEED, 2**32 - 1, 151_665)[ids].tolist()


def test_no_two_places_share_noise() -> None:
    """Different positions, seeds and streams draw different uniforms; none is a shifted copy of another."""
    places = [*((seed, position, 0) for seed in (0, 1, 2**63, MAX_SEED) for position in range(8)), (0, 0, 1), (0, 1, 1)]
    rows = np.concatenate([noise(seed, position, 100, stream=stream) for seed, position, stream in places])
    assert len(np.unique(rows)) == len(places) * 100


def test_noise_is_uniform() -> None:
    rows = np.concatenate([noise(5, position, 1000) for position in range(1, 21)])
    assert stats.kstest(rows, "uniform").pvalue > ALPHA
    columns = np.array([noise_at(5, position, np.array([3], np.intp))[0] for position in range(1, 2001)])
    assert stats.kstest(columns, "uniform").pvalue > ALPHA
