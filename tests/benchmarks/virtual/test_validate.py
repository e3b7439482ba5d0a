"""The validation finds no error in a simulated run, and the error of a different one."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, simulate
from benchmarks.simulation.trace import Trace
from benchmarks.strategies.families import strategy_named
from benchmarks.virtual.validate import compare
from chaperone_common.errors import ConfigError
from edge_client.planner import Estimates
from link_emulator.profile import Profile
from tests.support.benchmarks.traces import measured_trace, trace_of

READ = Curve.of((1, 100), (2, 100), (3, 102), (5, 106), (9, 114), (17, 130), (33, 162))
TRACE = trace_of("+++++++-" * 4)


def run_of(
    *strategies: str, trace: Trace = TRACE, speed: float = 1.0, draft_ms: float = 20.0, read: Curve = READ
) -> dict[str, Any]:
    """Return the result of a run whose pair is as fast as the simulator assumes, or faster."""
    scenario = Scenario(Profile.fixed(50.0), CloudCosts(read_ms=read), DraftCosts(step_ms=draft_ms))
    generations = []
    for strategy in strategies:
        estimates = Estimates()
        simulation = simulate(trace, scenario, strategy_named(strategy), estimates)
        generations.append(
            {
                "id": trace.id,
                "category": trace.category,
                "strategy": strategy,
                "repeat": 0,
                "token_ids": list(simulation.token_ids),
                "decode_tokens_per_s": simulation.decode_tokens_per_s * speed,
                "stats": simulation.stats.to_json(),
                "costs": asdict(estimates.costs()) | {"draft_ms": draft_ms, "stream_ms": 100.0},
                "readings": [] if strategy == "cloud" else [[span, read.at(1 + span)] for span in (1, 2, 4, 8)],
                "error": None,
            }
        )
    profile = Profile.fixed(50.0).model_dump(exclude_defaults=True)
    return {"settings": {"profile": profile, "temperature": 0.0}, "generations": generations}


def test_a_simulated_run_has_no_error() -> None:
    rows = list(compare(run_of("cloud", "sync-8", "overlap-4"), {TRACE.id: TRACE}))
    assert [row["strategy"] for row in rows] == ["cloud", "sync-8", "overlap-4"]
    assert {row["link"] for row in rows} == {"fixed round trip of 50 ms"}
    assert max(abs(row["error"]) for row in rows) < 0.03
    assert all(row["within_10_percent"] for row in rows)


def test_each_strategy_is_simulated_at_its_own_costs() -> None:
    result = run_of("cloud", "sync-8")
    slower = Curve(tuple((tokens, ms if tokens == 1 else 2 * ms) for tokens, ms in READ.points))
    result["generations"] += run_of("overlap-4", draft_ms=30.0, read=slower)["generations"]
    rows = list(compare(result, {TRACE.id: TRACE}))
    assert [row["strategy"] for row in rows] == ["cloud", "sync-8", "overlap-4"]
    assert max(abs(row["error"]) for row in rows) < 0.03


def test_edge_is_simulated_at_its_own_draft_time() -> None:
    agreed = trace_of("++++++++" * 4)
    result = run_of("cloud", "sync-8", trace=agreed)
    result["generations"] += run_of("edge", trace=agreed, draft_ms=10.0)["generations"]
    rows = {row["strategy"]: row for row in compare(result, {agreed.id: agreed})}
    assert abs(rows["edge"]["error"]) < 0.03


def test_gated_is_simulated_with_the_gate_of_its_pair() -> None:
    measured = measured_trace(TRACE)  # of a pair without a packaged gate, so that risks follow from the signals
    rows = list(compare(run_of("cloud", "sync-8", "gated", trace=measured), {TRACE.id: measured}))
    assert [row["strategy"] for row in rows] == ["cloud", "sync-8", "gated"]
    assert max(abs(row["error"]) for row in rows) < 0.03
    with pytest.raises(ConfigError, match="has no varentropies and token texts"):
        list(compare(run_of("cloud", "sync-8", "gated"), {TRACE.id: TRACE}))


def test_one_client_writes_all_generations_of_gated() -> None:
    """The gate of the run learns from prompt to prompt, and so does the simulated one."""
    twice = run_of("cloud", "sync-8")
    learning, estimates = strategy_named("gated"), Estimates()
    trace = measured_trace(trace_of("+" * 48))
    row = dict(twice["generations"][0], strategy="gated", id=trace.id, token_ids=list(trace.token_ids))
    scenario = Scenario(Profile.fixed(50.0), CloudCosts(read_ms=READ), DraftCosts(step_ms=20.0))
    for _ in range(3):
        simulation = simulate(trace, scenario, learning, estimates)
        costs = asdict(estimates.costs()) | {"draft_ms": 20.0, "stream_ms": 100.0}
        speed = simulation.decode_tokens_per_s
        twice["generations"].append(row | {"decode_tokens_per_s": speed, "costs": costs})
    (gated,) = (found for found in compare(twice, {trace.id: trace}) if found["strategy"] == "gated")
    assert gated["prompts"] == 3
    assert abs(gated["error"]) < 0.05


def test_a_client_learns_from_prompts_that_do_not_count() -> None:
    other = replace(TRACE, id="other")
    result = run_of("cloud", "sync-8")
    result["generations"] = [row | {"id": "other"} for row in result["generations"]] + result["generations"]
    for row in result["generations"][:2]:
        row["token_ids"] = [row["token_ids"][0] + 1, *row["token_ids"][1:], 1]
    rows = list(compare(result, {TRACE.id: TRACE, "other": other}))
    assert [(row["strategy"], row["prompts"]) for row in rows] == [("cloud", 1), ("sync-8", 1)]


def test_a_faster_run_does_not_match() -> None:
    rows = list(compare(run_of("cloud", "sync-8", speed=1.25), {TRACE.id: TRACE}))
    assert [row["within_10_percent"] for row in rows] == [False, False]
    assert rows[0]["error"] == pytest.approx(-0.2, abs=0.01)


def test_a_run_without_its_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match="run both"):
        list(compare(run_of("sync-8"), {TRACE.id: TRACE}))


def test_an_unrecorded_text_is_left_out() -> None:
    result = run_of("cloud", "sync-8")
    for row in result["generations"]:
        row["token_ids"][0] += 1
    assert list(compare(result, {TRACE.id: TRACE})) == []


def test_strategies_without_traces_are_left_out() -> None:
    result = run_of("cloud", "sync-8")
    other = run_of("sync-8", draft_ms=90.0)["generations"][0]
    result["generations"] += [other | {"strategy": name} for name in ("sync-8@second", "conditioned")]
    assert list(compare(result, {TRACE.id: TRACE})) == list(compare(run_of("cloud", "sync-8"), {TRACE.id: TRACE}))
