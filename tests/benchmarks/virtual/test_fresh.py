"""The comparison of a client's first text with its tenth."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulation.trace import Trace, TraceFile, save_traces
from benchmarks.virtual import fresh
from benchmarks.virtual.fresh import Client, summarise, texts_before
from chaperone_common.errors import ConfigError
from tests.support.benchmarks.traces import trace_of


def named(pattern: str, name: str, category: str) -> Trace:
    return replace(trace_of(pattern), id=name, category=category)


EARLIER = (
    *(named("+" * 20, f"code/{index}", "humaneval") for index in range(3)),
    *(named("+" * 9 + "-" + "+" * 10, f"prose/{index}", "general") for index in range(2)),
)
REPORTED = (EARLIER[0], named("+++-" * 5, "code/new", "humaneval"))


def measured(
    folder: Path, *options: str, reported: tuple[Trace, ...] = REPORTED, earlier: tuple[Trace, ...] = EARLIER
) -> dict[str, Any]:
    """Compare two texts of one kind, with the gate of their signals."""
    paths = {"--traces": folder / "traces.jsonl.gz", "--earlier": folder / "earlier.jsonl.gz"}
    save_traces(paths["--traces"], TraceFile({}, reported))
    save_traces(paths["--earlier"], TraceFile({}, earlier))
    parser = argparse.ArgumentParser()
    fresh.add_arguments(parser)
    files = [word for option, path in paths.items() for word in (option, str(path))]
    return fresh.run(parser.parse_args([*files, "--gate", "none", "--processes", "1", *options]))


@pytest.mark.parametrize(
    ("history", "names"),
    [
        ("same_kind", ["code/1", "code/2", "code/1", "code/2"]),
        ("other_kind", ["prose/0", "prose/1", "prose/0", "prose/1"]),
        ("mixed", ["code/1", "prose/0", "code/2", "prose/1"]),
    ],
)
def test_nine_other_texts_come_before_the_tenth(history: str, names: list[str]) -> None:
    texts = [text.id for text in texts_before(history, EARLIER[0], EARLIER)]
    assert len(texts) == 9
    assert texts[:4] == names
    assert texts[4:8] == names
    assert texts[8] == names[0]


def test_a_copy_of_a_client_learns_alone() -> None:
    scenario = fresh.scenario_of("declared", 100.0)
    trace = named("+++-" * 10, "prose", "general")
    client = Client.fresh(trace, "gated", "none")
    first = client.copy().write(trace, scenario)
    assert client.copy().write(trace, scenario).timeline == first.timeline, "the original has learned nothing"
    client.write(trace, scenario)
    assert client.copy().write(trace, scenario).timeline != first.timeline, "a copy knows what the original knew"


def test_rows_have_the_first_text_and_the_tenth_after_each_history(tmp_path: Path) -> None:
    result = measured(tmp_path, "--clouds", "declared", "--starts", "warm")
    assert [(row["strategy"], row["id"]) for row in result["rows"]] == [
        (strategy, name) for strategy in ("gated", "exact") for name in ("code/0", "code/new")
    ]
    for row in result["rows"]:
        for text in (row["first"], *(row[history] for history in fresh.HISTORIES)):
            assert text["tokens"] == 20
            assert text["tokens_per_s"] > 0
            assert text["asked"] <= text["drafted"] <= 20
    assert [entry["strategy"] for entry in result["summary"]] == ["gated", "exact"]


def test_a_cold_text_is_slower_than_a_warm_one(tmp_path: Path) -> None:
    rows = measured(tmp_path, "--clouds", "accelerator", "--strategies", "gated")["rows"]
    speeds = {(row["start"], row["id"]): row["first"]["tokens_per_s"] for row in rows}
    assert speeds["cold", "code/0"] < speeds["warm", "code/0"]


@pytest.mark.parametrize(
    ("texts", "option", "name"),
    [({"reported": ()}, "--traces", "traces.jsonl.gz"), ({"earlier": ()}, "--earlier", "earlier.jsonl.gz")],
)
def test_a_file_without_a_trace_is_refused_with_the_remedy(
    tmp_path: Path, texts: dict[str, Any], option: str, name: str
) -> None:
    words = f"{option}: {tmp_path / name} holds no trace; record one with `python -m benchmarks record`"
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        measured(tmp_path, **texts)


def test_the_summary_has_medians_of_ratios_and_shares_over_all_texts() -> None:
    def text(tokens_per_s: float, asked: int, caught: int, deviations: int) -> dict[str, Any]:
        counted = {"tokens": 100, "drafted": 80, "requests": 10, "retracted": 0}
        return {"tokens_per_s": tokens_per_s, "asked": asked, "caught": caught, "deviations": deviations} | counted

    rows = [
        {"strategy": "gated", "cloud": "declared", "start": "warm", "first": text(first, 40, 9, 0)}
        | dict.fromkeys(fresh.HISTORIES, text(10.0, 20, 8, 1))
        for first in (9.0, 10.0, 5.0)
    ]
    [entry] = summarise(rows)
    assert entry["first"]["asked_share"] == 0.5
    assert entry["first"]["catch"] == 1.0
    assert entry["mixed"]["speed"] == 0.9
    assert entry["mixed"]["least_speed"] == 0.5
    assert entry["mixed"]["requests"] == 1.0
    assert entry["mixed"]["asked_share"] == 0.25
    assert entry["mixed"]["catch"] == pytest.approx(24 / 27, abs=1e-4)
    assert entry["mixed"]["deviation_rate"] == 0.01
