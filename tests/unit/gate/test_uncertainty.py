"""Signals measure the distribution that the token was chosen from, before truncation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from chaperone_common.sampling import choose, softmax
from chaperone_common.types import Choice, SamplingParams, Signal
from edge_client.model.uncertainty import cross_entropy, disagreement, doubt, measure, risk


def signal(logits: list[float], params: SamplingParams) -> Signal:
    soft = softmax(np.array(logits, np.float32), params.temperature)
    return measure(soft, choose(soft, params, 3))


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
)
def test_signal_equals_its_definition_in_float64(logits: list[float], temperature: float) -> None:
    measured = signal(logits, SamplingParams(temperature))
    p = special.softmax(np.array(logits, np.float64) / (temperature or 1.0))
    second, first = np.sort(p)[-2:]
    assert measured.entropy_nats == pytest.approx(float(stats.entropy(p)), abs=1e-4)
    assert measured.top1_probability == pytest.approx(first, rel=1e-4)
    assert measured.margin == pytest.approx(first - second, abs=1e-4)
    assert 0 <= measured.risk <= 1


@pytest.mark.parametrize("params", [SamplingParams(1.0, top_k=1), SamplingParams(1.0, top_p=0.1), SamplingParams(1.0)])
def test_truncation_does_not_change_the_signal(params: SamplingParams) -> None:
    logits = [1.0, 0.5, 0.25, -1.0]
    measured, plain = signal(logits, params), signal(logits, SamplingParams(1.0))
    assert (measured.entropy_nats, measured.top1_probability, measured.margin) == (
        plain.entropy_nats,
        plain.top1_probability,
        plain.margin,
    )


def test_equal_logits_have_the_entropy_of_a_die() -> None:
    measured = signal([2.0] * 6, SamplingParams(1.0))
    assert measured.entropy_nats == pytest.approx(math.log(6), rel=1e-6)
    assert measured.margin == 0.0


def test_a_vocabulary_of_one_is_certain() -> None:
    assert signal([2.0], SamplingParams(1.0)) == Signal(0.0, 1.0, 1.0, 30.0, 0.0)


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 0.01, 1.0, 1e300])
def test_extreme_temperatures_give_finite_signals(temperature: float) -> None:
    measured = signal([50.0, -50.0, 0.0, 49.0], SamplingParams(temperature))
    assert all(
        math.isfinite(value)
        for value in (measured.entropy_nats, measured.top1_probability, measured.margin, measured.risk)
    )


def test_the_coupled_margin_belongs_to_the_choice() -> None:
    soft = softmax(np.array([0.0, 1.0], np.float32), 1.0)
    assert measure(soft, Choice(0, 1.25, 1)).coupled_margin == 1.25


@given(entropy=st.floats(0, 12), near=st.floats(0, 30), far=st.floats(0, 30))
def test_risk_falls_with_the_margin_and_grows_with_entropy(entropy: float, near: float, far: float) -> None:
    near, far = sorted((near, far))
    assert 0 <= doubt(entropy, far) <= doubt(entropy, near) <= 0.5
    assert 0 <= risk(entropy, far) <= risk(entropy, near) <= 1
    assert risk(entropy, near) <= risk(entropy + 0.5, near)
    assert risk(0.0, near) == 0.0
    assert risk(-1e-9, near) == 0.0  # rounding below zero


def by_brute_force(logits: list[float], token_id: int, points: int = 20_000) -> float:
    """Return how often a token drawn at a temperature in (0, 2] differs, by the midpoint rule in float64."""
    temperatures = 2 * (np.arange(points) + 0.5) / points
    drawn = special.softmax(np.array(logits, np.float64)[None] / temperatures[:, None], axis=1)
    return float(1 - drawn[:, token_id].mean())


@pytest.mark.parametrize("token_id", range(5))
@pytest.mark.parametrize("logits", [[3.0, 1.0, 0.0, -2.0, 2.5], [9.0, 8.0, -30.0, 8.9, 0.0], [0.5, 0.4, 0.3, 0.2, 0.1]])
def test_disagreement_is_the_mean_over_temperatures(logits: list[float], token_id: int) -> None:
    measured = disagreement(np.array(logits, np.float32), token_id)
    assert measured == pytest.approx(by_brute_force(logits, token_id), abs=3e-3)


def test_disagreement_of_a_large_vocabulary_grows_with_its_tail() -> None:
    """At the hottest temperatures many unlikely tokens together are likely."""
    logits = np.random.default_rng(1).normal(0, 2, 20_000).astype(np.float32)
    logits[7] = 18.0
    measured = disagreement(logits, 7)
    assert measured == pytest.approx(by_brute_force(logits.tolist(), 7, points=200), abs=3e-3)
    assert measured > disagreement(logits[:100], 7) + 0.1


def test_disagreement_at_its_limits() -> None:
    assert disagreement(np.array([2.0] * 5, np.float32), 3) == pytest.approx(4 / 5)
    assert disagreement(np.array([2.0], np.float32), 0) == pytest.approx(0.0, abs=1e-9)
    assert disagreement(np.array([1e4, 0.0, 0.0], np.float32), 0) == pytest.approx(0.0, abs=1e-9)
    assert disagreement(np.array([1e4, 0.0, 0.0], np.float32), 1) == 1.0, "no temperature draws it"


def test_cross_entropy_is_the_surprise_at_a_token() -> None:
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    for temperature, effective in ((0.0, 1.0), (0.7, 0.7)):
        expected = -special.log_softmax(logits.astype(np.float64) / effective)
        soft = softmax(logits, temperature)
        assert [cross_entropy(soft, token_id) for token_id in range(3)] == pytest.approx(expected, rel=1e-5)
    assert cross_entropy(softmax(np.array([50.0, 0.0], np.float32), 0.0), 0) == 0.0
