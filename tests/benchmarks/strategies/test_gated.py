"""The product's own gate over traces: its names, its calibrated risks, and the gate of a pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks
from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.simulation.trace import load_traces
from benchmarks.strategies.families import strategy_named, strategy_over
from benchmarks.strategies.gated import gate_for, gate_settings
from benchmarks.virtual.replay import cut
from chaperone_common.errors import ConfigError, GateMismatch
from chaperone_common.session import Drafted
from chaperone_common.types import Mode, OnDeviation
from edge_client.config import GateSettings
from edge_client.gate.risk import CalibratedRisk
from link_emulator.profile import Profile
from tests.support.benchmarks.gate import gate_of
from tests.support.benchmarks.traces import LOST, SURE, UNSURE, measured_trace, trace_of

SCENARIO = Scenario(Profile.fixed(100))
TUNING = Path(benchmarks.__path__[0]) / "traces" / "tuning-T0.jsonl.gz"


def drafted(simulation: Simulation) -> list[Drafted]:
    return [moment.event for moment in simulation.timeline if isinstance(moment.event, Drafted)]


def test_names_stand_for_settings_of_the_gate() -> None:
    assert gate_settings("gated") == GateSettings()
    assert gate_settings("gated-0.9") == GateSettings(catch=0.9, max_deviation=1.0)
    assert gate_settings("deviation-0.05") == GateSettings(catch=0.0, max_deviation=0.05)
    retracting = GateSettings(catch=0.9, max_deviation=1.0, on_deviation=OnDeviation.RETRACT)
    assert gate_settings("retract-0.9") == retracting
    assert gate_settings("threshold-0.3") == GateSettings(policy="threshold", risk=0.3)
    for name in ("exact", "gated-", "gated-x", "sync-8", "uhlm-0.1"):
        assert gate_settings(name) is None
    assert strategy_named("gated-0.9").mode is Mode.GATED
    assert strategy_named("gated-0.9").name == "gated-0.9"


def test_a_calibrated_gate_gives_the_risks() -> None:
    trace = measured_trace(trace_of("+-+++"))
    calibrated = simulate(trace, SCENARIO, strategy_named("gated", gate_of("margin")))
    assert all(event.signal.risk == pytest.approx(event.signal.margin) for event in drafted(calibrated))
    own = simulate(trace, SCENARIO, strategy_named("gated"))
    assert {event.signal.risk for event in drafted(own)} <= {signal.risk for signal in (SURE, UNSURE, LOST)}


def test_a_calibrated_gate_reads_the_text_of_each_token() -> None:
    trace = measured_trace(trace_of("+++"))
    assert trace.device is not None
    texts = {**trace.device.token_texts, 101: "\n"}
    trace = replace(trace, device=replace(trace.device, token_texts=texts))
    simulation = simulate(trace, SCENARIO, strategy_named("threshold-1", gate_of("line_position")))
    risks = [event.signal.risk for event in drafted(simulation)]
    assert risks == [pytest.approx(value) for value in (0.0, 0.693147, 0.0)], "log(1 + tokens since the line break)"


def test_gates_of_one_strategy_share_their_control() -> None:
    strategy = strategy_named("gated-0.9", gate_of("margin"))
    trace = measured_trace(trace_of("+" * 60))
    safe = replace(SURE, margin=0.001)
    proposals = [replace(one, signal=safe) if index % 2 else one for index, one in enumerate(trace.proposals)]
    trace = replace(trace, proposals=tuple(proposals))
    first, second = (simulate(trace, SCENARIO, strategy) for _ in range(2))
    assert sum(event.fired for event in drafted(second)) < sum(event.fired for event in drafted(first))


def test_a_trace_without_the_values_of_a_gate_is_refused_with_the_remedy() -> None:
    trace = replace(trace_of("+-"), source="some.jsonl.gz")
    message = "some.jsonl.gz: trace by hand has no varentropies and token texts; add it with `python -m benchmarks ext"
    with pytest.raises(ConfigError, match=message):
        strategy_over(trace, "gated")
    with pytest.raises(ConfigError, match=message):
        simulate(trace, SCENARIO, strategy_named("gated", gate_of("margin")))
    assert simulate(trace, SCENARIO, strategy_over(trace, "gated", "none")).error is None
    assert strategy_over(trace, "exact").gate_model is None


def test_a_pair_without_a_packaged_gate_uses_the_risks_of_its_signals() -> None:
    assert gate_for(measured_trace(trace_of("+"), pair="none")) is None


def test_a_gate_for_another_device_model_is_refused() -> None:
    with pytest.raises(GateMismatch, match=r"made for the device model .* this one is drafter \(sha256:device\)"):
        gate_for(measured_trace(trace_of("+"), pair="default"))


def test_a_gate_reads_no_trace_of_another_device_model() -> None:
    trace = cut(load_traces(TUNING).traces[0], 12)
    assert trace.device is not None
    other = replace(trace, source="other.jsonl.gz", device=replace(trace.device, digest="sha256:other"))
    with pytest.raises(ConfigError, match=r"^other.jsonl.gz: trace .* is of the device model sha256:other, the gate"):
        simulate(other, SCENARIO, strategy_over(trace, "gated"))


def test_committed_traces_have_the_packaged_gate() -> None:
    trace = cut(load_traces(TUNING).traces[0], 12)
    strategy = strategy_over(trace, "gated")
    assert strategy.gate_model is not None
    assert trace.device is not None
    simulation = simulate(trace, SCENARIO, strategy)
    risks = CalibratedRisk(strategy.gate_model, trace.device.token_texts.__getitem__, trace.prompt_tokens)
    assert drafted(simulation)[0].signal.risk == risks.with_risk(trace.proposals[0]).signal.risk
