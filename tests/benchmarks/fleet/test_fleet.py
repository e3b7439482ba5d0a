"""The fleet simulator against queueing theory, and its invariants."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cloud_profile.run import CloudProfile
from benchmarks.cloud_profile.types import Row
from benchmarks.fleet import run as command
from benchmarks.fleet.capacity import Search, part_of
from benchmarks.fleet.model import Demand, Fleet, Segment, StepTime, affine_step, load_demands, profiled_step
from benchmarks.fleet.report import report
from benchmarks.fleet.simulation import Outcome, outcomes
from benchmarks.fleet.totals import Target, Totals
from chaperone_common.errors import ConfigError
from chaperone_common.stats import EnergyModel, GenerationStats
from cloud_supervisor.scheduling.scheduler import gathering_s

SERVICE_MS = 10.0
OCCUPIED_MS = SERVICE_MS + gathering_s(SERVICE_MS / 1e3) * 1e3  # until the next forward may begin
CHAT = Demand("chat", completion_tokens=100, round_trips=4, hidden_round_trips=6, tokens_per_forward=10, device_ms=2000)


def one_server(load: float, generations: int) -> Fleet:
    """Return an open loop with a given load of one server, which serves one token at a time; no link, no device."""
    per_s = load / OCCUPIED_MS * 1e3
    return Fleet(
        devices=1,
        replicas=1,
        think_s=1 / per_s,
        closed=False,
        rtts_ms=(0.0,),
        step_tokens=1,
        prefill_chunk_tokens=1,
        max_queue=100_000,
        warmup_s=20,
        window_s=generations / per_s,
    )


def simulate(fleet: Fleet, demand: Demand, step: StepTime, seed: int = 1) -> Outcome:
    """Return the outcome of a fleet's only replica."""
    [outcome] = outcomes(replace(fleet, replicas=1), demand, step, seed)
    return outcome


def whole(fleet: Fleet, demand: Demand, step: StepTime, seed: int = 1) -> Totals:
    totals = Totals(Target())
    for outcome in outcomes(fleet, demand, step, seed):
        totals.add(outcome)
    return totals


# --- Queueing theory ------------------------------------------------------------------------------------------------


def test_constant_service_waits_as_m_d_1() -> None:
    load = 0.7
    outcome = simulate(one_server(load, 20_000), Demand("one", 1, round_trips=1), affine_step(SERVICE_MS, 0))
    assert np.mean(outcome.load.waits_ms) == pytest.approx(load * OCCUPIED_MS / (2 * (1 - load)), rel=0.06)
    assert outcome.utilisation == pytest.approx(load * SERVICE_MS / OCCUPIED_MS, rel=0.02)


def test_exponential_service_waits_as_m_m_1() -> None:
    load, rng = 0.6, np.random.default_rng(5)
    outcome = simulate(
        one_server(load, 20_000), Demand("one", 1, round_trips=1), lambda *_: float(rng.exponential(SERVICE_MS))
    )
    assert np.mean(outcome.load.waits_ms) == pytest.approx(load * OCCUPIED_MS / (1 - load), rel=0.1)
    # Time in the system is exponential, so its percentiles are known too.
    assert np.percentile(outcome.total_ms, 95) == pytest.approx(OCCUPIED_MS / (1 - load) * math.log(20), rel=0.1)


def test_utilisation_is_throughput_times_service_time() -> None:
    fleet = replace(one_server(0.5, 4000), replicas=3, devices=900, think_s=12)
    totals = whole(fleet, Demand("two", 1, round_trips=1, forwards_per_request=2), affine_step(SERVICE_MS, 0))
    assert totals.steps == pytest.approx(2 * totals.measured, abs=20)  # some are in progress at the ends
    per_ms = totals.steps / (fleet.window_s * 1e3)
    assert totals.utilisation == pytest.approx(per_ms * SERVICE_MS, rel=1e-3)


@pytest.mark.parametrize("closed", [True, False])
def test_littles_law_holds_for_generations_and_for_the_queue(closed: bool) -> None:
    fleet = Fleet(devices=200, replicas=1, think_s=10, closed=closed, window_s=120, warmup_s=30, step_tokens=80)
    outcome = simulate(fleet, CHAT, affine_step(15, 0.2))
    rate = outcome.measured / (fleet.window_s * 1e3)
    assert outcome.in_flight == pytest.approx(rate * np.mean(outcome.total_ms), rel=0.03)
    answered = len(outcome.load.waits_ms) / (fleet.window_s * 1e3)
    assert outcome.waiting == pytest.approx(answered * np.mean(outcome.load.waits_ms), rel=0.03)


def test_a_closed_loop_obeys_the_response_time_law() -> None:
    fleet = Fleet(devices=150, replicas=1, think_s=10, window_s=150, warmup_s=30)
    outcome = simulate(fleet, CHAT, affine_step(15, 0.2))
    cycle_s = fleet.think_s + np.mean(outcome.total_ms) / 1e3  # the interactive response time law
    assert outcome.measured / fleet.window_s == pytest.approx(fleet.devices / cycle_s, rel=0.03)


# --- One generation -------------------------------------------------------------------------------------------------


def alone(demand: Demand, **changes: Any) -> Outcome:
    """Simulate a single device, so that nothing queues."""
    fleet = Fleet(devices=1, replicas=1, think_s=50, rtts_ms=(100.0,), speed_sigma=0.0, warmup_s=0, window_s=500)
    fleet = replace(fleet, prefill_step_ms=math.inf)  # pieces of one size
    return simulate(replace(fleet, **changes), demand, affine_step(20, 1))


def test_round_trips_add_up_and_hidden_ones_hide() -> None:
    waited = alone(Demand("waits", 40, round_trips=4, tokens_per_forward=10, device_ms=1000))
    assert waited.total_ms == pytest.approx([1000 + 4 * (100 + 30)] * len(waited.total_ms))
    assert waited.ttft_ms == pytest.approx([250 + 130] * len(waited.ttft_ms))
    hidden = alone(Demand("hides", 40, hidden_round_trips=4, tokens_per_forward=10, device_ms=1000))
    assert hidden.total_ms == pytest.approx([1000 + 130] * len(hidden.total_ms))  # the last round trip cannot be hidden
    assert hidden.ttft_ms == pytest.approx([250 + 130] * len(hidden.ttft_ms))


def test_streaming_shows_its_first_token_early() -> None:
    streamed = alone(Demand("cloud", 10, round_trips=1, forwards_per_request=10, prompt_tokens=101))
    gap = gathering_s(0.021) * 1e3
    prompt = (20 + 64) * 1.02 + (20 + 36) * 1.02  # the first verification reads the last token
    assert streamed.ttft_ms == pytest.approx([prompt + 21 + 100] * len(streamed.ttft_ms))
    assert streamed.total_ms == pytest.approx([prompt + 10 * 21 + 9 * gap + 100] * len(streamed.total_ms))
    assert streamed.latencies.verification_ms == pytest.approx([56 * 0.02 + 21 + 100] * streamed.measured)
    assert streamed.latencies.writing_ms == pytest.approx([21 + gap] * 9 * streamed.measured)
    assert streamed.latencies.prompt_ms == pytest.approx([prompt - 56 * 0.02] * streamed.measured)


def test_a_prompt_is_read_while_the_device_drafts() -> None:
    drafting = Demand("exact", 10, round_trips=1, device_ms=1000, prompt_tokens=65)
    assert alone(drafting).total_ms[0] == pytest.approx(1000 + 21 + 100)
    at_once = alone(replace(drafting, device_ms=10))
    assert at_once.total_ms[0] == pytest.approx((20 + 64) * 1.02 + 21 + 100), "the request waits for the prompt"
    assert at_once.latencies.verification_ms[0] == pytest.approx(84 * 0.02 + 121), "and its time counts from there on"


def test_a_device_alone_sends_no_request() -> None:
    outcome = alone(Demand("edge", 50, device_ms=1000))
    assert outcome.total_ms == pytest.approx([1000] * len(outcome.total_ms))
    assert outcome.ttft_ms == pytest.approx([20] * len(outcome.ttft_ms))
    assert (outcome.requests, outcome.load.steps, outcome.utilisation) == (0, 0, 0)


def test_waiting_requests_share_a_forward() -> None:
    fleet = Fleet(devices=200, replicas=1, think_s=5, window_s=30, step_tokens=160)
    together = simulate(fleet, CHAT, affine_step(30, 0))
    one_by_one = simulate(replace(fleet, step_tokens=10, prefill_chunk_tokens=10), CHAT, affine_step(30, 0))
    assert together.load.chunks > 3 * together.load.steps
    assert one_by_one.load.chunks == one_by_one.load.steps
    assert np.median(together.total_ms) < np.median(one_by_one.total_ms)


# --- Invariants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("max_queue", [10, 1000])
def test_every_generation_ends_even_under_overload(closed: bool, max_queue: int) -> None:
    fleet = Fleet(
        devices=100, replicas=1, think_s=2, closed=closed, warmup_s=2, window_s=10, think_sigma=2, step_tokens=20,
        prefill_chunk_tokens=20, max_queue=max_queue,
    )  # fmt: skip
    outcome = simulate(fleet, replace(CHAT, length_variation=0.5, prompt_tokens=30), affine_step(40, 1))
    assert outcome.utilisation > 0.95
    assert (outcome.latencies.refused > 0) == (max_queue == 10)
    assert outcome.began == outcome.ended > outcome.measured > 0
    assert len(outcome.total_ms) == len(outcome.ttft_ms) == outcome.measured
    assert all(0 < first <= total for first, total in zip(outcome.ttft_ms, outcome.total_ms, strict=True))


def test_memory_that_is_short_evicts_sessions_and_is_never_exceeded() -> None:
    fleet = Fleet(devices=100, replicas=1, think_s=2, warmup_s=2, window_s=10, kv_tokens=1000)
    demand = replace(CHAT, prompt_tokens=100)
    short, roomy = (
        simulate(replace(fleet, kv_tokens=tokens), demand, affine_step(15, 0.2)) for tokens in (1000, 10**6)
    )
    assert short.evictions > 0 == roomy.evictions
    assert short.began == short.ended
    assert short.load.fed_tokens / short.measured > roomy.load.fed_tokens / roomy.measured, "texts are read again"
    with pytest.raises(ConfigError, match="kv_tokens: 50 hold no text of 99 tokens"):
        simulate(replace(fleet, kv_tokens=50), demand, affine_step(15, 0.2))


def test_a_seed_reproduces_and_another_one_does_not() -> None:
    fleet, step = Fleet(devices=50, replicas=1, window_s=30), affine_step(15, 0.2)
    demand = replace(CHAT, length_variation=0.5)
    assert simulate(fleet, demand, step, seed=3) == simulate(fleet, demand, step, seed=3)
    assert simulate(fleet, demand, step, seed=3) != simulate(fleet, demand, step, seed=4)


def test_a_part_of_a_fleet_predicts_the_whole() -> None:
    fleet, step = Fleet(devices=1000, replicas=8, think_s=20, warmup_s=10, window_s=40), affine_step(15, 0.2)
    part, answers = part_of(fleet, CHAT, step, max_work=10_000)
    assert part == fleet
    some = Search(CHAT, step, 1, Target(), 1).simulate(part, part.replicas, answers)
    assert some.replicas < fleet.replicas
    numbers = report(fleet, part, CHAT, some, 1.0)
    all_of_it = report(fleet, fleet, CHAT, whole(fleet, CHAT, step), 1.0)
    assert numbers["tokens_per_s"] == pytest.approx(all_of_it["tokens_per_s"], rel=0.1)
    assert numbers["total_ms"]["p50"] == pytest.approx(all_of_it["total_ms"]["p50"], rel=0.05)
    assert numbers["usd_per_1000_tokens"] == pytest.approx(all_of_it["usd_per_1000_tokens"], rel=0.1)


def test_a_small_fleet_is_simulated_whole_and_a_single_replica_for_a_shorter_time() -> None:
    step = affine_step(15, 0.2)
    small = Fleet(devices=10, replicas=2)
    assert part_of(small, CHAT, step, max_work=100_000) == (small, math.inf)
    crowd, answers = part_of(Fleet(devices=100_000, replicas=1), CHAT, step, max_work=100_000)
    assert (crowd.devices, crowd.replicas, answers) == (100_000, 1, 100_000)
    assert crowd.window_s < 7


# --- Demands, steps and reports -------------------------------------------------------------------------------------


def test_a_demand_keeps_its_means() -> None:
    demand = Demand("d", 50, round_trips=2.5, hidden_round_trips=1.25, forwards_per_request=1.5, device_ms=700)
    rng = np.random.default_rng(2)
    drawn: list[list[Segment]] = [list(demand.segments(1.0, rng)) for _ in range(4000)]
    count = len(drawn)
    assert sum(not s.hidden for d in drawn for s in d) / count == pytest.approx(2.5, rel=0.02)
    assert sum(s.hidden for d in drawn for s in d) / count == pytest.approx(1.25, rel=0.03)
    assert sum(len(s.forwards) for d in drawn for s in d) / count == pytest.approx(3.75 * 1.5, rel=0.02)
    assert all(sum(s.device_ms for s in d) == pytest.approx(700) for d in drawn)
    lengths = [replace(demand, length_variation=0.5).draw_length(rng) for _ in range(20_000)]
    assert np.mean(lengths) == pytest.approx(1, rel=0.02)
    assert np.std(lengths) == pytest.approx(0.5, rel=0.05)


def test_a_demand_is_taken_from_the_stats_of_generations() -> None:
    rows = [
        GenerationStats(completion_tokens=20, prompt_tokens=30, round_trips=2, hidden_round_trips=2, verified_tokens=16,
                        overridden_tokens=1, bonus_tokens=3, edge_compute_ms=500, bytes_up=200, bytes_down=80),
        GenerationStats(completion_tokens=40, prompt_tokens=50, round_trips=2, hidden_round_trips=4, verified_tokens=30,
                        overridden_tokens=2, bonus_tokens=4, takeover_tokens=4, edge_compute_ms=900, bytes_up=400,
                        bytes_down=160),
    ]  # fmt: skip
    demand = Demand.from_stats("exact", rows)
    assert (demand.completion_tokens, demand.prompt_tokens, demand.device_ms) == (30, 40, 700)
    assert (demand.round_trips, demand.hidden_round_trips) == (2, 3)
    assert demand.forwards_per_request == pytest.approx((5 + 2) / 5)
    assert demand.tokens_per_forward == pytest.approx((28 + 2) / 7)
    assert (demand.bytes_up, demand.bytes_down) == (300, 120)
    assert demand.length_variation == pytest.approx(10 / 30)


def test_the_rest_of_a_thinking_time_is_the_stationary_one() -> None:
    fleet = Fleet(devices=1, replicas=1, think_s=10, think_sigma=0.5)
    rest = fleet.draw_rest_of_thinking(200_000, np.random.default_rng(3))
    assert np.mean(rest) == pytest.approx(10 / 2 * math.exp(0.5**2), rel=0.02)  # E[T^2] / 2 E[T]


def test_steps_come_from_a_profile() -> None:
    rows = tuple(Row("m", "bfloat16", b, 512, k, float(b + k), 0, 0) for b in (1, 4) for k in (1, 8))
    step = profiled_step(CloudProfile({}, rows), "m", 512)
    assert step(1, 8) == 9
    assert step(4, 4) == 5
    assert step(4, 29) == 12  # as four spans of eight


def test_cost_and_energy_cover_the_window() -> None:
    fleet = Fleet(devices=10, replicas=2, window_s=10)
    demand = Demand("d", 10, round_trips=1, bytes_up=100)
    totals = Totals(
        Target(), replicas=2, measured=2, tokens_in_window=40, tokens=20, device_ms=4000, radio_ms=200, requests=2,
        utilisation=0.5, steps=1,
    )  # fmt: skip
    numbers = report(fleet, fleet, demand, totals, usd_per_replica_hour=3.6)
    assert numbers["tokens_per_s"] == 4
    assert numbers["cloud"]["utilisation"] == 0.25
    assert numbers["cloud_s_per_1000_tokens"] == pytest.approx(0.25 * 2 * 10 / 40 * 1000)
    assert numbers["usd_per_1000_tokens"] == pytest.approx(2 * 0.001 / 4 * 1000)
    model = EnergyModel()
    device = (model.device_watts * 4 + model.radio_watts * 0.2 + model.joules_per_byte_up * 200) / 20
    cloud = model.cloud_watts * 0.25 * 2 * 10 / 40
    assert numbers["joules_per_1000_tokens"] == pytest.approx((device + cloud) * 1000, abs=0.01)
    overloaded = report(fleet, fleet, demand, replace(totals, tokens_in_window=0.0), 3.6)
    assert overloaded["usd_per_1000_tokens"] is None
    with pytest.raises(ConfigError, match="no generation of d began"):
        report(fleet, fleet, demand, Totals(Target(), replicas=1), 3.6)


# --- The command ----------------------------------------------------------------------------------------------------


def run(*options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(options))


def demands_file(folder: Path) -> Path:
    path = folder / "demands.json"
    rows = [{"name": "sync", "completion_tokens": 20, "round_trips": 3}, {"name": "edge", "completion_tokens": 20}]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_the_command_reports_each_strategy_and_every_assumption(tmp_path: Path) -> None:
    small = ("--devices", "50", "--replicas", "2", "--window-s", "60", "--demand", str(demands_file(tmp_path)))
    result = run(*small)
    assert list(result["summary"]) == ["sync", "edge"]
    assert result["summary"]["sync"]["simulated"]["devices"] == 50
    assert result["step"] == {"assumption": "affine", "base_ms": 20.0, "ms_per_token": 0.05}
    assert {"usd_per_replica_hour", "energy", "seed"} <= result["assumptions"].keys()
    assert result["fleet"]["max_batch"] == result["fleet"]["step_tokens"]
    assert result["needed"] == []
    json.dumps(result)  # the result is valid JSON
    assert list(run(*small, "--strategies", "edge")["summary"]) == ["edge"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strategies", "none"), "--strategies: none: unknown; demands.json has sync, edge"),
        (("--rtt-ms", "fast"), "--rtt-ms: 'fast'"),
        (("--devices", "0"), "devices: 0; give 1 or more"),
        (("--think-s", "0"), "think_s and window_s must be above 0"),
        (("--step-base-ms", "-1"), "--step-base-ms"),
        (("--profile", "missing.json"), "not a cloud profile"),
        (("--needed", "1000,x"), "--needed: '1000,x'"),
        (("--target-ms", "0"), "target: 0 and 5000 ms"),
        (("--step-tokens", "10"), "chunk_tokens: 64 with step_tokens 10"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("--demand", str(demands_file(tmp_path)), *options)


@pytest.mark.parametrize("text", ["", "{}", '[{"name": "x"}]', '[{"name": "x", "completion_tokens": 0}]'])
def test_a_file_without_demands_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "demands.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_demands(path)


def test_demands_are_read_from_a_measured_result() -> None:
    demands = {demand.name: demand for demand in load_demands(command.MEASURED)}
    assert demands.keys() >= {"exact", "cloud"}
    assert demands["cloud"].forwards_per_request > 10 * demands["exact"].forwards_per_request
