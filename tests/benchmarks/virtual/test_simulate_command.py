"""`python -m benchmarks simulate`."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.simulation.trace import TraceFile, save_traces
from benchmarks.virtual import simulate as command
from chaperone_common.errors import ConfigError
from tests.support.benchmarks.traces import trace_of


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "made.jsonl.gz"
    code = replace(trace_of("+" * 16), id="code", category="humaneval")
    save_traces(path, TraceFile({}, (code, trace_of("+-" * 8))))
    return path


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(given)


def test_a_table_compares_strategies_by_category(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments("--traces", str(traces), "--strategies", "sync-16,cloud", "--rtt-ms", "0", "--cloud-ms", "100")
    result = command.run(args)
    rows = {(row["category"], row["strategy"]): row for row in result["table"]}
    assert list(rows) == [
        (category, strategy) for category in ("humaneval", "general", "all") for strategy in ("sync-16", "cloud")
    ]
    assert rows["all", "cloud"]["tokens_per_s"] == pytest.approx(10)
    assert rows["all", "cloud"]["over_cloud"] == 1
    assert rows["humaneval", "sync-16"]["over_cloud"] == pytest.approx(1600 / (16 * 22.5 + 100), rel=1e-3)
    assert rows["humaneval", "sync-16"]["over_cloud"] > rows["general", "sync-16"]["over_cloud"]
    assert (rows["all", "sync-16"]["equal_cloud"], rows["all", "sync-16"]["failed"]) == (2, 0)
    assert len(result["generations"]) == 4
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 7
    assert printed[0].split()[:3] == ["category", "strategy", "generations"]


def test_an_unknown_strategy_is_refused_with_the_list(traces: Path) -> None:
    with pytest.raises(ConfigError, match="'exat' is none of exact, gated, edge, cloud"):
        command.run(arguments("--traces", str(traces), "--strategies", "exat"))


def test_files_without_a_trace_are_refused_with_the_remedy(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one.jsonl.gz", "two.jsonl.gz")]
    for path in paths:
        save_traces(Path(path), TraceFile({}, ()))
    for given, problem in (
        (paths[:1], f"{paths[0]} holds no trace"),
        (paths, f"{paths[0]}, {paths[1]} hold no trace"),
    ):
        words = re.escape(f"--traces: {problem}; record one with `python -m benchmarks record`")
        with pytest.raises(ConfigError, match=f"^{words}$"):
            command.run(arguments("--traces", *given))


def test_a_file_without_a_trace_adds_none_to_the_others(traces: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl.gz"
    save_traces(empty, TraceFile({}, ()))
    result = command.run(arguments("--traces", str(empty), str(traces), "--strategies", "cloud"))
    assert len(result["generations"]) == 2


def test_an_invalid_curve_is_refused(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments("--traces", str(traces), "--cloud-ms", "1:x")
    assert "neither MS nor TOKENS:MS" in capsys.readouterr().err
