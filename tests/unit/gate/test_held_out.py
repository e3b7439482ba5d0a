"""Held-out tokens: thresholds by conformal risk control, and the prior of a new client."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ConfigError
from edge_client.gate import HeldOutRisks
from edge_client.gate.risk_histogram import PRIOR, RiskHistogram
from tests.support.device.risk_streams import held_out, stream


def test_calibrated_thresholds_by_hand() -> None:
    """Overrides have the risks .4, .6 and .8; the bound always includes the loss of one more token."""
    known = HeldOutRisks.of([0.8, 0.1, 0.2, 0.4, 0.6, 0.9], [True, False, False, True, True, False])
    assert known.for_catch(1.0) == 0.0
    assert known.for_catch(0.5) == 0.6  # one missed: 1 - 0.5 * 3 + 0.5 <= 0; two would be 0.5 + 0.5
    assert known.for_deviation(2 / 7) == 0.6  # (1 + 1) / 7
    assert known.for_deviation(0.1) == 0.0
    assert known.for_deviation(1.0) > 1.0


def test_tokens_of_equal_risk_fire_together() -> None:
    known = HeldOutRisks.of([0.1, 0.3, 0.3, 0.3], [False, False, False, True])
    assert known.for_deviation(0.2) == 0.3


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), catch=st.sampled_from([0.8, 0.9, 0.95]))
def test_a_calibrated_threshold_keeps_its_promise_on_its_own_data(seed: int, catch: float) -> None:
    known = held_out(seed, tokens=2000)
    threshold = known.for_catch(catch)
    missed = int(known.overridden[known.risks < threshold].sum())
    assert missed + catch <= (1 - catch) * int(known.overridden.sum()) + 1e-9


def test_calibrated_thresholds_keep_the_promise_on_average_on_new_data() -> None:
    """The mean loss of fresh streams is at most 0, up to four standard errors."""
    losses = []
    for seed in range(60):
        threshold = held_out(seed, tokens=1000).for_catch(0.9)
        fates = list(stream(np.random.default_rng(10_000 + seed), 1000, 0.05))
        missed = sum(overridden for risk, overridden in fates if risk < threshold)
        losses.append((missed - 0.1 * sum(overridden for _, overridden in fates)) / 1000)
    assert np.mean(losses) <= 4 * np.std(losses) / np.sqrt(len(losses))


def test_held_out_tokens_count_as_few_however_many_there_are() -> None:
    few, many = (np.linspace(0.0, 0.5, count) for count in (600, 6000))
    known = [RiskHistogram.of(risks) for risks in (few, many)]
    assert [histogram.tokens for histogram in known] == pytest.approx([PRIOR, PRIOR])
    assert known[0].mass == pytest.approx(known[1].mass, rel=0.01)
    assert RiskHistogram.of(few[:20]).tokens == 20, "none counts as more than itself"


def test_invalid_held_out_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 risks of 1 tokens"):
        HeldOutRisks.of([0.1, 0.2], [True])
    with pytest.raises(ConfigError, match="outside"):
        HeldOutRisks.of([1.2], [True])
