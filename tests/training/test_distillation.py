"""Training: what is learned, that it goes on after an interruption, and that an adapter merges into the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chaperone_common.artefacts.registry import TinySource
from chaperone_common.errors import ConfigError, ModelError
from cloud_supervisor.export.adapter import Adapter
from cloud_supervisor.export.tiny import HIDDEN, build_tiny
from tests.support.models.writers import tiny_writer
from training.answers.answer import Answer, spread
from training.answers.collect import without_details
from training.answers.sampling import DRAWN
from training.distillation.drafter import Drafter, Shape
from training.distillation.examples import batch_of, is_held_out, steps_of
from training.distillation.run import check_encodings
from training.distillation.train import Schedule, likeness, train
from training.prompt import Prompt

CLOUD, EDGE = TinySource(source="tiny", seed=1), TinySource(source="tiny", seed=1, noise=0.3)
LAYERS = (1, 2)
SCHEDULE = Schedule(learning_rate=2e-3, epochs=2, batch_tokens=160, evaluate_every=3, patience=100)


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    writer = tiny_writer(CLOUD, top=8, layers=LAYERS)
    prompts = [Prompt(f"p{number}", "general", f"number {number} " * (1 + number % 4)) for number in range(24)]
    return writer.write(prompts, DRAWN, 24)


def _drafter(shape: Shape) -> Drafter:
    torch.manual_seed(0)
    return Drafter(build_tiny(EDGE).model, shape, encoding_width=HIDDEN * len(shape.layers))


SHAPES = [Shape(rank=4), Shape(rank=0, layers=LAYERS, hidden=16), Shape(rank=4, layers=LAYERS, hidden=16)]


@pytest.mark.parametrize("shape", SHAPES, ids=["adapter", "projector", "both"])
def test_training_begins_at_the_models_own_logits_and_lowers_the_divergence(
    answers: list[Answer], shape: Shape, tmp_path: Path
) -> None:
    drafter = _drafter(shape)
    own = build_tiny(EDGE).model
    answer = answers[0]
    text = torch.from_numpy(np.concatenate([answer.prompt, answer.tokens])).long()
    with torch.inference_mode():
        expected = own(text[None]).logits[0, len(answer.prompt) - 1 : -1]
    with torch.inference_mode():
        torch.testing.assert_close(drafter.logits(batch_of([answer], shape.layers)), expected, atol=1e-4, rtol=1e-4)

    learned_from = answers[:16]
    before = likeness(drafter, learned_from, shape.layers)["all"]["divergence"]
    progress, over = train(
        drafter, learned_from, answers[16:], shape.layers, SCHEDULE, tmp_path / "c", say=lambda line: None
    )
    assert over
    assert progress.evaluations[0]["step"] == 0
    assert likeness(drafter, learned_from, shape.layers)["all"]["divergence"] < before


def test_padding_and_company_do_not_change_an_answers_logits(answers: list[Answer]) -> None:
    shape = SHAPES[2]
    drafter = _drafter(shape)
    assert drafter.projector is not None
    torch.nn.init.normal_(drafter.projector.last.weight, std=0.05)
    with torch.inference_mode():
        together = drafter.logits(batch_of(answers[:5], LAYERS))
        alone = torch.cat([drafter.logits(batch_of([answer], LAYERS)) for answer in answers[:5]])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_an_interrupted_training_takes_the_same_steps(answers: list[Answer], tmp_path: Path) -> None:
    shape, results = SHAPES[2], []
    for name, seconds in (("whole", float("inf")), ("interrupted", 0.0)):
        over = False
        for _ in range(100):
            drafter = _drafter(shape)
            progress, over = train(
                drafter,
                answers[:16],
                answers[16:],
                LAYERS,
                SCHEDULE,
                tmp_path / name,
                max_seconds=seconds,
                say=lambda line: None,
            )
            if over:
                break
            seconds += 0.2
        assert over
        results.append(progress)
    whole, interrupted = results
    assert [row["step"] for row in whole.evaluations] == [row["step"] for row in interrupted.evaluations]
    for name, value in whole.learned.items():
        torch.testing.assert_close(interrupted.learned[name], value)


def test_a_checkpoint_of_another_run_is_refused(answers: list[Answer], tmp_path: Path) -> None:
    def run(name: str) -> None:
        train(
            _drafter(SHAPES[0]), answers[:8], answers[16:], (), SCHEDULE, tmp_path / "c", run=name, say=lambda _: None
        )

    run("one")
    with pytest.raises(ConfigError, match="it belongs to a training with other answers or settings"):
        run("two")


def test_training_ends_when_the_held_out_prompts_gain_nothing(answers: list[Answer], tmp_path: Path) -> None:
    schedule = Schedule(learning_rate=0.5, epochs=50, batch_tokens=160, evaluate_every=1, patience=2)
    drafter = _drafter(SHAPES[0])
    progress, over = train(drafter, answers[:8], answers[16:], (), schedule, tmp_path / "c", say=lambda line: None)
    assert over
    assert progress.step < 20
    assert progress.since_best == 2


def test_an_adapter_merges_to_the_same_logits(answers: list[Answer], tmp_path: Path) -> None:
    drafter = _drafter(SHAPES[0])
    train(drafter, answers[:16], answers[16:], (), SCHEDULE, tmp_path / "c", say=lambda line: None)
    drafter.adapter("Tiny", {"data": "x"}).save(tmp_path / "a.safetensors")
    adapter = Adapter.load(tmp_path / "a.safetensors")
    assert adapter.provenance == {"data": "x"}
    merged = build_tiny(EDGE).model
    adapter.merge_into(merged, "Tiny")
    batch = batch_of(answers[:4], ())
    with torch.inference_mode():
        expected = drafter.logits(batch)
        found = merged(batch.tokens, attention_mask=batch.mask).logits.flatten(0, 1)[batch.rows]
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)  # the file has bfloat16


def test_a_projector_alone_is_an_adapter_without_matrices(answers: list[Answer], tmp_path: Path) -> None:
    drafter = _drafter(SHAPES[1])
    assert drafter.projector is not None
    torch.nn.init.normal_(drafter.projector.last.weight, std=0.05)
    drafter.adapter("Tiny", {"data": "x"}).save(tmp_path / "a.safetensors")
    adapter = Adapter.load(tmp_path / "a.safetensors")
    assert not adapter.matrices
    assert adapter.projector is not None
    assert adapter.projector.layers == LAYERS
    states = torch.randn(5, HIDDEN * len(LAYERS), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = adapter.projector.module(torch.device("cpu"))(states)
        torch.testing.assert_close(found, drafter.projector(states), atol=0.02, rtol=0.02)  # the file has bfloat16
    model = build_tiny(EDGE).model
    before = model.state_dict()["model.layers.0.mlp.down_proj.weight"].clone()
    adapter.merge_into(model, "Tiny")
    assert torch.equal(model.state_dict()["model.layers.0.mlp.down_proj.weight"], before)


def test_an_adapter_of_another_model_is_refused_and_changes_nothing(answers: list[Answer], tmp_path: Path) -> None:
    adapter = _drafter(SHAPES[0]).adapter("Tiny", {})
    model = torch.nn.ModuleDict({"other": torch.nn.Linear(2, 2)})
    with pytest.raises(ModelError, match="the adapter is for Tiny, not for Huge"):
        adapter.merge_into(model, "Huge")
    with pytest.raises(ModelError, match="which Tiny does not have"):
        adapter.merge_into(model, "Tiny")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="it is no adapter"):
        Adapter.load(tmp_path / "x.safetensors")


def test_each_answer_is_in_one_batch_of_each_epoch(answers: list[Answer]) -> None:
    steps = steps_of(answers, 120, np.random.default_rng(1))
    assert sorted(answer.id for step in steps for answer in step) == sorted(answer.id for answer in answers)
    for step in steps:
        longest = max(len(answer.prompt) + len(answer.tokens) for answer in step)
        assert len(step) == 1 or len(step) * longest <= 120


def test_an_evaluation_on_some_prompts_is_a_fair_share_of_all(answers: list[Answer]) -> None:
    assert [answer.id for answer in spread(answers, 4)] == [answers[index].id for index in (0, 6, 12, 18)]
    assert spread(answers, 100) == answers
    assert spread([], 3) == []


def test_the_held_out_prompts_are_a_fixed_small_share() -> None:
    held_out = [is_held_out(f"general/{number}") for number in range(4000)]
    assert 0.06 < sum(held_out) / 4000 < 0.10
    assert held_out == [is_held_out(f"general/{number}") for number in range(4000)]


def test_answers_without_the_hidden_states_are_refused(answers: list[Answer]) -> None:
    check_encodings(answers, LAYERS)
    with pytest.raises(ConfigError, match="--layers: 5; the answers have hidden states after these layers: 1, 2; make"):
        check_encodings(answers, (1, 5))
    with pytest.raises(ConfigError, match="after these layers: none; make others with `python -m training encode`"):
        check_encodings([without_details(answer, 0.1) for answer in answers], LAYERS)
