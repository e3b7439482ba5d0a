"""The lenient cloud's model on the tiny pair, against a full forward without a cache."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM

from benchmarks.strategies.lenient_server import lenient_model
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.sampling import choose, softmax
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.model.torch_model import TorchModel
from tests.support.cloud.forward import feeding

WITHIN_NATS = 3.0
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, seed=11)


@pytest.fixture(scope="module")
def model(tiny_pair: Path) -> TorchModel:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    return lenient_model(CloudConfig(pair="tiny", dtype="float32", threads=1), manifest, WITHIN_NATS)


@pytest.fixture(scope="module")
def text(tiny_pair: Path) -> list[int]:
    """Return the model's own text with a few other tokens, some likely and some unlikely."""
    known = load_manifest(tiny_pair / "cloud", role="cloud").vocabulary_size
    dice = random.Random(3)
    tokens = [dice.randrange(known)]
    while len(tokens) < 48:
        row = logits_after(tiny_pair, tokens)[-1]
        tokens.append(int(np.argsort(-row)[dice.choice([0, 0, 1, 4, 100])]))
    return tokens


def logits_after(pair: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Return the logits after every token, [tokens, vocab]."""
    model = AutoModelForCausalLM.from_pretrained(pair / "cloud", dtype=torch.float32, attn_implementation="eager")
    known = load_manifest(pair / "cloud", role="cloud").vocabulary_size
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([tokens]), use_cache=False).logits[0, :, :known].numpy()
    return logits


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_likely_enough_draft_token_is_chosen(
    model: TorchModel, tiny_pair: Path, text: list[int], sampling: SamplingParams
) -> None:
    rows = logits_after(tiny_pair, text)
    own = [choose(softmax(row, sampling.temperature), sampling, at + 1).token_id for at, row in enumerate(rows)]
    surprise = -log_softmax(rows.astype(np.float64) / (sampling.temperature or 1.0), axis=1)
    stands = [surprise[at, token_id] <= WITHIN_NATS for at, token_id in enumerate(text[1:])]
    expected = [token_id if ok else own[at] for at, (token_id, ok) in enumerate(zip(text[1:], stands, strict=True))]
    differs = [token_id != own[at] for at, token_id in enumerate(text[1:])]
    assert any(ok and wrong for ok, wrong in zip(stands, differs, strict=True)), "some near misses must be accepted"
    assert not all(stands), "and some tokens must be rejected"

    [choices] = model.forward([feeding(model.kv_pool.new_cache(), text, len(text), sampling)])
    assert [choice.token_id for choice in choices] == [*expected, own[-1]], "no token is drafted after the last one"

    cache = model.kv_pool.new_cache()
    model.forward([feeding(cache, text[:20], 0, sampling)])
    [choices] = model.forward([feeding(cache, text[20:30], 4, sampling)])
    assert [choice.token_id for choice in choices] == [*expected[26:29], own[29]]


def test_outside_the_chain_the_lenient_model_chooses_as_usual(
    model: TorchModel, tiny_pair: Path, text: list[int]
) -> None:
    """The token after a branch token is not in the chain."""
    branch = BranchToken(17, text[-1])
    [choices] = model.forward([feeding(model.kv_pool.new_cache(), text[:20], 3, GREEDY, (branch,))])
    row = logits_after(tiny_pair, [*text[:18], text[-1]])[-1]
    assert choices[-1].token_id == int(row.argmax())
