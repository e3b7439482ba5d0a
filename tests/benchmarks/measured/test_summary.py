"""The summary's statistics, on rows made by hand."""

from __future__ import annotations

import pytest

from benchmarks.measured.bounds import summarise_bounds
from benchmarks.measured.summary import gaps_ms, percentile, summarise, tokens_per_s
from benchmarks.simulation.bounds import Costs, clairvoyant_ms, physical_floor_ms
from tests.support.benchmarks.rows import make_row
from tests.support.benchmarks.traces import trace_of

COSTS = {"draft_ms": 10.0, "row_ms": 3.0, "rtt_ms": 22.0, "stream_ms": 80.0}
READINGS = ((1, 90.0), (3, 100.0), (7, 120.0))


def test_ratios_are_taken_prompt_by_prompt_and_repeats_by_their_median() -> None:
    rows = [make_row("a", "cloud", 2.0), make_row("b", "cloud", 10.0), make_row("c", "cloud", 1.0)]
    rows += [make_row("a", "exact", speed, repeat=repeat) for repeat, speed in enumerate((4.0, 100.0, 6.0))]
    rows += [make_row("b", "exact", 10.0), make_row("c", "exact", 8.0)]
    entry = summarise(rows, {"exact"})["categories"]["all"]["exact"]
    assert entry["tokens_per_s"] == 8.0, "of 6, 10 and 8"
    assert entry["over_cloud"] == 3.0, "of 3, 1 and 8"
    assert entry["over_cloud_95"] == [1.0, 8.0]
    assert (entry["generations"], entry["prompts"]) == (5, 3)


def test_speeds_are_compared_with_exact_and_edge_where_they_ran() -> None:
    rows = [make_row("a", "exact", 2.0), make_row("b", "exact", 4.0), make_row("a", "gated", 3.0)]
    entry = summarise([*rows, make_row("b", "gated", 8.0)], {"exact"})["categories"]["all"]["gated"]
    assert (entry["over_exact"], entry["over_exact_95"]) == (1.75, [1.5, 2.0])
    assert entry["over_cloud"] is None
    assert "over_edge" not in entry


def test_categories_are_summarised_apart_and_together() -> None:
    rows = [
        make_row("a", "cloud", 1.0, category="humaneval"),
        make_row("b", "cloud", 1.0),
        make_row("a", "edge", 4.0, category="humaneval"),
        make_row("b", "edge", 2.0),
    ]
    summary = summarise(rows, set())["categories"]
    assert {name: entries["edge"]["over_cloud"] for name, entries in summary.items()} == {
        "humaneval": 4.0,
        "general": 2.0,
        "all": 3.0,
    }
    assert summary["general"]["edge"]["over_cloud_95"] is None, "one prompt has no spread"


def test_without_the_cloud_strategy_there_is_no_ratio() -> None:
    entry = summarise([make_row("a", "exact", 1.0)], {"exact"})["categories"]["all"]["exact"]
    assert entry["over_cloud"] is None
    assert entry["equal_cloud"] is None


def test_counts_and_bytes_are_sums_over_sums() -> None:
    rows = [
        make_row("a", "exact", 1.0, round_trips=3, bytes_up=60, cloud_compute_ms=30.0, prefill_ms=10.0, energy_j=2.0),
        make_row("b", "exact", 1.0, token_ids=(1,) * 16, commit_ms=(1.0,) * 16, round_trips=1, bytes_up=40),
    ]
    entry = summarise(rows, {"exact"})["categories"]["all"]["exact"]
    assert entry["round_trips_per_100_tokens"] == 20.0
    assert entry["bytes_up_per_token"] == 5.0
    assert entry["link_bytes_up_per_token"] == 4.0
    assert entry["link_bytes_down_per_token"] == 8.0
    assert entry["cloud_ms_per_token"] == 1.0
    assert entry["joules_per_token"] == 0.1


def test_unmeasured_values_are_absent() -> None:
    rows = [make_row("a", "assisted", 1.0, energy_j=None, cloud_compute_ms=None, prefill_ms=None)]
    entry = summarise(rows, set())["categories"]["all"]["assisted"]
    assert entry["joules_per_token"] is None
    assert entry["cloud_ms_per_token"] is None
    assert entry["round_trips_per_100_tokens"] == 0.0


def test_the_same_text_is_counted_for_strategies_that_promise_it() -> None:
    rows = [
        make_row("a", "cloud", 1.0),
        make_row("a", "exact", 1.0),
        make_row("a", "sync-4", 1.0, token_ids=(1, 2, 3, 5)),
        make_row("a", "edge", 1.0, token_ids=(9,), commit_ms=(1.0,)),
    ]
    summary = summarise(rows, {"exact", "sync-4"})
    assert summary["exact_output_equals_cloud"] == {"equal": 1, "of": 2}
    assert summary["categories"]["all"]["edge"]["equal_cloud"] == {"equal": 0, "of": 1}
    assert summary["categories"]["all"]["cloud"]["equal_cloud"] is None


def test_a_failed_generation_counts_only_as_failed() -> None:
    rows = [
        make_row("a", "cloud", 1.0),
        make_row("a", "exact", 2.0),
        make_row("b", "exact", None, token_ids=(), commit_ms=(), error="lost", round_trips=50),
    ]
    entry = summarise(rows, {"exact"})["categories"]["all"]["exact"]
    assert (entry["generations"], entry["failed"]) == (1, 1)
    assert entry["over_cloud"] == 2.0
    assert entry["round_trips_per_100_tokens"] == 0.0


def test_a_cold_run_is_timed_from_the_request() -> None:
    row = make_row("a", "exact", None) | {"cold_total_ms": 500.0}
    assert tokens_per_s(row) == 8.0


def test_gaps_are_within_generations() -> None:
    rows = [make_row("a", "exact", 1.0, commit_ms=(10, 10, 40, 45)), make_row("b", "exact", 1.0)]
    assert gaps_ms(rows) == [0, 30, 5, 10, 10, 10]
    assert summarise(rows, set())["categories"]["all"]["exact"]["gap_ms"] == {"p50": 10, "p95": 30, "p99": 30}


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (50, 50.0), (95, 95.0), (99, 99.0), (99.5, 100.0), (100, 100.0)]
)
def test_percentiles_are_values_that_occurred(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_a_percentile_of_no_values_is_none() -> None:
    assert percentile([], 50) is None


def test_the_links_processor_time_is_a_share_of_the_generations() -> None:
    rows = [make_row("a", "exact", 1.0), make_row("a", "assisted", 1.0) | {"link_bytes_up": 0}]
    assert summarise(rows, set())["link_cpu_share"] == 0.02


def test_bounds_follow_the_traces_of_the_run() -> None:
    trace = trace_of("+-++++")  # the run wrote four of its tokens
    text = trace.token_ids[:4]
    rows = [
        make_row(trace.id, "cloud", 5.0, token_ids=text, costs=COSTS),
        make_row(trace.id, "exact", 8.0, token_ids=text, costs=COSTS, readings=READINGS),
        make_row("another", "cloud", 5.0, costs=COSTS),
    ]
    costs = Costs(10.0, 20.0, 80.0, {1: 80.0, 2: 90.0, 4: 100.0, 8: 120.0})
    bounds = summarise_bounds(rows, [trace], 20.0)
    assert bounds["prompts"] == 1
    best = 4e3 / clairvoyant_ms((True, False, True, True), costs)
    clairvoyant = bounds["categories"]["all"]["clairvoyant"]
    assert clairvoyant["tokens_per_s"] == pytest.approx(best, abs=1e-3)
    assert clairvoyant["over_cloud"] == pytest.approx(best / 5, abs=1e-3)
    assert clairvoyant["share_reached"] == {
        "cloud": pytest.approx(5 / best, abs=1e-3),
        "exact": pytest.approx(8 / best, abs=1e-3),
    }
    floor = bounds["categories"]["all"]["physical_floor"]["tokens_per_s"]
    assert floor == pytest.approx(4e3 / physical_floor_ms(4, costs), abs=1e-3)


def test_a_trace_of_another_text_bounds_nothing() -> None:
    trace = trace_of("++++")
    rows = [
        make_row(trace.id, name, 5.0, token_ids=(1, 2), costs=COSTS, readings=READINGS[:count])
        for name, count in (("cloud", 0), ("exact", 2))
    ]
    assert summarise_bounds(rows, [trace], 20.0)["prompts"] == 0
