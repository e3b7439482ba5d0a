"""The choice of the best span length, its names, and the comparison in virtual time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.simulation.scenario import Scenario
from benchmarks.strategies.best_spans import load_peers, with_best
from benchmarks.virtual.peers import as_text, best_spans, speed
from benchmarks.virtual.replay import cut, replay
from benchmarks.virtual.run import Counts, bounds_of, entries, summarise, written_by
from benchmarks.virtual.run import as_text as table_of
from chaperone_common.errors import ConfigError
from chaperone_common.types import SamplingParams
from link_emulator.profile import Profile
from tests.support.benchmarks.traces import SURE, extended_trace, trace_of

NAMES = {
    "general": {"cloud": "cloud", "exact": "exact", "sync": "sync-8"},
    "humaneval": {"cloud": "cloud", "exact": "exact", "sync": "sync-32"},
}


def peers_file(folder: Path) -> Path:
    speeds = {
        (temperature, rtt_ms, family, category, tokens): -abs(tokens - best)
        for temperature, rtt_ms, family, category, best in (
            (0.0, 0.0, "sync", "general", 4),
            (0.0, 100.0, "sync", "general", 8),
            (0.0, 100.0, "sync", "humaneval", 24),
            (0.0, 200.0, "sync", "general", 16),
            (0.7, 100.0, "sync", "general", 2),
            (0.0, 100.0, "overlap", "general", 24),
        )
        for tokens in (2, 4, 8, 16, 24)
    }
    path = folder / "peers.json"
    path.write_text(json.dumps({"rows": list(best_spans(speeds))}), encoding="utf-8")
    return path


def test_the_best_length_is_the_fastest_and_shortest() -> None:
    speeds = {(0.0, 20.0, "sync", "general", tokens): value for tokens, value in ((8, 3.0), (2, 1.0), (4, 3.0))}
    (row,) = best_spans(speeds)
    assert row == {
        "temperature": 0.0,
        "rtt_ms": 20.0,
        "family": "sync",
        "category": "general",
        "best": 4,
        "tokens_per_s": {"2": 1.0, "4": 3.0, "8": 3.0},
    }


def test_every_temperature_round_trip_family_and_kind_has_a_best_length(tmp_path: Path) -> None:
    rows = load_peers(peers_file(tmp_path))
    assert [row["best"] for row in rows] == [4, 24, 8, 24, 16, 2]
    lines = [line.split() for line in as_text(rows).splitlines()]
    assert lines[1] == ["sync", "general", "temperature", "0", "4", "8", "16"]
    assert lines[2] == ["overlap", "general", "temperature", "0", "-", "24", "-"]
    assert lines[3] == ["sync", "humaneval", "temperature", "0", "-", "24", "-"]


@pytest.mark.parametrize(
    ("rtt_ms", "temperature", "expected"),
    [(100, 0.0, "sync-8"), (100, 0.7, "sync-2"), (40, 0.0, "sync-4"), (150, 0.0, "sync-16"), (590, 0.2, "sync-16")],
)
def test_a_best_name_stands_for_the_nearest_entry(
    tmp_path: Path, rtt_ms: float, temperature: float, expected: str
) -> None:
    names = with_best(["cloud", "sync-best", "sync-32"], peers_file(tmp_path), rtt_ms, temperature, "general")
    assert names == ("cloud", expected, "sync-32")


def test_without_a_best_name_no_file_is_read(tmp_path: Path) -> None:
    assert with_best(["cloud", "sync-8"], tmp_path / "none.json", 0.0, 0.0, "poems") == ("cloud", "sync-8")


def test_a_family_missing_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="knows no 'acespec', only overlap, sync"):
        with_best(["acespec-best"], peers_file(tmp_path), 0.0, 0.0, "general")
    with pytest.raises(ConfigError, match="no prompts of the class 'poems'"):
        with_best(["sync-best"], peers_file(tmp_path), 0.0, 0.0, "poems")
    with pytest.raises(ConfigError, match="python -m benchmarks peers"):
        with_best(["sync-best"], tmp_path / "none.json", 0.0, 0.0, "general")


def test_the_mean_over_prompts_is_geometric() -> None:
    """A prompt four times as fast balances one four times as slow."""
    sure, unsure = trace_of("+" * 9), trace_of("---------")
    each = [speed([trace], 100.0, "sync-2")["general"] for trace in (sure, unsure)]
    assert speed([sure, unsure], 100.0, "sync-2") == {"general": pytest.approx((each[0] * each[1]) ** 0.5)}
    other = replace(unsure, category="humaneval")
    assert speed([sure, other], 100.0, "sync-2") == {
        "general": pytest.approx(each[0]),
        "humaneval": pytest.approx(each[1]),
    }


def test_the_warm_up_trains_estimates_and_is_dropped() -> None:
    traces = [trace_of("++++----" * 4), trace_of("++++++++")]
    scenario = Scenario(Profile.fixed(100.0))
    simulations = replay(traces, scenario, "exact", warm_up=traces[0])
    assert [simulation.token_ids for simulation in simulations] == [trace.token_ids for trace in traces]
    other = replay(traces, scenario, "exact", warm_up=traces[1])
    assert [one.stats.decode_ms for one in simulations] != [one.stats.decode_ms for one in other]


def test_a_cut_trace_equals_a_shorter_generation() -> None:
    trace = trace_of("+-++-+", ended=True)
    shorter = cut(trace, 3)
    assert shorter.token_ids == trace.token_ids[:3]
    assert (shorter.max_new_tokens, shorter.ended, set(shorter.astray)) == (3, False, {1})
    assert cut(trace, 6) is trace


def test_virtual_time_separates_kinds_and_reports_if_exact_is_ahead() -> None:
    traces = [trace_of("+" * 4), trace_of("+" * 4), replace(trace_of("+" * 4), category="humaneval")]
    speeds = {
        "cloud": [1, 2, 1],
        "exact": [4, 6, 3],
        "sync-8": [2, 4, 1],
        "sync-32": [1, 1, 3],
        "bound": [5, 8, 4],
    }
    counts = {name: [Counts(10, 5, 0)] * 3 for name in speeds}
    general, humaneval = entries(traces, 50.0, NAMES, speeds, counts)
    assert general["category"] == "general"
    assert general["strategies"]["sync"] == {"strategy": "sync-8", "tokens_per_s": 3, "over_cloud": 2.0}
    assert general["exact_over"] == {"cloud": 3.5, "sync": 1.75}
    assert general["bound"]["share_of_exact"] == pytest.approx((4 / 5 + 6 / 8) / 2)
    assert general["exact_ahead_of_all"]
    assert not humaneval["exact_ahead_of_all"], "equally fast is not ahead"
    summary = summarise([general, humaneval])
    assert (summary["settings"], summary["exact_ahead_of_all"]) == (2, 1)
    (slower,) = summary["not_ahead"]
    assert (slower["category"], slower["strategy"], slower["exact_over"]) == ("humaneval", "sync-32", 1.0)
    assert [line.count("!") for line in table_of([general, humaneval]).splitlines()] == [0, 0, 1]


def test_virtual_time_has_requests_and_deviations_and_never_counts_inexact_strategies_as_rivals() -> None:
    traces = [trace_of("+" * 4), trace_of("+" * 4)]
    names = {"general": {"cloud": "cloud", "exact": "exact", "gated": "gated", "uhlm": "uhlm-0.1"}}
    speeds = {"cloud": [1, 1], "exact": [4, 4], "gated": [6, 8], "uhlm-0.1": [2, 2], "bound": [5, 5]}
    counts = {name: [Counts(100, 50, 0), Counts(300, 50, 0)] for name in ("cloud", "exact", "gated")}
    counts["uhlm-0.1"] = [Counts(100, 10, 1), Counts(300, 10, 3)]
    (row,) = entries(traces, 50.0, names, speeds, counts)
    assert row["strategies"]["gated"] == {"strategy": "gated", "tokens_per_s": 7, "over_cloud": 7.0}
    assert row["exact_over"].keys() == {"cloud"}
    assert row["exact_ahead_of_all"], "gated is faster and no rival"
    assert row["inexact_over_exact"] == {"gated": 1.75, "uhlm": 0.5}
    assert row["requests_per_100_tokens"] == {"cloud": 25.0, "exact": 25.0, "gated": 25.0, "uhlm": 5.0}
    assert row["deviations_per_100_tokens"] == {"gated": 0.0, "uhlm": 1.0}


def test_generations_are_counted_trace_by_trace() -> None:
    traces = [extended_trace(trace_of("+-+-", wrong=SURE)), extended_trace(trace_of("++++"))]
    written = written_by("uhlm-0.1", traces, 50.0, traces[0], "none")
    assert [one.tokens for one in written.counts] == [4, 4]
    assert [one.deviations for one in written.counts] == [2, 0]
    assert [one.requests for one in written.counts] == [0, 0], "nothing is asked, and the last audit is no request"
    assert len(written.tokens_per_s) == 2


def test_the_bound_has_the_costs_of_the_simulation() -> None:
    trace = replace(trace_of("+" * 8), sampling=SamplingParams(temperature=0.7))
    (cloud,) = replay([trace], Scenario(Profile.fixed(100.0)), "cloud", warm_up=trace)
    (exact,) = replay([trace], Scenario(Profile.fixed(100.0)), "exact", warm_up=trace)
    (bound,) = bounds_of([trace], 100.0)
    assert cloud.decode_tokens_per_s == pytest.approx(8e3 / (100 + 8 * 310), rel=0.01)
    assert cloud.decode_tokens_per_s < exact.decode_tokens_per_s < bound * 1.001
