"""The regret grid: every cell and kind of prompt once, against the best tried strategy in hindsight."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulation.trace import TraceFile, save_traces
from benchmarks.virtual import regret
from benchmarks.virtual.regret import Cell, summarise
from tests.support.benchmarks.traces import extended_trace, trace_of


def measured(folder: Path, *options: str) -> dict[str, Any]:
    """Measure a grid of one link and one device over three texts, with the gate of their signals.

    In two of them, device and cloud agree except once; in the third they never agree.
    """
    kinds = {"humaneval": ["+" * 20 + "-" + "+" * 19, "+" * 40], "general": ["-" * 30]}
    traces = [
        replace(extended_trace(trace_of(pattern)), id=f"{category}/{index}", category=category)
        for category, patterns in kinds.items()
        for index, pattern in enumerate(patterns)
    ]
    path = folder / "traces.jsonl.gz"
    save_traces(path, TraceFile({}, tuple(traces)))
    parser = argparse.ArgumentParser()
    regret.add_arguments(parser)
    grid = ["--rtts-ms", "50", "--profiles", "none", "--clouds-ms", "20,310", "--drafts-ms", "20", "--processes", "1"]
    return regret.run(parser.parse_args(["--traces", str(path), "--gate", "none", *grid, *options]))


def rows_of(result: dict[str, Any], category: str) -> dict[float, dict[str, Any]]:
    rows: Sequence[dict[str, Any]] = result["rows"]
    return {row["cloud_ms"]: row for row in rows if row["category"] == category}


def test_in_hindsight_streaming_is_best_without_agreement_and_spans_with_it(
    tmp_path: Path,
) -> None:
    result = measured(tmp_path, "--against", "cloud,sync-8,overlap-8")
    assert len(result["rows"]) == 4
    assert {row["best"] for row in rows_of(result, "general").values()} == {"cloud"}
    sure = rows_of(result, "humaneval")[310.0]
    assert sure["best"] == "overlap-8"
    assert sure["over_cloud"] > 3, "a forward settles many tokens for this kind"


def test_a_ratio_is_the_best_time_over_the_time_of_exact(tmp_path: Path) -> None:
    """Against `exact` itself it is 1, and more strategies can only lower it."""
    itself = measured(tmp_path, "--against", "exact")
    assert {row[measure] for row in itself["rows"] for measure in ("settled", "whole")} == {1.0}
    few, many = (measured(tmp_path, "--against", names) for names in ("sync-8", "sync-8,cloud,overlap-8"))
    for less, more in zip(few["rows"], many["rows"], strict=True):
        assert more["whole"] <= less["whole"]


def test_the_summary_counts_cells_under_the_limit_and_names_the_worst() -> None:
    rows = [
        {
            "link": "5",
            "cloud_ms": 10.0,
            "draft_ms": 5.0,
            "category": "general",
            "best": "cloud",
            "settled": value,
            "whole": 1,
        }
        for value in (1.2, 0.9, 0.97, 0.96)
    ]
    summary = summarise(rows)["settled"]
    assert (summary["cells"], summary["under_0.97"], summary["least"]) == (4, 2, 0.9)
    assert [row["settled"] for row in summary["worst"]] == [0.9, 0.96, 0.97, 1.2]


def test_gated_and_inexact_rivals_are_compared_with_exact_and_never_the_best(tmp_path: Path) -> None:
    result = measured(tmp_path, "--against", "sync-8", "--inexact", "uhlm-0.1,bild-0.6-2")
    for row in result["rows"]:
        assert row["best"] == "sync-8"
        assert row["gated_over_exact"].keys() == {"settled", "whole"}
        assert row["gated_requests"] > 0
        assert row["gated_cloud_work"] > 0
        assert row["gated_deviations_per_100_tokens"] >= 0
        assert row["inexact"].keys() == {"uhlm-0.1", "bild-0.6-2"}
        for ratios in row["inexact"].values():
            assert ratios.keys() == {"settled", "whole", "requests", "cloud_work"}
    sure = rows_of(result, "humaneval")[310.0]
    assert sure["inexact"]["uhlm-0.1"]["requests"] < 0.5, "it is sure of nearly every token"
    summary = result["summary"]
    assert summary["gated"]["whole"]["cells"] == 4
    for share in ("requests", "cloud_work"):
        assert summary["gated"][share].keys() == {"geometric_mean", "most"}
    assert summary["inexact"].keys() == {"uhlm-0.1", "bild-0.6-2"}


def test_a_quick_grid_has_exact_and_gated_alone(tmp_path: Path) -> None:
    result = measured(tmp_path, "--against", "", "--inexact", "none")
    assert result["summary"].keys() == {"gated", "inexact"}
    for row in result["rows"]:
        assert not row.keys() & {"best", "settled", "whole", "over_cloud"}
        assert row["inexact"] == {}


def test_the_summary_counts_cells_where_gated_loses() -> None:
    rows = [
        {
            "link": "5",
            "cloud_ms": 10.0,
            "draft_ms": 5.0,
            "category": "general",
            "gated_over_exact": {"settled": value, "whole": 1.0},
            "gated_requests": requests,
            "gated_cloud_work": 0.5,
            "inexact": {},
        }
        for value, requests in ((1.2, 0.5), (0.9, 0.0), (0.98, 0.25), (0.97, 2.0))
    ]
    gated = summarise(rows)["gated"]
    assert (gated["settled"]["under_0.98"], gated["settled"]["least"], gated["whole"]["under_0.98"]) == (2, 0.9, 0)
    assert [row["settled"] for row in gated["settled"]["worst"]] == [0.9, 0.97, 0.98, 1.2]
    assert gated["requests"]["most"] == 2.0
    assert gated["requests"]["geometric_mean"] == pytest.approx((0.5 * 1e-4 * 0.25 * 2.0) ** 0.25, abs=1e-4)


@pytest.mark.parametrize(("cloud_ms", "of_64_tokens"), [(310.0, 310 * (1 + 0.046 * 63)), (40.0, 40 * (1 + 0.002 * 63))])
def test_longer_forwards_are_expensive_on_a_cpu_and_cheap_on_an_accelerator(
    cloud_ms: float, of_64_tokens: float
) -> None:
    scenario = Cell("100", cloud_ms, 20.0).scenario(seed=1)
    assert scenario.cloud.read_ms.at(1) == cloud_ms
    assert scenario.cloud.read_ms.at(64) == pytest.approx(of_64_tokens)
