"""A run's costs: medians of its measurements, and only if all parts were measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measured.costs import RunCosts
from chaperone_common.errors import ConfigError
from link_emulator.profile import Profile
from tests.support.benchmarks.rows import make_row

COSTS = {"draft_ms": 10.0, "row_ms": 3.0, "rtt_ms": 22.0, "stream_ms": 80.0}
READINGS = ((3, 110.0), (3, 100.0), (3, 990.0), (15, 200.0), (16, 220.0), (16, 240.0))

HAND_OVER = ((0, 333.0),)


def rows_by_hand() -> list[dict[str, Any]]:
    return [
        make_row("a", "exact", 1.0, costs=COSTS, readings=READINGS[:4]),
        make_row("b", "sync-8", 1.0, costs=COSTS | {"draft_ms": 30.0, "row_ms": 99.0}, readings=READINGS[4:]),
        make_row("a", "edge", 1.0, costs=COSTS | {"draft_ms": 999.0}),
        make_row("a", "cloud", 1.0, costs=COSTS | {"draft_ms": 999.0}, readings=HAND_OVER),
    ]


def test_costs_are_medians_over_the_strategies_that_have_them() -> None:
    costs = RunCosts.of(rows_by_hand())
    assert costs is not None
    assert (costs.draft_ms, costs.stream_ms) == (20.0, 80.0), "from strategies that draft, and from those that stream"
    assert costs.read_ms == {1: 80.0, 4: 110.0, 17: 220.0}, "the forward includes the token before the span"
    assert costs.rows.at(2) == 1.3, "only a planner with rows measures them"


def test_means_give_the_sum_of_many_steps() -> None:
    costs = RunCosts.of(rows_by_hand(), statistics.fmean)
    assert costs is not None
    assert costs.read_ms == {1: 80.0, 4: 400.0, 17: 400.0}, "a longer forward takes no less"


@pytest.mark.parametrize("name", ["bild-0.6-2", "uhlm-0.1", "exact@second"])
def test_strategies_with_other_costs_do_not_count(name: str) -> None:
    other = make_row("b", name, 1.0, costs=COSTS | {"draft_ms": 70.0}, readings=((3, 70.0), (3, 70.0)))
    assert RunCosts.of([*rows_by_hand(), other]) == RunCosts.of(rows_by_hand())


def test_the_time_of_a_forward_never_falls_with_its_length() -> None:
    rows = [
        make_row("a", "sync-2", 1.0, costs=COSTS, readings=((2, 150.0), (30, 140.0))),
        make_row("a", "cloud", 1.0, costs=COSTS, readings=HAND_OVER),
    ]
    costs = RunCosts.of(rows)
    assert costs is not None
    assert costs.read_ms == {1: 80.0, 3: 150.0, 31: 150.0}


def test_a_simulation_and_a_bound_use_the_costs() -> None:
    costs = RunCosts.of(rows_by_hand())
    assert costs is not None
    scenario = costs.scenario(Profile.fixed(20.0))
    assert scenario.profile.rtt_ms == 20.0
    assert scenario.draft.step_ms == 20.0
    assert [scenario.cloud.read_ms.at(tokens) for tokens in (1, 4, 17)] == [80.0, 110.0, 220.0]
    bounds = costs.bounds(20.0)
    assert (bounds.draft_ms, bounds.rtt_ms, bounds.stream_ms) == (20.0, 20.0, 80.0)
    assert bounds.verify_ms == costs.read_ms


@pytest.mark.parametrize("kept", [slice(0, 3), slice(2, 4)])
def test_missing_costs_are_not_guessed(kept: slice, tmp_path: Path) -> None:
    assert RunCosts.of(rows_by_hand()[kept]) is None
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"generations": rows_by_hand()[kept]}), encoding="utf-8")
    with pytest.raises(ConfigError, match="run both"):
        RunCosts.load(path)


def test_a_file_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(ConfigError, match="python -m benchmarks run"):
        RunCosts.load(path)
    path.write_text(json.dumps({"generations": rows_by_hand()}), encoding="utf-8")
    assert RunCosts.load(path) == RunCosts.of(rows_by_hand())
