"""Data types of the tiny pair's cloud model against each other."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.engines import llama_bench, speed
from benchmarks.engines.agreement import Reading, Text, compared
from benchmarks.engines.run import add_arguments, run
from chaperone_common.errors import ConfigError
from cloud_supervisor.model import int8_linear


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def test_choices_and_likelihoods_are_compared_by_kind_of_text() -> None:
    texts = [Text("prose", (1,), (2, 3)), Text("code", (1,), (2, 3)), Text("prose", (1,), (4, 5))]
    old = [Reading(np.array([2, 3]), np.array([-1.0, -1.0]))] * 3
    new = [
        Reading(np.array([2, 9]), np.array([-1.0, -1.5])),
        Reading(np.array([2, 3]), np.array([-1.0, -1.0])),
        Reading(np.array([2, 3]), np.array([-0.5, -2.0])),
    ]
    assert compared(texts, old, new) == {
        "prose": {"texts": 2, "tokens": 4, "agreement": 0.75, "lost_nats_per_100_tokens": 25.0},
        "code": {"texts": 1, "tokens": 2, "agreement": 1.0, "lost_nats_per_100_tokens": 0.0},
    }


@pytest.mark.skipif(not int8_linear.available(), reason="this build of torch has no FBGEMM")
def test_the_tiny_pair_is_measured(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "TEXT_TOKENS", 20)
    answers = [{"id": f"HumanEval/{number}", "strategy": "cloud", "token_ids": [5, 6, 7, 8]} for number in range(2)]
    with gzip.open(tmp_path / "humaneval-answers.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(answer) + "\n" for answer in answers)
    result: dict[str, Any] = run(
        parsed("--pair", "tiny", "--kinds", "humaneval", "--answers", str(tmp_path), "--threads", "1")
    )
    assert result["summary"]["float32"]["ms"]["1x8"] > 0
    row = result["summary"]["int8"]
    assert set(row["drawing_share"]) == {"4x8", "32x8"}
    assert row["against"] == "float32"
    assert row["kinds"]["humaneval"]["tokens"] == 8
    assert 0 <= row["kinds"]["humaneval"]["agreement"] <= 1


def bench_program(folder: Path, answer: str) -> Path:
    """Return a program that answers as llama-bench does, for the tokens that `-p` lists."""
    program = folder / "llama-bench"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nsizes = sys.argv[sys.argv.index('-p') + 1]\n{answer}\n")
    program.chmod(0o755)
    return program


ROWS = """
build = {"build_number": 7, "build_commit": "abc"}
rows = [build | {"n_prompt": int(size), "n_gen": 0, "samples_ns": [int(size) * 2e6, int(size) * 1e6]}
        for size in sizes.split(",")]
print(json.dumps([*rows, build | {"n_prompt": 0, "n_gen": 16, "samples_ns": [1], "samples_ts": [9.0, 11.0]}]))
"""


def test_the_figures_of_llama_bench_are_taken_over(tmp_path: Path) -> None:
    weights = tmp_path / "m.gguf"
    weights.write_bytes(bytes(3_000_000))
    program = bench_program(tmp_path, ROWS)
    row = llama_bench.measure(program, weights, threads=2, held=200, spans=(1, 8), rounds=2)
    assert row == {
        "version": "7 (abc)",
        "weights_mb": 3,
        "ms": {"1x1": 1.5, "1x8": 12.0},
        "tokens_per_s": 10.0,
        "eight_over_one": 8.0,
    }


@pytest.mark.parametrize("answer", ["sys.exit(1)", "print('oops')", "print(json.dumps([{'n_gen': 0}]))"])
def test_a_program_that_does_not_measure_is_named(tmp_path: Path, answer: str) -> None:
    program = bench_program(tmp_path, answer)
    with pytest.raises(ConfigError, match="--llama-bench: .* did not measure"):
        llama_bench.measure(program, tmp_path / "m.gguf", threads=2, held=200, spans=(1, 8), rounds=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtypes", "float8"], "--dtypes: 'float8' is none"),
        (["--texts", "0"], "--texts: 0; at least 1"),
        (["--gguf", "m.gguf"], "--llama-bench: it needs --gguf as well"),
        (["--pair", "tiny", "--kinds", "songs"], "--kinds: 'songs' is none"),
        (
            ["--pair", "tiny", "--kinds", "prose", "--answers", "nowhere"],
            "no answers of `python -m benchmarks quality`",
        ),
    ],
)
@pytest.mark.usefixtures("tiny_pair")
def test_impossible_options_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(parsed(*options))
