"""Every supported architecture with random weights, in every way to read a text, against a forward without cache.

All texts are longer than the windows are wide.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chaperone_common.errors import ConfigError
from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.model.architectures import CLOUD_MODEL_TYPES, context_tokens, layer_windows
from cloud_supervisor.model.torch_model import TorchModel
from tests.support.cloud.forward import bytes_held, feeding
from tests.support.models import families, oracle
from tests.support.models.families import FAMILIES, VOCABULARY, WINDOW

TEXT_TOKENS = 200
CLOSE = 1e-4
SAMPLINGS = (SamplingParams(), SamplingParams(temperature=0.8, seed=11))
CHAIN_TOKENS, BRANCH_TOKENS = 6, 6
LENGTHS = (1, 1, 2, 5, 16, 40, 100)  # of chunks


@dataclass(frozen=True)
class Subject:
    """A model as the cloud runs it, and the results of plain transformers."""

    model: TorchModel
    plain: Any
    text: list[int]
    logits: NDArray[np.float32]  # [TEXT_TOKENS, VOCABULARY], after each token of the text

    def whole(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return _whole(self.plain, token_ids)

    def held(self, length: int) -> SlotCache:
        cache = self.model.kv_pool.new_cache()
        if length:
            self.model.forward([feeding(cache, self.text[:length], 0, SAMPLINGS[0])])
        return cache


def _whole(plain: Any, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits [tokens, VOCABULARY] of one forward without a cache."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = plain(torch.tensor([[*token_ids]]), use_cache=False).logits[0].float().numpy()
    return logits[:, :VOCABULARY]


def _text(seed: int, length: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(VOCABULARY) for _ in range(length)]


def _chosen(logits: NDArray[np.float32], position: int, sampling: SamplingParams) -> int:
    """Return the choice for the token at a position."""
    return oracle.choice(
        logits,
        position,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    plain = families.build(request.param)
    folder = tmp_path_factory.mktemp("model")
    plain.save_pretrained(folder)
    model = _load(folder, context_tokens(plain.config))
    text = _text(1, TEXT_TOKENS)
    return Subject(model, plain, text, _whole(plain, text))


def _load(folder: Path, tokens: int) -> TorchModel:
    return TorchModel.load(folder, dtype="float32", threads=1, vocabulary_size=VOCABULARY, context_tokens=tokens)


def test_every_supported_architecture_is_here() -> None:
    assert {families.config_of(family).model_type for family in FAMILIES} == CLOUD_MODEL_TYPES


def test_chunks_and_crops_score_as_the_full_forward(subject: Subject) -> None:
    dice, text = random.Random(2), subject.text
    for _ in range(3):
        cache, at = subject.model.kv_pool.new_cache(), 0
        while at < len(text):
            if dice.random() < 0.3:
                at = dice.randint(0, at)
                cache.crop(at)
            chunk = text[at : at + dice.choice(LENGTHS)]
            wanted = dice.randint(0, len(chunk))
            at += len(chunk)
            scores = subject.model.scores(feeding(cache, chunk, wanted, SAMPLINGS[0]))
            np.testing.assert_allclose(scores, subject.logits[at - wanted : at], atol=CLOSE)
        assert cache.length == len(text)
        assert bytes_held(cache) == len(text) * subject.model.kv_bytes_per_token


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_span_and_single_tokens_choose_as_the_full_forward(subject: Subject, sampling: SamplingParams) -> None:
    """A span is verified in one forward, and a takeover writes single tokens."""
    first = TEXT_TOKENS - 40
    expected = [_chosen(subject.logits[index], index + 1, sampling) for index in range(first, TEXT_TOKENS)]
    cache, rest = subject.held(first), subject.text[first:]
    [choices] = subject.model.forward([feeding(cache, rest, len(rest), sampling)])
    assert [choice.token_id for choice in choices] == expected
    cache.crop(first)
    single = [subject.model.forward([feeding(cache, [token_id], 1, sampling)])[0][0] for token_id in rest]
    assert [choice.token_id for choice in single] == expected


def test_branches_score_as_their_paths_do_alone(subject: Subject) -> None:
    dice = random.Random(3)
    for held in (0, WINDOW - 3, 150):
        chain = subject.text[held : held + CHAIN_TOKENS]
        before = subject.text[: held + CHAIN_TOKENS]
        branches = [
            BranchToken(held + dice.randrange(CHAIN_TOKENS + index), dice.randrange(VOCABULARY))
            for index in range(BRANCH_TOKENS)
        ]
        cache = subject.held(held)
        scores = subject.model.scores(feeding(cache, chain, CHAIN_TOKENS, SAMPLINGS[0], branches))
        np.testing.assert_allclose(scores[:CHAIN_TOKENS], subject.logits[held : held + CHAIN_TOKENS], atol=CLOSE)
        texts = TokenTree(tuple(before), tuple(branches)).paths()
        for row, path in zip(scores[CHAIN_TOKENS:], texts, strict=True):
            np.testing.assert_allclose(row, subject.whole(path)[-1], atol=CLOSE)
        _continue_along(subject, cache, held + CHAIN_TOKENS, branches, texts[-1])


def _continue_along(
    subject: Subject, cache: SlotCache, length: int, branches: Sequence[BranchToken], path: Sequence[int]
) -> None:
    """Keep the last branch token's path, and read on after it."""
    indices, index = list[int](), length + len(branches) - 1
    while index >= length:
        indices.insert(0, index)
        index = branches[index - length].parent
    cache.select(index + 1, indices)
    rest = _text(4, 3)
    scores = subject.model.scores(feeding(cache, rest, 3, SAMPLINGS[0]))
    np.testing.assert_allclose(scores, subject.whole([*path, *rest])[-3:], atol=CLOSE)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_batched_sessions_choose_as_each_does_alone(subject: Subject, sampling: SamplingParams) -> None:
    """One forward mixes new and cached sessions, one and many tokens, chains and a tree."""
    readings, expected = [], []
    for held, tokens, wanted in ((0, 50, 1), (40, 8, 8), (99, 1, 1), (150, 20, 3), (170, 5, 0)):
        length = held + tokens
        branches = (BranchToken(length - wanted, 3), BranchToken(length, 4)) if wanted == 8 else ()
        readings.append(feeding(subject.held(held), subject.text[held:length], wanted, sampling, branches))
        texts = TokenTree(tuple(subject.text[:length]), branches).paths()
        rows = [*subject.logits[length - wanted : length], *(subject.whole(path)[-1] for path in texts)]
        places = [*range(length - wanted + 1, length + 1), *(len(path) for path in texts)]
        expected.append([_chosen(row, place, sampling) for row, place in zip(rows, places, strict=True)])
    together = subject.model.forward(readings)
    assert [[choice.token_id for choice in choices] for choices in together] == expected


@pytest.mark.parametrize("family", [name for name in FAMILIES if any(layer_windows(families.config_of(name)))])
def test_the_windows_of_these_models_hide_tokens(family: str) -> None:
    text = _text(1, TEXT_TOKENS)
    narrow, wide = (_whole(families.build(family, **changes), text) for changes in ({}, {"sliding_window": 4096}))
    np.testing.assert_allclose(narrow[:WINDOW], wide[:WINDOW], atol=CLOSE)
    assert abs(narrow - wide)[WINDOW:].max() > 0.1


def test_a_context_that_would_rotate_all_keys_is_refused(tmp_path: Path) -> None:
    plain = families.build("phi3 with longrope")
    plain.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="context_tokens: 257, but the model holds 256; run `chaperone-cloud"):
        _load(tmp_path, 257)
