"""Costs learned from samples that are noisy, few or one-sided."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chaperone_common.planning.schedule import schedule_for
from edge_client.planner import Costs, Estimates
from edge_client.planner.costs import Risks, survival
from edge_client.planner.learning import ReadingTime, Recent, Share
from edge_client.planner.spans import best_span, best_take_back


def learned(risks: Risks, *, factor: float, tokens: int, seed: int = 7) -> Risks:
    """Return risks that have seen overrides `factor` times as often as their prior."""
    dice, taken_for_granted = np.random.default_rng(seed), Risks()
    for raw in dice.uniform(0.001, 0.1, tokens):
        risks.judged(float(raw), agreed=bool(dice.random() >= factor * taken_for_granted.corrected(float(raw))))
    return risks


# --- Recents ---------------------------------------------------------------------------------------------------------


def test_a_median_is_the_prior_until_there_is_a_sample() -> None:
    median = Recent(20.0)
    assert (median.value, median.known) == (20.0, False)
    median.add(5.0)
    assert (median.value, median.known) == (5.0, True)


def test_a_median_ignores_outliers_and_forgets_old_samples() -> None:
    median = Recent(20.0, window=5)
    for sample in (10, 11, 900, 12, 10):
        median.add(sample)
    assert median.value == 11
    for sample in (50, 51, 52, 53, 54):
        median.add(sample)
    assert median.value == 52


# --- Shares ----------------------------------------------------------------------------------------------------------


def test_a_share_moves_from_its_prior_to_the_samples() -> None:
    share = Share(0.7, weight=10.0)
    assert share.value == pytest.approx(0.7)
    share.add(1.0)
    share.add(0.0)
    assert share.value == pytest.approx((7 + 1) / 12, abs=0.01)
    for index in range(1000):
        share.add(float(index % 5 == 0))
    assert share.value == pytest.approx(0.2, abs=0.05)


def test_one_sample_counts_for_no_more_than_the_memory() -> None:
    once = Share(1.0, weight=20.0, memory=100.0)
    once.add(8.0, 500.0)
    assert once.value == pytest.approx((20 + 1.6) / 120)
    for _ in range(400):
        once.fade()
    assert once.value > 0.9


def test_a_share_follows_a_change() -> None:
    share = Share(0.5, weight=2.0, memory=20.0)
    for _ in range(200):
        share.add(1.0)
    assert share.value > 0.9
    for _ in range(100):
        share.add(0.0)
    assert share.value < 0.1


# --- The cloud's reading time ----------------------------------------------------------------------------------------


def test_base_and_slope_are_found_in_noise() -> None:
    dice = np.random.default_rng(3)
    reading = ReadingTime(100.0, 3.0)
    for tokens in dice.integers(1, 33, 200):
        reading.add(int(tokens), 300 + 14 * tokens + dice.normal(0, 10))
    assert reading.base_ms == pytest.approx(300, rel=0.05)
    assert reading.token_ms == pytest.approx(14, rel=0.15)


def test_a_cloud_that_becomes_slower_is_noticed() -> None:
    reading = ReadingTime(100.0, 3.0)
    for base in (50.0, 400.0):
        for index in range(100):
            tokens = 1 + index % 16
            reading.add(tokens, base + 2 * tokens)
    assert reading.base_ms == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize("tokens", [1, 8, 64])
def test_samples_of_one_length_give_a_right_and_sensible_estimate(tokens: int) -> None:
    reading = ReadingTime(100.0, 3.0)
    for _ in range(50):
        reading.add(tokens, 200.0)
    assert reading.base_ms + reading.token_ms * tokens == pytest.approx(200, rel=0.02)
    assert 0 < reading.base_ms <= 200
    assert 0 <= reading.token_ms * tokens < 200


def test_one_sample_is_enough_for_its_scale() -> None:
    reading = ReadingTime(100.0, 3.0)
    reading.add(4, 8.0)
    assert reading.base_ms + reading.token_ms * 4 == pytest.approx(8, rel=0.2)


def test_times_are_never_negative_despite_noise() -> None:
    dice = np.random.default_rng(11)
    reading = ReadingTime(100.0, 3.0)
    for tokens in dice.integers(1, 33, 500):
        reading.add(int(tokens), float(dice.exponential(50)))
        assert reading.base_ms >= 0
        assert reading.token_ms >= 0
        assert reading.base_ms + reading.token_ms > 0


# --- Risks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.4])
def test_most_of_the_factor_between_raw_risk_and_overrides_is_learned(factor: float) -> None:
    before = Risks().corrected(0.1)
    factors = [learned(Risks(), factor=factor, tokens=600, seed=seed).corrected(0.1) / before for seed in range(40)]
    assert abs(np.mean(factors) - factor) < max(0.3 * abs(1 - factor), 0.1)
    # Few overrides are remembered, so that a change of task is noticed; still, the estimate is mostly signal.
    assert np.std(factors) < 0.5 * factor


def test_a_correction_keeps_the_order_and_stays_a_chance() -> None:
    risks = learned(Risks(), factor=2.0, tokens=200)
    chances = [risks.corrected(raw) for raw in np.linspace(0, 1, 50)]
    assert chances == sorted(chances)
    assert 0 < chances[0] < chances[-1] < 1


def test_the_typical_risk_follows_the_seen_tokens() -> None:
    sure, unsure = Risks(), Risks()
    for _ in range(200):
        sure.drafted(0.001)
        sure.judged(0.001, agreed=True)
        unsure.drafted(0.3)
        unsure.judged(0.3, agreed=False)
    assert sure.typical < 0.02 < 0.2 < unsure.typical


# --- All together ----------------------------------------------------------------------------------------------------


def test_without_samples_costs_are_the_priors() -> None:
    prior = Costs()
    costs = Estimates().costs()
    assert (costs.draft_ms, costs.rtt_ms, costs.read_base_ms) == (prior.draft_ms, prior.rtt_ms, prior.read_base_ms)
    assert costs.foresight == prior.foresight


def test_the_cost_of_a_row_is_its_addition_to_a_forward() -> None:
    estimates = Estimates()
    estimates.drafted(1, 20.0)
    assert estimates.costs().row_ms == pytest.approx(5.0), "a guess until a branch is drafted"
    for _ in range(100):
        estimates.drafted(3, 32.0)
    assert estimates.costs().draft_ms == 20.0
    assert estimates.costs().row_ms == pytest.approx(6.0, rel=0.05)
    for _ in range(100):
        estimates.drafted(2, 15.0)
    assert 0 <= estimates.costs().row_ms < 2, "more rows cannot make a forward faster"
    for _ in range(100):
        estimates.drafted(2, 900.0)
    assert 16 < estimates.costs().row_ms <= 20, "a separate forward would take no longer"


def test_a_row_that_was_expensive_once_gets_another_chance() -> None:
    """The first forward with branches allocates memory; if rows seemed expensive, no other would follow."""
    estimates = Estimates()
    estimates.drafted(1, 20.0)
    estimates.drafted(2, 80.0)
    assert estimates.costs().row_ms < 10.0, "one forward changes little"
    for _ in range(10):
        estimates.drafted(2, 80.0)
    assert estimates.costs().row_ms > 14.0
    for _ in range(1000):
        estimates.drafted(1, 20.0)
    assert estimates.costs().row_ms == pytest.approx(5.0, rel=0.1)


def test_streaming_costs_forwards_of_one_token_until_measured() -> None:
    estimates = Estimates()
    for _ in range(20):
        estimates.read(1, 300.0)
    assert estimates.costs().stream_ms == pytest.approx(300, rel=0.05)
    estimates.streamed(250.0, 240.0)
    assert estimates.costs().stream_ms == 250.0


def test_a_streamed_token_takes_the_longer_of_cloud_and_link() -> None:
    bunched, held_up = Estimates(), Estimates()
    for elapsed_ms in (0.0, 0.0, 120.0) * 5:
        bunched.streamed(elapsed_ms, 40.0)
        held_up.streamed(70.0, 40.0)
    assert bunched.costs().stream_ms == 40.0
    assert held_up.costs().stream_ms == 70.0


def test_delivery_drops_after_broken_promises_and_recovers() -> None:
    estimates = Estimates()
    assert estimates.delivery == 1.0
    estimates.delivered(0, 2.0)
    assert estimates.delivery > 0.9, "one override changes little"
    for _ in range(50):
        estimates.delivered(2, 4.0)
    assert estimates.delivery < 0.6
    for _ in range(400):
        estimates.delivered(5, 4.0)
    assert estimates.delivery == 1.0


def test_spans_get_another_chance_after_long_streaming() -> None:
    estimates = Estimates()
    for _ in range(50):
        estimates.delivered(2, 4.0)
    for _ in range(20):
        estimates.streamed(40.0, 40.0)
    assert estimates.delivery < 0.7, "twenty tokens change little"
    for _ in range(300):
        estimates.streamed(40.0, 40.0)
    assert estimates.delivery > 0.9


def test_an_observer_receives_each_later_span_that_the_cloud_reads() -> None:
    estimates = Estimates()
    estimates.read(1, 5.0)
    seen: list[tuple[int, float]] = []
    estimates.observe(lambda tokens, read_ms: seen.append((tokens, read_ms)))
    estimates.read(3, 12.5)
    assert seen == [(3, 12.5)]


def test_overrides_update_hit_rate_and_length_of_branches() -> None:
    estimates = Estimates()
    before = estimates.hit
    for _ in range(100):
        estimates.overridden(by_runner_up=True, foreseen_tokens=7)
    assert estimates.hit > before
    assert estimates.costs().foresight > 0.9
    assert estimates.costs().branch_tokens == pytest.approx(7, rel=0.15)
    for _ in range(200):
        estimates.overridden(by_runner_up=False, foreseen_tokens=None)
    assert estimates.hit < 0.4
    assert estimates.costs().foresight < 0.1


def test_survival_is_the_chance_that_all_tokens_stand() -> None:
    assert survival([]) == 1.0
    assert survival([0.5, 0.2]) == 0.4
    assert survival([0.1, 1.0]) == 0.0


def test_times_of_zero_keep_all_estimates_finite() -> None:
    """A coarse clock, or a cloud that reports times of 0, must not end a generation."""
    estimates = Estimates()
    for _ in range(20):
        estimates.drafted(1, 0.0)
        estimates.drafted(2, 0.0)
        estimates.travelled(0.0)
        estimates.streamed(0.0, 0.0)
        estimates.read(4, 0.0)
    costs = estimates.costs()
    assert min(costs.draft_ms, costs.read_base_ms, costs.stream_ms) > 0
    assert math.isfinite(schedule_for(costs).rate)
    assert math.isfinite(best_span([0.1] * 3, 8, 0.0, costs, schedule_for(costs).rate).value)
    assert math.isfinite(best_take_back([0.1] * 3, 1, 9, costs).value)
