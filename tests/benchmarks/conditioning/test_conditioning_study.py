"""The study of drafters and encodings: its controls, its figures, and a small one on the tiny pair."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conditioning import texts
from benchmarks.conditioning.encodings import CONTROLS, Controls
from benchmarks.conditioning.run import add_arguments, run
from benchmarks.conditioning.summary import by_position, gain, summarise
from benchmarks.conditioning.texts import Answered
from benchmarks.quality.sandbox import Outcome
from benchmarks.quality.task_suites import Task
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import ConfigError

WIDTH = 6


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def encoding(tokens: int, value: float) -> Encoding:
    return Encoding.of(np.full((tokens, WIDTH), value, np.float32))


def test_each_control_has_the_shape_of_the_prompts_own_encoding() -> None:
    controls = Controls({"a": encoding(3, 1.0), "b": encoding(5, -3.0)})
    found = {control: controls.encoding(control, "a") for control in CONTROLS}
    assert found["none"] is None
    assert found["own"] == encoding(3, 1.0)
    assert found["zero"] == encoding(3, 0.0)
    assert found["mismatched"] == encoding(3, -3.0)  # cut
    constant = found["constant"]
    assert constant is not None
    assert np.allclose(constant.rows(), (3 * 1.0 + 5 * -3.0) / 8, atol=0.01)
    longer = controls.encoding("mismatched", "b")  # repeated
    assert longer == encoding(5, 1.0)
    assert Controls({}).encoding("own", "a") is None
    with pytest.raises(ValueError, match="control: 'both' is none of own, none"):
        controls.encoding("both", "a")


def test_disagreements_are_compared_with_the_first_variant() -> None:
    read = [Answered(f"general/{name}", "general", "greedy", 1, (1,), (2,) * 4) for name in "ab"]
    before = {
        (text.id, text.way): np.array(agreed, np.bool_)
        for text, agreed in zip(read, ([1, 0, 0, 1], [1, 0, 1, 0]), strict=True)
    }
    after = {
        (text.id, text.way): np.array(agreed, np.bool_)
        for text, agreed in zip(read, ([1, 1, 0, 1], [1, 0, 1, 1]), strict=True)
    }
    rows = summarise(read, {"before": before, "after": after})["general"]["greedy"]
    assert rows["before"]["agreement"] == 0.5
    assert rows["before"]["disagreements_over_first"] == 1.0
    assert rows["after"]["agreement"] == 0.75
    assert rows["after"]["disagreements_over_first"] == 0.5
    assert rows["after"]["disagreements_over_first_95"] == [0.5, 0.5]
    assert (rows["after"]["prompts"], rows["after"]["tokens"]) == (2, 8)


def test_the_gain_is_the_overrides_that_an_encoding_saves_for_each_token() -> None:
    keys = [("a", "greedy"), ("a", "drawn")]
    none = {key: np.array([False, True, False, True]) for key in keys}
    own = {keys[0]: np.array([True, True, True, True]), keys[1]: np.array([True, False, False, True])}
    assert gain(own, none) == pytest.approx(2 / 8)
    assert gain(none, own) == pytest.approx(-2 / 8)


def test_agreement_along_an_answer_ends_where_no_answer_is_as_long() -> None:
    shares = by_position([np.array([True] * 16 + [False] * 4), np.array([True] * 10)])
    assert shares == {"0-15": 1.0, "16-31": 0.0, "32-63": None, "64-127": None, "128-255": None, "256-": None}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--suites", "poems"), "--suites: poems: unknown; there are humaneval, reasoning, general"),
        (("--pairs", "tiny,tiny"), "names one twice"),
    ],
)
@pytest.mark.usefixtures("tiny_pair")
def test_a_wrong_option_is_refused(options: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(parsed("--pairs", "tiny", *options))


@pytest.mark.usefixtures("tiny_pair")
def test_a_study_of_the_tiny_pair_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [Task("one", "the list of", lambda answer: Outcome(bool(answer), "")), Task("two", "a number is")]
    monkeypatch.setattr(texts, "tasks_of", lambda suite, count: tasks[:count])
    options = ("--pairs", "tiny", "--suites", "general", "--tokens", "12", "--scored", "1", "--scored-tokens", "8")
    args = parsed(*options, "--threads", "1", "--work", str(tmp_path))
    result = run(args)
    rows = result["summary"]["agreement"]["general"]
    assert set(rows) == {"greedy", "coupled at 0.8"}
    assert list(rows["greedy"]) == [f"tiny, encoding: {control}" for control in CONTROLS]
    assert all(row["prompts"] == 2 for row in rows["greedy"].values())
    # Rows of zeros are no rows.
    assert rows["greedy"]["tiny, encoding: zero"] == rows["greedy"]["tiny, encoding: none"]
    assert rows["greedy"]["tiny, encoding: own"]["agreement"] < rows["greedy"]["tiny, encoding: none"]["agreement"]
    scores = result["summary"]["scores"]["tiny"]["general"]
    assert scores["edge"]["answers"] == scores["conditioned"]["answers"] == 1
    assert (scores["edge"]["round_trips"], scores["conditioned"]["round_trips"]) == (0.0, 1.0)
    costs = result["summary"]["encodings"]["tiny"]
    assert costs["bytes_per_token"] >= 128 + 4
    assert costs["conditioning_gain"] < 0, "the tiny pair's rows are random"
    (kept,) = tmp_path.glob("*.jsonl")
    before = kept.read_bytes()
    assert run(args)["summary"]["agreement"] == result["summary"]["agreement"]
    assert kept.read_bytes() == before
