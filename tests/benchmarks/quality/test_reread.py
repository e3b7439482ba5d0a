"""Recorded texts of the tiny pair, read again by its device's model."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import reread
from benchmarks.quality import run as quality
from benchmarks.quality.exploration.text_tree import ROOT, load_trees, save_trees
from benchmarks.simulation.trace import TraceFile, load_traces, save_traces
from chaperone_common.errors import ConfigError


def called(command: Any, *options: str) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    command.add_arguments(parser)
    return command.run(parser.parse_args(["--pair", "tiny", *options]))


def test_a_trace_has_the_proposals_of_the_model_that_reads(recorded: Path, tmp_path: Path) -> None:
    file = load_traces(recorded)
    found = tmp_path / "found.jsonl.gz"
    settings = (str(recorded), "--prompt-sets", str(recorded.parent))
    counts = called(reread, *settings, "--to", str(found))["summary"]
    assert (counts["texts"], counts["tokens"]) == (2, 8)
    read = load_traces(found)
    assert [trace.token_ids for trace in read.traces] == [trace.token_ids for trace in file.traces]
    assert read.traces[0].proposals != file.traces[0].proposals, "those of the fixture are made up"
    assert read.header["pair"] == "tiny"
    assert read.header["reread"]["edge"] == file.header["models"]["edge"]
    for trace in read.traces:
        assert trace.device is not None
        assert trace.device.pair == "tiny"
        assert all(len(trace.astray[place]) for place, same in enumerate(trace.matches[:-1]) if not same)

    # The same model reads its own proposals again.
    again = tmp_path / "again.jsonl.gz"
    called(reread, str(found), "--prompt-sets", str(recorded.parent), "--to", str(again))
    for first, second in zip(read.traces, load_traces(again).traces, strict=True):
        assert replace(first, draft_ms=0.0) == replace(second, draft_ms=0.0)


def test_explored_texts_keep_the_clouds_own_text(tiny_pair: Path, tmp_path: Path) -> None:
    explored, found = tmp_path / "code.gz", tmp_path / "found.gz"
    options = ("--suite", "code", "--tasks", "3", "--max-new-tokens", "24", "--threads", "1", "--read-along")
    called(quality, *options, "--explored", str(explored), "--strategies", "cloud,edge")
    counts = called(reread, str(explored), "--to", str(found))["summary"]
    (before, trees), (after, read) = load_trees(explored), load_trees(found)
    assert (after["suite"], after["models"]) == (before["suite"], before["models"])
    assert counts["tokens"] == sum(len(tree.choices) for tree in read.values())
    assert any(len(tree.parents) > len(read[name].parents) for name, tree in trees.items()), "other texts are left out"
    for name, tree in read.items():
        old = new = ROOT
        while new in tree.choices:
            assert tree.choices[new] == trees[name].choices[old]
            assert tree.proposals[new].token_id == trees[name].proposals[old].token_id
            old, new = trees[name].child(old, tree.choices[new]), tree.child(new, tree.choices[new])


def test_a_text_without_an_end_is_refused(tiny_pair: Path, tmp_path: Path) -> None:
    explored = tmp_path / "code.gz"
    options = ("--suite", "code", "--tasks", "1", "--max-new-tokens", "8", "--threads", "1")
    called(quality, *options, "--explored", str(explored), "--strategies", "cloud")
    header, trees = load_trees(explored)
    for tree in trees.values():
        tree.choices.pop(tree.path(max(tree.choices))[3])
    save_trees(explored, header, trees.values())
    with pytest.raises(ConfigError, match="the cloud's text has no end; explore it again with --strategies cloud"):
        called(reread, str(explored), "--to", str(tmp_path / "found.gz"))


def _other_cloud(header: Mapping[str, Any]) -> dict[str, Any]:
    models = header["models"]
    return {**header, "models": {**models, "cloud": {**models["cloud"], "model": "Huge"}}}


@pytest.mark.parametrize("change", [_other_cloud, lambda header: {**header, "models": {}}])
def test_texts_of_another_large_model_are_refused(
    recorded: Path, tmp_path: Path, change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> None:
    file = load_traces(recorded)
    save_traces(recorded, TraceFile(change(file.header), file.traces))
    with pytest.raises(ConfigError, match=r"another large model than that of pair 'tiny' here wrote its texts"):
        called(reread, str(recorded), "--prompt-sets", str(recorded.parent), "--to", str(tmp_path / "found.gz"))
    assert not (tmp_path / "found.gz").exists()


def test_other_prompts_and_other_files_are_refused(recorded: Path, tmp_path: Path) -> None:
    (recorded.parent / "some.jsonl").write_text("", encoding="utf-8")
    settings = (str(recorded), "--prompt-sets", str(recorded.parent), "--to", str(tmp_path / "found.gz"))
    with pytest.raises(ConfigError, match="it is not the prompt set that .* was recorded with; give --prompt-sets"):
        called(reread, *settings)
    recorded.write_bytes(gzip.compress(json.dumps({"some": "file"}).encode()))
    with pytest.raises(ConfigError, match=str(recorded)):
        called(reread, *settings)
