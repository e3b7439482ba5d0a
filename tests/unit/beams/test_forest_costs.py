"""The costs of forests, learned from forwards of several texts."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.beams.costs import ForestCosts, ForestEstimates


def test_the_time_of_a_draft_is_learned_from_forwards_of_several_texts_alone() -> None:
    estimates, dice = ForestEstimates(), np.random.default_rng(3)
    for texts in dice.integers(2, 9, 60):
        estimates.drafted(int(texts), 90 + 30 * (texts - 1) + dice.normal(0, 3))
    costs = estimates.costs()
    assert costs.draft_ms == pytest.approx(90, rel=0.1)
    assert costs.row_ms == pytest.approx(30, rel=0.1)
    assert costs.drafting_ms(5) == pytest.approx(210, rel=0.05)


@pytest.mark.parametrize("texts", [1, 4])
def test_forwards_of_one_size_give_its_time(texts: int) -> None:
    estimates = ForestEstimates()
    for _ in range(10):
        estimates.drafted(texts, 80.0)
    assert estimates.costs().drafting_ms(texts) == pytest.approx(80, rel=0.05)


def test_a_forward_that_met_other_work_changes_little() -> None:
    estimates = ForestEstimates()
    for number in range(30):
        estimates.drafted(1 + number % 4, 20.0 + 5 * (number % 4))
        estimates.read(2 + number % 20, 100.0 + 2 * (number % 20))
    before = estimates.costs()
    estimates.drafted(2, 5000.0)
    estimates.read(4, 60_000.0)
    after = estimates.costs()
    assert after.drafting_ms(2) < 1.5 * before.drafting_ms(2)
    assert after.reading_ms(4) < 1.5 * before.reading_ms(4)


def test_the_cloud_alone_needs_the_time_between_its_layers() -> None:
    estimates = ForestEstimates()
    assert not estimates.costs().known
    for _ in range(5):
        estimates.read(4, 50.0)
        estimates.streamed(62.0, 50.0)
    costs = estimates.costs()
    assert costs.known
    assert costs.gap_ms == 12.0
    assert costs.reading_ms(4) == pytest.approx(50, rel=0.05)


def test_no_cost_is_negative() -> None:
    estimates, dice = ForestEstimates(), np.random.default_rng(5)
    for texts in dice.integers(1, 9, 200):
        estimates.drafted(int(texts), float(dice.exponential(20)))
        estimates.read(int(texts), float(dice.exponential(20)))
        estimates.travelled(float(dice.normal(0, 5)))
        estimates.streamed(float(dice.exponential(20)), float(dice.exponential(20)))
        costs = estimates.costs()
        assert min(costs.draft_ms, costs.read_base_ms) > 0
        assert min(costs.row_ms, costs.read_text_ms, costs.rtt_ms, costs.gap_ms) >= 0
    assert ForestCosts().known
