"""What gates can catch along explored texts of the tiny pair, and how it is reckoned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gates, quality
from benchmarks.exploration.text_tree import TextTree, load_trees, save_trees
from benchmarks.gates import catch_at
from benchmarks.judged_texts import SIGNALS, JudgedText, sampled
from benchmarks.suites import tasks_of
from common.errors import ConfigError
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


def test_each_policy_is_held_against_the_oracle(explored: Path) -> None:
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


def test_overrides_that_are_left_out_are_written_on_by_the_cloud(explored: Path) -> None:
    _, before = load_trees(explored)
    options = ("--suite", "humaneval", "--explored", str(explored))
    told = called(gates, *options, "--rollouts", "2")["summary"]["rescues"]
    assert told["left_out"] > 8
    assert (told["rescues"], told["harms"]) == (0, 0), "these models write no code that passes"
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


def test_what_was_not_explored_so_is_refused(explored: Path) -> None:
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
