"""The study of beams: its ways, its figures, and a small one on the tiny pair."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.beams.run import add_arguments, run
from benchmarks.beams.summary import summarise
from benchmarks.beams.ways import Way
from benchmarks.conditioning import texts
from benchmarks.quality.sandbox import Outcome
from benchmarks.quality.task_suites import Task
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def test_a_name_is_a_way() -> None:
    assert Way.of("exact") == Way("exact", Mode.EXACT)
    assert Way.of("cloud-4") == Way("cloud-4", Mode.CLOUD, 4)
    assert Way.of("beams-2-w4") == Way("beams-2-w4", Mode.EXACT, 2, beam_width=4)
    assert Way.of("beams-4-one") == Way("beams-4-one", Mode.EXACT, 4, one_cache=True)
    assert Way.of("beams-4-t0.8") == Way("beams-4-t0.8", Mode.EXACT, 4, beam_threshold=0.8)
    assert Way.of("generate-3").mode is None
    assert Way.of("exact").parameters == {"mode": Mode.EXACT}
    assert Way.of("beams-2").parameters["beam_width"] == "dynamic"


@pytest.mark.parametrize("name", ["beams", "beams-1", "beams-9", "cloud-4-one", "beams-2-w17", "edge", "generate-2-w3"])
def test_an_unknown_way_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--ways: '{name}'"):
        Way.of(name)


def row(tokens: int, seconds: float, logprob: float, *, joules: float = 1.0, right: bool | None = None) -> Any:
    return {
        "token_ids": [0] * tokens,
        "seconds": seconds,
        "logprob": logprob,
        "energy_j": joules,
        "right": right,
        "round_trips": 2,
        "bytes_up": 300,
        "verified_tokens": tokens // 2,
    }


def test_a_way_is_compared_with_the_baseline_prompt_by_prompt() -> None:
    before = [row(10, 1.0, -10.0, right=False), row(10, 2.0, -20.0, right=True)]
    found = summarise({"base": before, "way": [row(10, 0.5, -5.0, joules=0.5, right=True), *before[1:]]}, "base")
    assert found["base"]["speed_over_baseline"] == 1.0
    way = found["way"]
    assert way["speed_over_baseline"] == 1.5
    assert way["logprob_per_token"] == -1.25
    assert way["logprob_gain"] == 0.25
    assert way["energy_saving"] == pytest.approx(2 / 1.5, abs=1e-3)
    assert (way["right"], way["right_gain"]) == (2, 0.5)
    assert way["bytes_up_per_request"] == 150
    assert way["verified_share"] == 0.5


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--suites", "poems"), "--suites: poems: unknown; there are humaneval, reasoning, general"),
        (("--ways", "exact,exact"), "--ways: 'exact,exact' names one twice"),
        (("--tokens", "0"), "--tokens: 0; at least 1"),
        (("--rtt-ms", "soon"), "--rtt-ms: 'soon' is no number of milliseconds"),
    ],
)
def test_a_wrong_option_is_refused(options: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(parsed("--pair", "tiny", "--tasks", "1", *options))


def test_a_study_of_the_tiny_pair_goes_on_where_it_ended(
    tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Task(f"t{number}", "the list of a number", lambda text: Outcome(bool(text), "")) for number in range(2)]
    monkeypatch.setattr(texts, "tasks_of", lambda suite, count: tasks)
    ways = "cloud-2,beams-2,beams-2-one,exact,generate-2"
    options = ("--pair", "tiny", "--suites", "general", "--tokens", "8", "--rtt-ms", "0", "--dtype", "float32")
    args = parsed(*options, "--plain-dtype", "float32", "--ways", ways, "--work", str(tmp_path))
    result = run(args)
    found = result["summary"]["general"]["0 ms"]
    assert list(found) == ways.split(",")
    assert all(figures["texts"] == 2 for figures in found.values())
    assert all(figures["logprob_per_token"] < 0 for figures in found.values())
    assert found["beams-2"]["requests_per_token"] > 0
    assert found["generate-2"]["bytes_up_per_request"] is None
    (kept,) = tmp_path.glob("*.jsonl")
    written = kept.read_bytes()
    assert run(args)["summary"] == result["summary"]
    assert kept.read_bytes() == written
