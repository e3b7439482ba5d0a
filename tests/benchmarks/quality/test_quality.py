"""Quality on the tiny pair: every strategy answers every task, and a second run needs no new requests."""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import summary
from benchmarks.quality.exploration.text_tree import TextTree, load_trees, save_trees
from benchmarks.quality.gate_outcomes import OutcomeColumns
from benchmarks.quality.run import _Study, add_arguments, assessed_strategy, run
from benchmarks.quality.summary import fired_share_in_hindsight, summarise
from chaperone_common.errors import ConfigError, InvalidRequest
from chaperone_common.stats import GenerationStats


def answered(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    answers = tmp_path / "answers.jsonl.gz"
    options = ["--pair", "tiny", "--max-new-tokens", "16", "--threads", "1", "--together", "2"]
    options += ["--explored", str(tmp_path / "explored.jsonl.gz"), "--answers", str(answers), *arguments]
    result = run(parser.parse_args(options))
    return result, [json.loads(line) for line in gzip.decompress(answers.read_bytes()).splitlines()]


@pytest.mark.usefixtures("tiny_pair")
def test_all_strategies_answer_all_tasks(tmp_path: Path) -> None:
    strategies = "edge,cloud,exact,gated-0.9,deviation-0.1,threshold-0,threshold-1,bild-0.6-2,uhlm-0.1"
    asked = ("--suite", "humaneval", "--tasks", "3", "--strategies", strategies)
    result, rows = answered(tmp_path, *asked)
    assert [row["error"] for row in rows] == [None] * 27
    texts = {(row["strategy"], row["id"]): row["token_ids"] for row in rows}
    for row in rows:
        assert texts["exact", row["id"]] == texts["threshold-0", row["id"]] == texts["cloud", row["id"]]
        assert texts["threshold-1", row["id"]] == texts["edge", row["id"]]
        if row["fates"] is not None:
            assert len(row["fates"]["fired"]) == len(row["token_ids"])
            overridden = row["fates"]["overridden"].count("1")
            assert row["stats"]["caught"] + row["stats"]["deviations"] == overridden
    summary = result["summary"]
    assert summary["cloud"]["equal_cloud"] == summary["exact"]["equal_cloud"] == 1.0
    assert summary["threshold-0"]["catch"] == 1.0
    assert summary["threshold-1"]["catch"] <= 0.1  # end-of-text is verified
    assert summary["edge"]["pass_at_1"] == 0.0  # these models write no code
    again, same_rows = answered(tmp_path, *asked)
    assert same_rows == rows
    assert again["summary"] == summary


@pytest.mark.usefixtures("tiny_pair")
def test_retracting_deviations_gives_the_clouds_text_and_costs_time(tmp_path: Path) -> None:
    asked = ("--suite", "humaneval", "--tasks", "8", "--strategies", "edge,cloud,gated-0.3,retract-0.3")
    summary = answered(tmp_path, *asked)[0]["summary"]
    kept, retracted = summary["gated-0.3"], summary["retract-0.3"]
    assert kept["equal_cloud"] < retracted["equal_cloud"] == 1.0
    assert kept["catch"] < retracted["catch"] == 1.0
    assert retracted["fired_share"] < 0.5, "otherwise there are no tokens to retract"
    assert kept["retracted_per_100_tokens"] < retracted["retracted_per_100_tokens"]
    assert summary["edge"]["decode_tokens_per_s"] > kept["decode_tokens_per_s"] > retracted["decode_tokens_per_s"]


@pytest.mark.usefixtures("tiny_pair")
def test_an_interrupted_study_keeps_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Study, "_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path, "--suite", "prose", "--tasks", "1", "--strategies", "gated-0.9")
    [tree] = load_trees(tmp_path / "explored.jsonl.gz")[1].values()
    assert len(tree.proposals) >= 16


@pytest.mark.usefixtures("tiny_pair")
def test_texts_explored_with_other_models_are_refused(tmp_path: Path) -> None:
    answered(tmp_path, "--suite", "prose", "--tasks", "1", "--strategies", "gated-0.9")
    with pytest.raises(ConfigError, match="suite is 'prose' there, not 'humaneval'"):
        answered(tmp_path, "--suite", "humaneval", "--tasks", "1")


@pytest.mark.usefixtures("tiny_pair")
def test_texts_explored_with_another_export_are_continued(tmp_path: Path) -> None:
    """The file keeps the names of the models that began it."""
    asked = ("--suite", "prose", "--tasks", "1", "--strategies", "edge")
    answered(tmp_path, *asked)
    path = tmp_path / "explored.jsonl.gz"
    header, trees = load_trees(path)
    del header["models"]["edge"]["files"]["special_tokens.json"]
    save_trees(path, header, trees.values())
    answered(tmp_path, *asked)
    assert load_trees(path)[0] == header
    header["models"]["edge"]["files"]["tokenizer.json"] = "other"
    save_trees(path, header, trees.values())
    with pytest.raises(ConfigError, match=r"models are others .* \(edge tokenizer.json\); name another --explored"):
        answered(tmp_path, *asked)


@pytest.mark.usefixtures("tiny_pair")
def test_texts_explored_for_another_prompt_are_refused(tmp_path: Path) -> None:
    asked = ("--suite", "prose", "--tasks", "1", "--strategies", "edge")
    _, [row] = answered(tmp_path, *asked)
    path = tmp_path / "explored.jsonl.gz"
    header, trees = load_trees(path)
    tree = trees[row["id"]]
    save_trees(path, header, [TextTree(tree.id, tree.prompt[:-1])])
    with pytest.raises(ConfigError, match=f"{row['id']} has another prompt there; name another --explored"):
        answered(tmp_path, *asked)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--apart-s", "-0.1"), "--apart-s: -0.1 is no number of seconds"),
        (("--apart-s", "nan"), "--apart-s: nan is no number of seconds"),
        (("--together", "0"), "--together: 0; at least 1"),
        (("--tasks", "0"), "--tasks: 0; at least 1"),
    ],
)
def test_contradictory_options_are_refused(tmp_path: Path, option: tuple[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        answered(tmp_path, "--suite", "prose", *option)


def test_unknown_quality_strategies_are_refused() -> None:
    with pytest.raises(ConfigError, match="strategies: 'gate-1' is none of"):
        assessed_strategy("gate-1", None, str)
    with pytest.raises(InvalidRequest, match="catch: 1.5 is outside"):
        assessed_strategy("gated-1.5", None, str)


def test_the_best_threshold_is_found_in_hindsight() -> None:
    risks = np.array([0.1, 0.9, 0.2, 0.2, 0.5])
    overridden = np.array([False, True, True, False, False])
    assert fired_share_in_hindsight(risks, overridden, 0) == 0.8  # the two tokens of 0.2 fire together
    assert fired_share_in_hindsight(risks, overridden, 1) == 0.2
    assert fired_share_in_hindsight(risks, overridden, 2) == 0.0


@pytest.mark.parametrize(("finish_reason", "asked"), [("stop", 0.75), ("length", 0.5)])
def test_the_threshold_in_hindsight_covers_ends_of_text(finish_reason: str, asked: float) -> None:
    """It fires at the risks .9 and .3, and at the token if it is an end of text."""
    one = row("gated", 0, passed=True)
    one["fates"] = OutcomeColumns((0.3, 0.2, 0.9, 0.1), (1.0,) * 4, "10-11", "10-10").to_json()
    one["token_ids"] = [7, 8, 9, 5, 0]
    one["stats"]["finish_reason"] = finish_reason
    (entry,) = summarise([one], ["gated"]).values()
    assert (entry["fired_share"], entry["fired_share_in_hindsight"]) == (0.75, asked)


def row(name: str, task: int, *, passed: bool) -> dict[str, Any]:
    stats: dict[str, Any] = dict.fromkeys((field.name for field in fields(GenerationStats)), 1)
    stats["finish_reason"] = "stop"
    return {
        "id": str(task),
        "strategy": name,
        "passed": passed,
        "error": None,
        "token_ids": [int(passed)],
        "decode_tokens_per_s": 4.0,
        "stats": stats,
        "fates": None,
    }


def test_the_closed_gap_is_paired_by_task() -> None:
    solved = {"edge": {0}, "cloud": {0, 1, 2, 3, 4}, "gated": {0, 1, 2, 3}}
    rows = [row(name, task, passed=task in tasks) for name, tasks in solved.items() for task in range(8)]
    entries = summarise(rows, [*solved])
    assert entries["gated"]["pass_at_1"] == 0.5
    assert entries["gated"]["gap_closed"] == 0.75
    assert entries["gated"]["decode_tokens_per_s"] == 4.0
    assert entries["edge"]["gap_closed"] == 0.0
    low, high = entries["gated"]["gap_closed_95"]
    assert 0.0 <= low < 0.75 < high <= 1.0
    assert entries["gated"]["equal_cloud"] == 7 / 8


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def pool(*paths: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    summary.add_arguments(parser)
    return summary.run(parser.parse_args(paths))


def test_suites_are_pooled_by_the_strategies_that_answered_them_all(tmp_path: Path) -> None:
    first = [row(name, task, passed=name != "edge") for name in ("edge", "cloud", "gated") for task in range(4)]
    second = [row(name, task, passed=name == "cloud") for name in ("edge", "gated", "cloud") for task in range(4, 8)]
    partial = row("uhlm-0.1", 5, passed=True)
    paths = (written(tmp_path, "a.gz", [*first, partial | {"id": "0"}]), written(tmp_path, "b.gz", [*second, partial]))
    result = pool(*paths)
    assert result["settings"] == {"answers": ["a.gz", "b.gz"], "tasks": [4, 4]}
    assert [*result["summary"]] == ["edge", "cloud", "gated"]
    assert result["summary"]["gated"]["tasks"] == 8
    assert result["summary"]["gated"]["gap_closed"] == 0.5


def test_incompatible_suites_are_not_pooled(tmp_path: Path) -> None:
    rows = [row(name, task, passed=True) for name in ("edge", "cloud") for task in range(2)]
    path = written(tmp_path, "a.gz", rows)
    with pytest.raises(ConfigError, match="0 is answered by edge more than once"):
        pool(path, path)
    with pytest.raises(ConfigError, match="all files have edge; edge and cloud are needed"):
        pool(written(tmp_path, "b.gz", rows[:2]))
    with pytest.raises(ConfigError, match="some suites have right answers and some have none"):
        pool(path, written(tmp_path, "c.gz", [one | {"id": "p", "passed": None} for one in rows[1:3]]))
    (tmp_path / "none.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match=r"none.gz: not a file of answers \("):
        pool(str(tmp_path / "none.gz"))
    with pytest.raises(ConfigError, match="odd.gz: not a file of answers;"):
        pool(written(tmp_path, "odd.gz", [{"id": "0"}]))
