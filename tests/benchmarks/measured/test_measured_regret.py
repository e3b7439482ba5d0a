"""The regret of a run, on rows made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.measured.regret import measured_regret, ratio, ratio_interval
from tests.support.benchmarks.rows import make_row


def cold(prompt: str, strategy: str, total_ms: float, **given: Any) -> dict[str, Any]:
    return make_row(prompt, strategy, None, **given) | {"cold_total_ms": total_ms}


def rows_of(strategy: str, *times_ms: float, category: str = "general") -> list[dict[str, Any]]:
    return [
        cold(f"{category}/{index // 3}", strategy, time_ms, repeat=index % 3, category=category)
        for index, time_ms in enumerate(times_ms)
    ]


def test_the_best_strategy_has_the_least_median_and_may_be_cloud() -> None:
    times = {"exact": [100, 120, 110], "cloud": [300, 90, 95], "overlap-8": [100, 100, 500]}
    value, best = ratio(times)
    assert best == "cloud"
    assert value == pytest.approx(95 / 110)


def test_each_class_and_all_together_have_a_best_strategy() -> None:
    rows = rows_of("exact", 100, 100, 100) + rows_of("cloud", 90, 90, 90) + rows_of("sync-4", 200, 200, 200)
    for strategy, time_ms in (("exact", 100), ("cloud", 400), ("sync-4", 110)):
        rows += rows_of(strategy, *(time_ms,) * 3, category="humaneval")
    found = measured_regret(rows, {"cloud", "sync-4"})
    assert found is not None
    best = {category: (entry["best"], entry["ratio"]) for category, entry in found["categories"].items()}
    assert best == {"general": ("cloud", 0.9), "humaneval": ("sync-4", 1.1), "all": ("sync-4", 1.55)}
    assert found["categories"]["general"]["ratio_95"] == [0.9, 0.9]
    assert found["categories"]["general"]["upper_bound_under_limit"]
    assert not found["categories"]["humaneval"]["upper_bound_under_limit"]


def test_a_strategy_of_one_class_is_no_rival_on_all() -> None:
    rows = rows_of("exact", 100, 100, 100) + rows_of("cloud", 300, 300, 300) + rows_of("sync-4", 50, 50, 50)
    rows += rows_of("exact", 100, 100, 100, category="humaneval") + rows_of(
        "cloud", 200, 200, 200, category="humaneval"
    )
    found = measured_regret(rows, {"cloud", "sync-4"})
    assert found is not None
    best = {category: (entry["best"], entry["ratio"]) for category, entry in found["categories"].items()}
    assert best == {"general": ("sync-4", 0.5), "humaneval": ("cloud", 2.0), "all": ("cloud", 2.5)}


def test_a_loss_within_the_noise_does_not_pass_the_limit() -> None:
    times = {"exact": [100.0, 100.0, 100.0, 100.0, 100.0, 100.0], "cloud": [60.0, 80.0, 90.0, 95.0, 130.0, 150.0]}
    low, high = ratio_interval(times) or (0, 0)
    assert low < ratio(times)[0] < high
    assert high > 0.97
    assert ratio(times)[0] < 0.97
    found = measured_regret(rows_of("exact", *times["exact"]) + rows_of("cloud", *times["cloud"]), {"cloud"})
    assert found is not None
    assert not found["categories"]["all"]["upper_bound_under_limit"]


def test_the_strategies_of_a_draw_have_the_same_prompts() -> None:
    """Prompts differ a thousandfold, but the ratio is the same on each, and so in every draw."""
    exact = [1.0, 10.0, 100.0, 1000.0]
    assert ratio_interval({"exact": exact, "cloud": [time * 1.25 for time in exact]}) == [1.25, 1.25]


def test_only_prompts_finished_by_all_strategies_count() -> None:
    rows = [cold("a", "exact", 100), cold("a", "cloud", 100), cold("b", "exact", 100), cold("c", "cloud", 1)]
    rows.append(cold("b", "cloud", 1, error="lost"))
    found = measured_regret(rows, {"cloud"})
    assert found is not None
    entry = found["categories"]["all"]
    assert (entry["generations"], entry["ratio"], entry["ratio_95"]) == (1, 1.0, None)
    assert not entry["upper_bound_under_limit"], "one generation has no spread"


def test_a_warm_run_is_timed_from_its_start() -> None:
    rows = [make_row("a", "exact", 1.0, decode_ms=50.0), make_row("a", "cloud", 1.0, decode_ms=200.0)]
    found = measured_regret(rows, {"cloud"})
    assert found is not None
    assert found["categories"]["all"]["median_ms"] == {"exact": 50.0, "cloud": 200.0}


@pytest.mark.parametrize("strategies", [("cloud",), ("exact",), ("exact", "gated")])
def test_without_exact_and_a_rival_there_is_no_regret(strategies: tuple[str, ...]) -> None:
    assert measured_regret([cold("a", name, 100) for name in strategies], {"cloud", "sync-8"}) is None
