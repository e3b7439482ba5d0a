"""The catch of gates along explored texts of the tiny pair, and its arithmetic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import gates
from benchmarks.quality import run as quality
from benchmarks.quality.exploration.text_tree import TextTree, load_trees, save_trees
from benchmarks.quality.gates import BUDGETS, catch_at, rescue_curves
from benchmarks.quality.judged_texts import SIGNALS, Deviation, JudgedText, sampled
from benchmarks.quality.task_suites import tasks_of
from benchmarks.simulation.trace import extended
from chaperone_common.errors import ConfigError
from chaperone_common.types import Proposal, Signal
from edge_client import EdgeClient, EdgeConfig


def called(command: Any, *options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    result: dict[str, Any] = command.run(parser.parse_args(["--pair", "tiny", *options]))
    return result


@pytest.fixture(scope="module")
def explored(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert tiny_pair.is_dir()
    path = tmp_path_factory.mktemp("explored") / "explored.jsonl.gz"
    options = (
        "--suite",
        "humaneval",
        "--tasks",
        "8",
        "--strategies",
        "cloud",
        "--read-along",
        "--max-new-tokens",
        "32",
    )
    called(quality, *options, "--threads", "1", "--explored", str(path))
    return path


def test_each_policy_is_compared_with_the_oracle(explored: Path) -> None:
    result = called(gates, "--suite", "humaneval", "--explored", str(explored), "--hidden-states")
    summary = result["summary"]
    catch = summary["catch"]
    assert catch.keys() == {"oracle", "pattern", "fitted_here", "trees_fitted_here", "hidden_fitted_here", *SIGNALS}
    for name, curve in catch.items():
        assert curve[0] == 0
        assert curve == sorted(curve)
        assert all(mine <= best + 1e-9 for mine, best in zip(curve, catch["oracle"], strict=True)), name
    assert catch["pattern"] == list(summary["budgets"])
    assert result["settings"]["texts"] == 8


def test_left_out_overrides_are_continued_by_the_cloud(explored: Path) -> None:
    _, before = load_trees(explored)
    options = ("--suite", "humaneval", "--explored", str(explored))
    found = called(gates, *options, "--rollouts", "2")["summary"]["rescues"]
    assert found["left_out"] > 8
    assert (found["rescues"], found["harms"]) == (0, 0), "these models write no code that passes"
    _, after = load_trees(explored)
    assert sum(len(tree.choices) for tree in after.values()) > sum(len(tree.choices) for tree in before.values())
    client = EdgeClient(EdgeConfig(pair="tiny"))
    texts = [JudgedText.of(tree, client.manifest.eos_token_ids, 32) for tree in after.values()]
    for one in sampled(texts, 2):
        text = texts[one.text]
        node = text.tree.node([*text.tree.prompt, *text.token_ids[: one.place], text.proposals[one.place].token_id])
        assert (
            one.place == 31
            or node in text.tree.choices
            or text.proposals[one.place].token_id in (client.manifest.eos_token_ids)
        )


def test_texts_explored_for_other_purposes_are_refused(explored: Path) -> None:
    with pytest.raises(ConfigError, match="explored on another suite"):
        called(gates, "--suite", "prose", "--explored", str(explored))
    header, trees = load_trees(explored)
    prose = explored.with_name("prose.gz")
    save_trees(prose, {**header, "suite": "prose"}, trees.values())
    with pytest.raises(ConfigError, match="none of the tasks of prose"):
        called(gates, "--suite", "prose", "--explored", str(prose))
    some = next(iter(trees.values()))
    some.id = tasks_of("prose", 1)[0].id
    save_trees(prose, {**header, "suite": "prose"}, [some])
    with pytest.raises(ConfigError, match="there are no right answers in prose"):
        called(gates, "--suite", "prose", "--explored", str(prose), "--rollouts", "1")
    tree = TextTree("a", (1, 2))
    tree.choices[0] = 5
    with pytest.raises(ConfigError, match="--read-along first"):
        JudgedText.of(tree, (0,), 8)


def test_the_highest_scores_are_taken_first() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7])
    overridden = np.array([True, True, False, False])
    assert [catch_at(budget, scores, overridden) for budget in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 0.5, 0.5, 1]


def judged(token_ids: tuple[int, ...], proposed: tuple[int, ...]) -> JudgedText:
    signal = Signal(entropy_nats=0.1, top1_probability=0.9, margin=0.8, coupled_margin=1.0, risk=0.1, varentropy=0.1)
    proposals = tuple(extended(Proposal(token_id, signal, 0), 0.1) for token_id in proposed)
    return JudgedText(TextTree("a", (1,)), tuple(range(len(token_ids))), token_ids, proposals)


def test_decisive_overrides_are_weighed_by_the_number_they_represent() -> None:
    # Two of the four overrides of the first text were left out, and both of the second.
    texts = [judged((5,) * 10, (6, 6, 6, 6, *(5,) * 6)), judged((5,) * 10, (6, 6, *(5,) * 8))]
    rescues = {Deviation(0, 0): 1, Deviation(0, 3): 0, Deviation(1, 0): 1, Deviation(1, 1): -1}
    scores = {"of_order": [np.arange(20.0, 10.0, -1.0), np.arange(10.0, 0.0, -1.0)]}
    found = rescue_curves(texts, rescues, scores)
    assert (found["left_out"], found["rescues"], found["harms"]) == (4, 2, 1)
    caught = {budget: found["caught"]["of_order"][BUDGETS.index(budget)] for budget in (0.0, 0.05, 0.5)}
    assert caught == {0.0: 0.0, 0.05: round(2 / 3, 4), 0.5: round(2 / 3, 4)}, "the other override is the eleventh token"
    oracle = found["caught"]["oracle"]
    assert oracle[BUDGETS.index(0.05)] == round(1 / 3, 4), "one of three decisive tokens"
    assert oracle[BUDGETS.index(0.15)] == oracle[-1] == 1.0
    # By weights 2, 2, 1, 1: it ranks all pairs of a decisive and another override correctly, except 1 x 2.
    assert found["auc_among_overrides"] == {"of_order": round(7 / 9, 4)}


def test_without_decisive_overrides_there_is_no_rescue_curve() -> None:
    texts = [judged((5, 5), (6, 6))]
    found = rescue_curves(texts, {Deviation(0, 0): 0, Deviation(0, 1): 0}, {"of_order": [np.arange(2.0)]})
    assert found == {"left_out": 2, "rescues": 0, "harms": 0, "caught": None, "auc_among_overrides": None}
