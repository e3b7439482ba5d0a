"""A gate fitted on explored texts of the tiny pair, its value on them, and the figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import fit_gate, gates
from benchmarks.quality import run as quality
from benchmarks.quality.gates import _caught
from benchmarks.report import gate_figures
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from edge_client.gate.gate_model import GateModel


def called(command: Any, *options: str, pair: tuple[str, ...] = ("--pair", "tiny")) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    command.add_arguments(parser)
    return command.run(parser.parse_args([*pair, *options]))


def explore(folder: Path, suite: str, *options: str) -> Any:
    exploring = ("--suite", suite, "--tasks", "8", "--max-new-tokens", "32", "--threads", "1", "--read-along")
    return called(quality, *exploring, "--explored", str(folder / f"{suite}.gz"), *options)


def test_from_explored_texts_to_a_gate_and_its_figures(tiny_pair: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.onnx"
    explore(tmp_path, "code", "--strategies", "cloud")
    made = called(fit_gate, "--explored", str(tmp_path / "code.gz"), "--gate", str(gate))
    card = GateModel.load(gate, load_manifest(tiny_pair / "edge", role="edge")).card
    assert (card.data.prompts, card.data.texts) == ("code.jsonl", 8)
    assert made["summary"]["data"]["overrides"] == card.data.overrides >= 40

    result = explore(
        tmp_path, "humaneval", "--gate", str(gate), "--strategies", "edge,cloud,gated,gated-0.5,deviation-0.2"
    )
    (tmp_path / "q.json").write_text(json.dumps(result))
    assert result["settings"]["gate"]["prompts"] == "code.jsonl"
    assert 0 < result["summary"]["gated-0.5"]["fired_share"] <= 1

    held = called(gates, "--suite", "humaneval", "--explored", str(tmp_path / "humaneval.gz"), "--gate", str(gate))
    held["summary"]["catch"]["hidden_fitted_here"] = held["summary"]["catch"]["gate"]  # as `--hidden-states` would add
    held["summary"]["rescues"] = {"caught": held["summary"]["catch"]}  # these models' answers depend on no override
    (tmp_path / "g.json").write_text(json.dumps(held))
    for headline in held["summary"]["headlines"].values():
        low, high = headline["share_of_oracle_95"]
        assert 0 <= low <= headline["share_of_oracle"] <= high <= 1
        assert headline["best_signal"] in held["summary"]["catch"]
    risk = held["summary"]["risk"]["gate"]
    assert risk["brier_skill_95"][0] < risk["brier_skill"] < risk["brier_skill_95"][1]

    figures = tmp_path / "figures"
    results = ("--gates", str(tmp_path / "g.json"), "--quality", str(tmp_path / "q.json"))
    called(gate_figures, *results, "--out", str(figures), pair=())
    assert {path.name for path in figures.iterdir()} == {
        *("catch.png", "rescues.png", "reliability.png", "promises.png"),
        *("quality.png", "caught.png", "caught_by_round_trips.png"),
    }
    [panel] = gate_figures.budget_figure([(held, held["summary"]["catch"])], "caught").axes
    assert panel.get_ylabel() == "caught"
    assert {line.get_label() for line in panel.lines} == {name.replace("_", " ") for name in held["summary"]["catch"]}
    with pytest.raises(ConfigError, match="not a result of `python -m benchmarks gates`"):
        called(gate_figures, "--gates", str(tmp_path / "q.json"), "--out", str(figures), pair=())


def test_a_gate_is_fitted_on_unreported_prompts_only(tiny_pair: Path, tmp_path: Path) -> None:
    assert tiny_pair.is_dir()
    explore(tmp_path, "prose", "--strategies", "cloud")
    with pytest.raises(ConfigError, match="explored on another suite than code"):
        called(fit_gate, "--explored", str(tmp_path / "prose.gz"), "--gate", str(tmp_path / "gate.onnx"))


def test_sampled_overrides_weigh_by_the_number_they_represent() -> None:
    scores = np.arange(100.0)  # the last positions are taken first
    caught = dict(zip(gates.BUDGETS, _caught(np.array([99, 60]), np.array([1.0, 3.0]), scores), strict=True))
    assert (caught[0.0], caught[0.01], caught[0.3], caught[0.4]) == (0.0, 0.25, 0.25, 1.0)
