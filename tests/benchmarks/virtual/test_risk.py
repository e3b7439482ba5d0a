"""The fit finds the constants that made the data."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.virtual.risk_constants import (
    Curve,
    Judged,
    as_text,
    fit,
    in_use,
    intervals,
    log_loss,
    reliability,
    runner_up_share,
)
from edge_client.model.uncertainty import doubt
from tests.support.benchmarks.traces import SURE, UNSURE, trace_of

RAW = np.linspace(0.01, 0.6, 24)


def judged_by(curve: Curve, each: int = 200) -> list[Judged]:
    """Return traces with as many overrides at each raw risk as the curve predicts; half are the runner-up."""
    counts = np.round(curve.chance(RAW) * each)
    overridden = np.arange(each) < counts[:, None]  # [tokens, traces]
    dice = np.random.Generator(np.random.PCG64(1))
    overridden = dice.permuted(overridden, axis=1)
    return [
        Judged("all", RAW, overridden[:, index], overridden[:, index] & (np.arange(len(RAW)) % 2 == 0))
        for index in range(each)
    ]


@pytest.mark.parametrize("curve", [Curve(0.6, 1.25), Curve(1.0, 0.8), Curve(0.4, 0.5)])
def test_the_likeliest_curve_is_the_true_one(curve: Curve) -> None:
    judged = judged_by(curve)
    found = fit(judged)
    assert found.power == pytest.approx(curve.power, abs=0.03)
    assert found.scale == pytest.approx(curve.scale, rel=0.05)
    assert log_loss(judged, found) <= log_loss(judged, Curve(0.8, 1.0))


def test_the_scale_can_be_fitted_at_a_given_power() -> None:
    judged = judged_by(Curve(0.6, 1.25))
    assert fit(judged, powers=np.array([0.6])).scale == pytest.approx(1.25, rel=0.05)


def test_intervals_hold_the_truth_and_narrow_with_more_traces() -> None:
    judged = judged_by(Curve(0.6, 1.25))
    few, many = intervals(judged[:30], draws=100), intervals(judged, draws=100)
    power, scale, few_power = many["power"], many["scale"], few["power"]
    assert power is not None
    assert scale is not None
    assert few_power is not None
    assert power[0] <= 0.6 <= power[1]
    assert scale[0] <= 1.25 <= scale[1]
    assert power[1] - power[0] < few_power[1] - few_power[0]


def test_predictions_of_a_true_curve_are_observed() -> None:
    table = list(reliability(judged_by(Curve(0.6, 1.25)), Curve(0.6, 1.25)))
    assert sum(row["tokens"] for row in table) == 200 * len(RAW)
    for row in table:
        assert row["from"] <= row["predicted"] <= row["to"]
        assert row["observed"] == pytest.approx(row["predicted"], abs=0.01)
    assert len(as_text(table).splitlines()) == 1 + len(table)


def test_a_trace_holds_its_overrides_and_their_kind() -> None:
    one = Judged.of(trace_of("+-+-"))
    assert one.group == "general, temperature 0"
    assert one.overridden.tolist() == [False, True, False, True]
    sure, unsure = (doubt(signal.entropy_nats, signal.coupled_margin) for signal in (SURE, UNSURE))
    assert one.doubts.tolist() == [sure, unsure, sure, unsure]
    assert runner_up_share([one]) == 1.0
    assert runner_up_share([Judged.of(trace_of("++"))]) is None


def test_the_constants_in_use_are_the_planners() -> None:
    used = in_use()
    assert 0.1 < used.power < 2
    assert used.chance(np.array([0.05]))[0] == pytest.approx(used.scale * 0.05**used.power)
