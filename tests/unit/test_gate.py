"""Gates decide from a signal alone, and every mode has one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.gate import Always, Never, Threshold, gate_for
from common.types import Mode, Signal

SIGNALS = st.builds(
    Signal,
    entropy_nats=st.floats(0, 12),
    top1_probability=st.floats(0, 1),
    margin=st.floats(0, 1),
    coupled_margin=st.floats(0, 30),
    risk=st.floats(0, 1),
)


def signal(risk: float) -> Signal:
    return Signal(1.0, 0.5, 0.1, 1.0, risk)


@given(signal=SIGNALS)
def test_always_and_never(signal: Signal) -> None:
    assert Always().fires(signal)
    assert not Never().fires(signal)


@given(signal=SIGNALS, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_lower_threshold_fires_wherever_a_higher_one_does(signal: Signal, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert Threshold(low).fires(signal) or not Threshold(high).fires(signal)


def test_a_threshold_fires_at_its_value() -> None:
    assert [Threshold(0.5).fires(signal(risk)) for risk in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]
    assert Threshold(0.0).fires(signal(0.0))


@pytest.mark.parametrize(
    ("mode", "risks_that_fire"),
    [(Mode.EXACT, [0.0, 0.1, 0.9]), (Mode.GATED, [0.9]), (Mode.EDGE, []), (Mode.CLOUD, [])],
)
def test_the_gate_of_a_mode(mode: Mode, risks_that_fire: list[float]) -> None:
    gate = gate_for(mode, risk=0.3)
    assert [risk for risk in (0.0, 0.1, 0.9) if gate.fires(signal(risk))] == risks_that_fire


def test_every_mode_has_a_gate() -> None:
    assert {mode: type(gate_for(mode, risk=0.5)) for mode in Mode} == {
        Mode.EXACT: Always,
        Mode.GATED: Threshold,
        Mode.EDGE: Never,
        Mode.CLOUD: Never,
    }
