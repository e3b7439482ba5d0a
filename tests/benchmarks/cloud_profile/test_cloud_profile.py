"""Measuring a two-layer model on the processor, and interpolating the rows of a profile."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cloud_profile import run as cloud_profile
from benchmarks.cloud_profile.run import SHAPES, CloudProfile
from benchmarks.cloud_profile.steps import Accelerator, measure, step_bytes
from benchmarks.cloud_profile.types import Plan, Row, Shape
from chaperone_common.errors import ConfigError

TINY = Shape(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, vocabulary_size=100)


class Roomy(Accelerator):
    """The processor, with memory set by the test."""

    def __init__(self, free: int = 2**40) -> None:
        super().__init__("cpu")
        self.free = free

    def free_bytes(self) -> int:
        return self.free


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: two wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(budget_s: float = 1e9, **shapes: Shape) -> Plan:
    return Plan(shapes or {"tiny": TINY}, (1, 2), (8, 16), (1, 4), repeats=3, budget_s=budget_s)


def kept(*_: Any) -> None:
    """Ignore the rows."""


def ticking(step_s: float = 0.001) -> Any:
    """Return a clock that advances by `step_s` at each reading."""
    ticks = itertools.count()
    return lambda: next(ticks) * step_s


# --- Measuring ------------------------------------------------------------------------------------------------------


def test_every_combination_becomes_a_row_of_medians() -> None:
    rows, skipped = measure(plan(), Roomy(), (), ticking(), kept)
    assert not skipped
    combinations = {(row.batch, row.context, row.tokens) for row in rows}
    assert combinations == set(itertools.product((1, 2), (8, 16), (1, 4)))
    assert all((row.median_ms, row.p10, row.p90, row.repeats) == (1.0, 1.0, 1.0, 3) for row in rows)


def test_each_row_is_kept_as_soon_as_it_is_measured() -> None:
    seen: list[int] = []
    rows, _ = measure(plan(), Roomy(), (), ticking(), lambda rows, _: seen.append(len(rows)))
    assert seen == list(range(1, len(rows) + 1))


def test_rows_of_an_earlier_run_are_not_measured_again() -> None:
    earlier = Row("tiny", "bfloat16", 1, 8, 1, 99.0, 99.0, 99.0, 3)
    rows, _ = measure(plan(), Roomy(), (earlier,), ticking(), kept)
    assert rows[0] is earlier
    assert len(rows) == 8
    again, _ = measure(plan(), Roomy(), rows, ticking(), kept)
    assert again == rows


def test_a_spent_budget_skips_the_rest_with_a_message() -> None:
    rows, skipped = measure(plan(budget_s=0.012), Roomy(), (), ticking(), kept)
    assert 0 < len(rows) < 8
    assert {entry["why"] for entry in skipped} == {"the budget of 0.012 s is spent"}


def test_oversized_combinations_are_skipped_with_a_message() -> None:
    rows, skipped = measure(plan(), Roomy(free=1000), (), ticking(), kept)
    assert not rows
    assert [entry["shape"] for entry in skipped] == ["tiny"]
    assert "weights: needs about" in skipped[0]["why"]

    largest = step_bytes(TINY, 2, 16, 4, 2)
    rows, skipped = measure(plan(), Roomy(free=int(largest / 0.85) - 1), (), ticking(), kept)
    assert len(rows) == 6
    assert [(entry["batch"], entry["context"]) for entry in skipped] == [(2, 16)]


@pytest.mark.parametrize(
    ("shape", "billions"),
    [("qwen2.5-1.5b", 1.54), ("qwen2.5-7b", 7.62), ("qwen2.5-14b", 14.77), ("qwen2.5-32b", 32.76)],
)
def test_shapes_have_the_published_number_of_weights(shape: str, billions: float) -> None:
    assert round(SHAPES[shape].parameters / 1e9, 2) == billions


# --- The command ----------------------------------------------------------------------------------------------------


def arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    cloud_profile.add_arguments(parser)
    return parser.parse_args([*options, "--device", "cpu"])


def test_the_command_writes_a_profile_and_continues_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_profile, "SHAPES", {"tiny": TINY})
    out = tmp_path / "profile.json"
    small = ("--shapes", "tiny", "--batches", "1", "--tokens", "1,2", "--repeats", "3", "--out", str(out))
    first = cloud_profile.run(arguments(*small, "--contexts", "8"))
    assert first["summary"] == {"rows": 2, "measured_now": 2, "skipped": 0}
    second = cloud_profile.run(arguments(*small, "--contexts", "8,16"))
    assert second["summary"] == {"rows": 4, "measured_now": 2, "skipped": 0}
    assert second["rows"][:2] == first["rows"]

    profile = CloudProfile.load(out)
    assert [row.context for row in profile.rows] == [8, 8, 16, 16]
    assert profile.header["accelerator"] == {
        "kind": "cpu",
        "name": "cpu",
        "threads": 1,
        "weights": "random",
    }
    assert {"machine", "commit", "date", "versions", "shapes", "skipped"} <= profile.header.keys()


@pytest.mark.usefixtures("tiny_pair")
def test_the_services_own_model_is_measured_within_its_step(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    small = ("--pair", "tiny", "--dtype", "float32", "--contexts", "8", "--repeats", "3", "--out", str(out))
    options = ("--batches", "1,2", "--tokens", "1,4", "--step-tokens", "4")
    result = cloud_profile.run(arguments(*small, *options))
    assert result["summary"] == {"rows": 3, "measured_now": 3, "skipped": 0}
    profile = CloudProfile.load(out)
    assert [(row.batch, row.tokens) for row in profile.rows] == [(1, 1), (1, 4), (2, 1)]
    assert profile.header["accelerator"]["clock"] == "processor time of one thread"
    assert profile.step_ms(profile.rows[0].shape, tokens=1) > 0
    assert cloud_profile.run(arguments(*small, *options))["summary"]["measured_now"] == 0


def test_a_profile_of_another_machine_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_profile, "SHAPES", {"tiny": TINY})
    out = tmp_path / "profile.json"
    small = ("--shapes", "tiny", "--batches", "1", "--tokens", "1", "--contexts", "8", "--repeats", "3")
    cloud_profile.run(arguments(*small, "--out", str(out)))
    data = json.loads(out.read_text(encoding="utf-8"))
    out.write_text(json.dumps({**data, "machine": {"cpu": "another"}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="another machine"):
        cloud_profile.run(arguments(*small, "--out", str(out)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shapes", "gpt"), "--shapes: gpt: unknown"),
        (("--batches", "1,x"), "--batches: '1,x'; give whole numbers"),
        (("--contexts", "0"), "--contexts: '0'; give whole numbers"),
        (("--repeats", "1"), "--repeats: 1; give at least 3"),
    ],
)
def test_bad_options_are_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cloud_profile.run(arguments(*options))


# --- Reading --------------------------------------------------------------------------------------------------------


def profile(*rows: tuple[int, int, int, float]) -> CloudProfile:
    return CloudProfile({}, tuple(Row("s", "bfloat16", b, c, k, ms, ms, ms) for b, c, k, ms in rows))


def test_between_rows_time_is_linear() -> None:
    measured = profile((1, 512, 1, 10), (1, 512, 8, 24), (1, 1024, 1, 20), (4, 512, 1, 40))
    assert measured.step_ms("s", 1) == 10
    assert measured.step_ms("s", 4) == pytest.approx(16)
    assert measured.step_ms("s", 1, context=768) == 15
    assert measured.step_ms("s", 1, batch=2) == 20


def test_tokens_and_batches_are_extrapolated_and_contexts_are_clamped() -> None:
    measured = profile((1, 512, 1, 10), (1, 512, 8, 20), (2, 512, 8, 30))
    assert measured.step_ms("s", 16) == 40
    assert measured.step_ms("s", 8, batch=8) == 120
    assert measured.step_ms("s", 8, context=10_000) == 20
    assert measured.step_ms("s", 8, context=1) == 20


def test_a_row_that_did_not_fit_is_filled_by_its_neighbours() -> None:
    measured = profile((1, 512, 1, 10), (1, 2048, 1, 16), (4, 512, 1, 20))
    assert measured.step_ms("s", 1, batch=4, context=2048) == 20


def test_unmeasured_queries_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape: 't' was not measured; the profile has s"):
        profile((1, 512, 1, 10)).step_ms("t", 1)
    with pytest.raises(ConfigError, match="at least one token"):
        profile((1, 512, 1, 10)).step_ms("s", 0)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "rows": []}', '{"format": 1, "rows": [{"shape": "s"}]}'])
def test_an_invalid_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="measure"):
        CloudProfile.load(path)


def test_reading_a_profile_needs_no_torch() -> None:
    code = "import sys, benchmarks.cloud_profile.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3]).returncode == 0
