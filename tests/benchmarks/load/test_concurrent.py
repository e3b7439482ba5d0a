"""Texts written at the same time, compared with those that are written alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kit.prompts import Prompt
from benchmarks.load import concurrent
from benchmarks.load.concurrent import Writer, Written, add_arguments, compared, run
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def test_texts_and_costs_are_compared_with_the_first_writer() -> None:
    prompts = [Prompt("a", "prose", "A"), Prompt("b", "prose", "B")]
    written = {
        Writer(Mode.CLOUD, 1): Written(((1, 2), (3, 4)), seconds=2.0, cloud_s=4.0, round_trips=2),
        Writer(Mode.EXACT, 8): Written(((1, 2), (3, 5, 6)), seconds=1.0, cloud_s=0.5, round_trips=1),
    }
    rows = compared(prompts, written)
    assert rows["cloud:1"] == {
        "texts": 2,
        "equal_to_first": 2,
        "different": [],
        "tokens": 4,
        "tokens_per_s": 2.0,
        "tokens_per_cloud_s": 1.0,
        "over_first": 1.0,
        "round_trips_per_100_tokens": 50.0,
    }
    assert rows["exact:8"]["different"] == ["b"]
    assert rows["exact:8"]["over_first"] == 10.0


@pytest.mark.usefixtures("tiny_pair")
def test_the_tiny_pair_writes_the_same_texts_in_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = parsed(
        *("--pair", "tiny", "--dtypes", "float32", "--writers", "cloud:1,exact:4", "--texts", "2"),
        *("--tokens", "12", "--temperatures", "0.7", "--threads", "1", "--work", str(tmp_path)),
    )
    result: dict[str, Any] = run(options)
    row = result["summary"]["float32, temperature 0.7"]["exact:4"]
    assert row["equal_to_first"] == row["texts"] == 4
    assert row["tokens_per_cloud_s"] > 0
    monkeypatch.setattr(concurrent, "cloud_server", None)  # all is kept
    assert run(options)["summary"] == result["summary"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--writers", "exact"], "--writers: 'exact'; give MODE:NUMBER"),
        (["--writers", "exact:0"], "--writers: 'exact:0'"),
        (["--writers", "exact:1,exact:1"], "names one twice"),
        (["--dtypes", "float8"], "--dtypes: 'float8' is none"),
        (["--temperatures", "hot"], "--temperatures: 'hot'; give numbers"),
        (["--texts", "0"], "--texts: 0; at least 1"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(parsed(*options))
