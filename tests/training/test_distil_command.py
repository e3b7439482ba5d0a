"""The command that trains: what it writes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from chaperone_common.artefacts.registry import TinySource
from chaperone_common.errors import ModelError
from cloud_supervisor.export.adapter import Adapter
from cloud_supervisor.export.tiny import HIDDEN, build_tiny
from tests.support.models.writers import tiny_writer
from training.__main__ import EXIT_UNFINISHED, main
from training.answers.answer import Answer, Author, write_answers
from training.answers.collect import without_details
from training.answers.sampling import DRAWN
from training.distillation.drafter import Drafter, Shape
from training.distillation.examples import is_held_out
from training.pair import models_of
from training.prompt import Prompt

LAYERS = (1, 2)
SMALL = ["--pair", "tiny", "--rank", "4", "--dtype", "float32", "--epochs", "1", "--evaluate-every", "1"]


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    with models_of("tiny") as (_, cloud):
        author = Author(cloud.name, cloud.vocabulary.digest)
    writer = tiny_writer(TinySource(source="tiny", seed=1), top=8, layers=LAYERS)
    prompts = [Prompt(f"p{number}", "general", f"number {number} " * (1 + number % 4)) for number in range(24)]
    return [replace(answer, author=author) for answer in writer.write(prompts, DRAWN, 24)]


@pytest.fixture
def data(tmp_path: Path, answers: list[Answer]) -> Path:
    write_answers(tmp_path / "a.npz", answers)
    return tmp_path / "a.npz"


def distil(data: Path, out: Path, *options: str) -> int:
    return main(["distil", *SMALL, "--answers", str(data), "--out", str(out), *options])


def test_the_command_writes_what_was_learned(
    answers: list[Answer], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    assert distil(data, out, "--layers", "1,2") == 0
    written = Adapter.load(out)
    assert written.provenance["answers"] == sum(not is_held_out(answer.id) for answer in answers)
    assert written.matrices
    assert written.projector is not None
    assert written.projector.layers == LAYERS
    assert written.projector.tensors["last.weight"].shape == (HIDDEN, 512)
    assert out.stat().st_mode & 0o777 == data.stat().st_mode & 0o777, "readable by the user's group, as his other files"
    assert "step 0, on held-out prompts: all: divergence " in capsys.readouterr().out
    assert distil(data, out, "--layers", "1,2", "--epochs", "3") == 1
    assert "belongs to a training with other" in capsys.readouterr().err


def test_a_command_that_stops_in_time_says_that_it_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    assert distil(data, out, "--max-seconds", "1e-9") == EXIT_UNFINISHED
    assert not out.exists()
    assert distil(data, out) == 0
    assert out.exists()


def test_other_likeliest_tokens_are_other_answers(
    answers: list[Answer], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    assert distil(data, out) == 0
    write_answers(data, [without_details(answer, 0.1) for answer in answers])
    assert distil(data, out) == 1
    assert "belongs to a training with other answers" in capsys.readouterr().err


def test_answers_for_another_pair_are_refused(
    answers: list[Answer], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = answers[0].author
    for author in (replace(right, model="Huge"), replace(right, tokenizer="sha256:other")):
        write_answers(data, [replace(answer, author=author) for answer in answers])
        assert distil(data, tmp_path / "mine.safetensors") == 1
        assert f"--answers: {author.model} wrote them, with the tokenizer {author.tokenizer}" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_cut_checkpoint_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: float) -> None:
    out = tmp_path / "mine.safetensors"
    assert distil(data, out) == 0
    checkpoint = tmp_path / "mine.checkpoint"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content))])
    assert distil(data, out) == 1
    assert "mine.checkpoint: it is no whole checkpoint" in capsys.readouterr().err


def test_numbers_that_are_none_end_the_training_and_write_nothing(
    answers: list[Answer], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [replace(answer, top_logprobs=np.full_like(answer.top_logprobs, np.nan)) for answer in answers]
    write_answers(data, broken)
    assert distil(data, tmp_path / "mine.safetensors") == 1
    assert "step 0: the loss is nan; give a lower --learning-rate" in capsys.readouterr().err
    assert not (tmp_path / "mine.safetensors").exists()


def test_training_that_gains_nothing_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(data, tmp_path / "mine.safetensors", "--learning-rate", "1e-12") == 1
    assert "no state was better on the held-out prompts than the first" in capsys.readouterr().err
    assert not (tmp_path / "mine.safetensors").exists()


def test_training_goes_on_from_an_adapter(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert distil(data, first, "--learning-rate", "2e-3") == 0
    own = Adapter.load(first)
    reached = own.provenance["held_out"]["after"]["all"]["divergence"]
    assert distil(data, second, "--begin-with", str(first), "--layers", "1,2", "--learning-rate", "1e-3") == 0
    then = Adapter.load(second)
    assert then.provenance["held_out"]["before"]["all"]["divergence"] == pytest.approx(reached, abs=0.003)
    assert then.provenance["begun_with"] == own.provenance
    assert then.base == own.base
    third = tmp_path / "third.safetensors"
    for options, message in (
        (["--begin-with", str(first), "--rank", "2"], "--begin-with: it has rank 4; give --rank 4"),
        (["--begin-with", str(second)], "--begin-with: it has a projector; give --layers 1,2"),
        (
            ["--begin-with", str(second), "--layers", "1,2", "--hidden", "8"],
            "its projector has a middle of 512; give --hidden 512",
        ),
    ):
        assert distil(data, third, *options) == 1
        assert message in capsys.readouterr().err


def test_a_projector_is_added_to_an_adapter_that_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert distil(data, first, "--learning-rate", "2e-3") == 0
    own = Adapter.load(first)
    reached = own.provenance["held_out"]["after"]["all"]["divergence"]
    options = ("--begin-with", str(first), "--rank", "0", "--layers", "1,2", "--learning-rate", "1e-2", "--epochs", "4")
    assert distil(data, second, *options) == 0
    both = Adapter.load(second)
    assert both.projector is not None
    assert both.provenance["held_out"]["before"]["all"]["divergence"] == pytest.approx(reached, abs=0.003)
    assert both.scale == own.scale
    assert both.matrices.keys() == own.matrices.keys()
    assert all(torch.equal(both.matrices[name].up, own.matrices[name].up) for name in own.matrices)
    assert all(torch.equal(both.matrices[name].down, own.matrices[name].down) for name in own.matrices)


@pytest.mark.parametrize("kept", ["projector", "low-rank"])
def test_a_part_of_an_adapter_is_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str) -> None:
    whole, part, none = (tmp_path / f"{name}.safetensors" for name in ("whole", "part", "none"))
    drafter = Drafter(build_tiny(TinySource(source="tiny", seed=1)).model, Shape(2, (1, 2), 4), 2 * HIDDEN)
    drafter.adapter("Tiny", {"seed": 1}).save(whole)
    assert main(["part", "--adapter", str(whole), "--keep", kept, "--out", str(part)]) == 0
    found = Adapter.load(part)
    assert (found.projector is not None, bool(found.matrices)) == (kept == "projector", kept == "low-rank")
    assert found.provenance == {"part": kept, "of": {"seed": 1}}
    other = "low-rank" if kept == "projector" else "projector"
    assert main(["part", "--adapter", str(part), "--keep", other, "--out", str(none)]) == 1
    assert f"--keep: {part} has no {other} part" in capsys.readouterr().err
    assert not none.exists()


def test_an_adapter_for_other_weights_of_the_same_name_is_refused(tmp_path: Path) -> None:
    own, other = (build_tiny(TinySource(source="tiny", seed=1, noise=noise)).model for noise in (0.3, 0.2))
    drafter = Drafter(own, Shape(rank=2))
    adapter = drafter.adapter("Tiny", {})
    with pytest.raises(ModelError, match="the adapter was trained on other weights of Tiny"):
        adapter.merge_into(other, "Tiny")
    again = build_tiny(TinySource(source="tiny", seed=1, noise=0.3)).model.to(torch.bfloat16).float()
    adapter.merge_into(again, "Tiny")


def test_an_adapter_of_a_stranger_may_state_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    Adapter("Tiny", None, 2.0, {}, {"seed": 1}).save(path)
    assert Adapter.load(path).base is None
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["provenance"]) == {"seed": 1}
