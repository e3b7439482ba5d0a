"""Answers of the large model: what is recorded of them, files of them, and runs that go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chaperone_common.artefacts.registry import TinySource
from chaperone_common.errors import ConfigError
from cloud_supervisor.export.conversion import LoadedModel
from cloud_supervisor.export.tiny import VOCABULARY, build_tiny
from tests.support.models.writers import tiny_writer
from training.answers.answer import Answer, Author, Rows, read_answers, write_answers
from training.answers.batches import batches_of
from training.answers.collect import without_details
from training.answers.encode import encode_all
from training.answers.resumable import Asking, answer_all
from training.answers.sampling import DRAWN, GREEDY, Sampling
from training.answers.writing import Writer
from training.prompt import Prompt

TOP = 5
LAYERS = (1, 2)
PROMPTS = [Prompt(f"p{number}", "general", "word " * number + "why?") for number in range(1, 6)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return build_tiny(TinySource(source="tiny", seed=1))


@pytest.fixture(scope="module")
def writer() -> Writer:
    return tiny_writer(TinySource(source="tiny", seed=1), top=TOP, layers=LAYERS)


def _logits(loaded: LoadedModel, answer: Answer) -> torch.Tensor:
    """Return the logits [m, vocabulary] before each token of an answer, read alone and at once."""
    text = torch.from_numpy(np.concatenate([answer.prompt, answer.tokens])).long()
    with torch.inference_mode():
        logits: torch.Tensor = loaded.model(text[None], use_cache=False).logits[0]
    return logits[len(answer.prompt) - 1 : -1, :VOCABULARY]


def test_greedy_answers_are_the_likeliest_tokens_whatever_shares_the_batch(loaded: LoadedModel, writer: Writer) -> None:
    for answer in writer.write(PROMPTS, GREEDY, 24):
        assert answer.tokens.tolist() == _logits(loaded, answer).argmax(-1).tolist()


def test_an_answer_ends_with_the_first_token_that_ends_a_text(loaded: LoadedModel, writer: Writer) -> None:
    answers = writer.write(PROMPTS * 4, DRAWN, 64)
    ends = set(loaded.eos_token_ids)
    assert any(answer.tokens[-1] in ends for answer in answers)
    assert all(ends.isdisjoint(answer.tokens[:-1].tolist()) for answer in answers)
    assert all(len(answer.tokens) == 64 or answer.tokens[-1] in ends for answer in answers)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_likeliest_tokens_are_those_at_temperature_1(
    loaded: LoadedModel, writer: Writer, sampling: Sampling
) -> None:
    (answer,) = writer.write(PROMPTS[:1], sampling, 12)
    values, ids = _logits(loaded, answer).log_softmax(-1).topk(TOP, dim=-1)
    assert answer.top_ids.tolist() == ids.tolist()
    np.testing.assert_allclose(answer.top_logprobs, values, atol=0.02)


def test_encodings_are_the_hidden_states_of_the_prompt(loaded: LoadedModel, writer: Writer) -> None:
    for answer in writer.write(PROMPTS[:3], GREEDY, 4):
        with torch.inference_mode():
            states = loaded.model(torch.tensor(answer.prompt)[None].long(), output_hidden_states=True).hidden_states
        for layer in LAYERS:
            expected = states[layer][0].numpy()
            step = np.abs(expected).max(axis=1, keepdims=True) / 127
            assert (np.abs(answer.encodings[layer].restored() - expected) <= step * 0.51).all()


def test_drawn_answers_follow_from_the_seed(writer: Writer) -> None:
    first, second = (writer.write(PROMPTS, DRAWN.with_seed(3), 16) for _ in range(2))
    other = writer.write(PROMPTS, DRAWN.with_seed(4), 16)
    assert [answer.tokens.tolist() for answer in first] == [answer.tokens.tolist() for answer in second]
    assert [answer.tokens.tolist() for answer in first] != [answer.tokens.tolist() for answer in other]


def test_a_file_of_answers_is_read_back(tmp_path: Path, writer: Writer) -> None:
    answers = writer.write(PROMPTS, GREEDY, 12)
    write_answers(tmp_path / "b.npz", answers)
    for read, written in zip(read_answers(tmp_path), answers, strict=True):
        assert (read.id, read.kind) == (written.id, written.kind)
        for name in ("prompt", "tokens", "top_ids", "top_logprobs"):
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        for layer in LAYERS:
            np.testing.assert_array_equal(read.encodings[layer].values, written.encodings[layer].values)
            np.testing.assert_array_equal(read.encodings[layer].scales, written.encodings[layer].scales)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no answers; write them"):
        read_answers(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"PK no zip")
    with pytest.raises(ConfigError, match=r"b\.npz: it is no whole file of answers"):
        read_answers(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_cut_file_is_named(tmp_path: Path, writer: Writer, kept: float) -> None:
    file = tmp_path / "b.npz"
    write_answers(file, writer.write(PROMPTS[:1], GREEDY, 4))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ConfigError, match=r"b\.npz: it is no whole file of answers"):
        read_answers(file)


def test_answers_that_are_there_twice_count_once_and_those_of_two_models_are_refused(
    tmp_path: Path, writer: Writer
) -> None:
    answers = writer.write(PROMPTS, GREEDY, 4)
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    write_answers(one, answers[:3])
    write_answers(two, answers)
    assert [answer.id for answer in read_answers(one, two, one)] == [prompt.id for prompt in PROMPTS]
    write_answers(two, [replace(answer, author=Author("Huge", "sha256:huge")) for answer in answers])
    with pytest.raises(ConfigError, match="answers of several models, Huge, Tiny; give one's"):
        read_answers(one, two)
    with pytest.raises(ConfigError, match="--pair: its large model is Tiny, the answers are Huge's"):
        encode_all(writer, read_answers(two), tmp_path / "encoded", say=print)


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused_before_the_work(tmp_path: Path, writer: Writer) -> None:
    asking = Asking((GREEDY,), max_new_tokens=writer.context_tokens, batch=2, seed=5)
    with pytest.raises(ConfigError, match="prompt 'p5': .* are more than the .* that the large model reads; shorten"):
        answer_all(writer, PROMPTS, asking, tmp_path, say=print)
    assert not [*tmp_path.iterdir()]


def test_few_prompts_are_still_asked_with_each_sampling(tmp_path: Path, writer: Writer) -> None:
    for batch in batches_of(PROMPTS, lambda prompt: 1, size=100, samplings=(GREEDY, DRAWN), seed=1):
        assert 2 <= len(batch.prompts) <= 3
        assert batch.sampling.temperature == (GREEDY, DRAWN)[batch.number].temperature


def test_rows_of_zeros_stay_zeros() -> None:
    rows = Rows.of(np.array([[0, 0], [1, -2]], np.float32))
    np.testing.assert_allclose(rows.restored(), [[0, 0], [1, -2]], atol=0.01)


def test_an_interrupted_run_goes_on_and_writes_the_same_files(tmp_path: Path, writer: Writer) -> None:
    asking = Asking((GREEDY, DRAWN), max_new_tokens=8, batch=2, seed=5)
    said: list[str] = []
    assert answer_all(writer, PROMPTS, asking, tmp_path / "whole", say=said.append)
    assert len(said) == 3

    interrupted = tmp_path / "interrupted"
    assert not answer_all(writer, PROMPTS, asking, interrupted, max_seconds=0.0, say=said.append)
    assert "the same command goes on" in said[-1]
    assert answer_all(writer, PROMPTS, asking, interrupted, say=said.append)
    next(iter(interrupted.glob("*.npz"))).unlink()
    assert answer_all(writer, PROMPTS, asking, interrupted, say=said.append)
    whole, again = read_answers(tmp_path / "whole"), read_answers(interrupted)
    assert [answer.tokens.tolist() for answer in whole] == [answer.tokens.tolist() for answer in again]
    assert {answer.id for answer in again} == {prompt.id for prompt in PROMPTS}
    with pytest.raises(ConfigError, match=r"files, such as 000.*, answer other prompts or have other settings"):
        answer_all(writer, PROMPTS[:3], asking, interrupted, say=said.append)


def test_collected_answers_keep_the_likeliest_tokens_alone(tmp_path: Path, writer: Writer) -> None:
    answers = writer.write(PROMPTS, DRAWN, 12)
    write_answers(tmp_path / "a.npz", [without_details(answer, 0.05) for answer in answers])
    for read, whole in zip(read_answers(tmp_path / "a.npz"), answers, strict=True):
        assert not read.encodings
        assert read.tokens.tolist() == whole.tokens.tolist()
        kept = np.isfinite(read.top_logprobs)
        assert kept.any()
        assert not kept.all()
        np.testing.assert_array_equal(kept, np.exp(whole.top_logprobs.astype(np.float32)) >= 0.05)
        np.testing.assert_array_equal(read.top_ids[kept], whole.top_ids[kept])


def test_collected_answers_can_be_encoded_again(tmp_path: Path, writer: Writer) -> None:
    answers = writer.write(PROMPTS, GREEDY, 4)
    said: list[str] = []
    collected = [without_details(answer, 0.001) for answer in answers]
    for _ in range(2):
        encode_all(writer, collected, tmp_path, say=said.append)
    assert len(said) == 1
    for read, whole in zip(read_answers(tmp_path), answers, strict=True):
        for layer in LAYERS:
            np.testing.assert_array_equal(read.encodings[layer].values, whole.encodings[layer].values)
    with pytest.raises(ConfigError, match=r"files, such as 0000.*, answer other prompts or have other settings"):
        encode_all(writer, collected[:2], tmp_path, say=said.append)
