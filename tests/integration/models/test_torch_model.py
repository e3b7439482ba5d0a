"""The torch model with the tiny target: exact in float32, close in bfloat16, clear errors for bad models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from chaperone_common.errors import ConfigError, ModelCorrupt, ModelMissing
from chaperone_common.sampling import choose, softmax
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.store import KvStore
from cloud_supervisor.model.torch_model import Dtype, TorchModel
from tests.support.cloud.forward import bytes_held, feeding

CONTEXT_TOKENS = 128
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, seed=11)
NUCLEUS = SamplingParams(temperature=1.1, top_p=0.9, seed=12)


@pytest.fixture(scope="module")
def folder(tiny_pair: Path) -> Path:
    return tiny_pair / "cloud"


@pytest.fixture(scope="module")
def padded_vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def load(folder: Path, vocabulary_size: int, dtype: Dtype = "float32") -> TorchModel:
    return TorchModel.load(
        folder,
        dtype=dtype,
        threads=1,
        vocabulary_size=vocabulary_size,
        context_tokens=CONTEXT_TOKENS,
    )


def prompt(seed: int, length: int, vocabulary: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(vocabulary) for _ in range(length)]


def oracle(folder: Path, tokens: list[int], vocabulary: int, sampling: SamplingParams) -> list[int]:
    """Return the choice after every token, by a full forward of transformers in float32 without a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, :, :vocabulary].numpy()
    return [
        choose(softmax(row, sampling.temperature), sampling, index + 1).token_id for index, row in enumerate(logits)
    ]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, NUCLEUS])
def test_any_chunking_chooses_as_the_full_forward(
    folder: Path, padded_vocabulary: int, sampling: SamplingParams
) -> None:
    model = load(folder, padded_vocabulary)
    tokens = prompt(1, 100, padded_vocabulary)
    expected = oracle(folder, tokens, padded_vocabulary, sampling)
    dice = random.Random(2)
    for _ in range(15):
        cache, at = model.kv_pool.new_cache(), 0
        while at < len(tokens):
            if dice.random() < 0.3:
                at = dice.randint(0, at)
                cache.crop(at)
            chunk = tokens[at : at + dice.choice([1, 1, 2, 5, 16, 40])]
            wanted = dice.randint(0, len(chunk))
            at += len(chunk)
            [choices] = model.forward([feeding(cache, chunk, wanted, sampling)])
            assert [choice.token_id for choice in choices] == expected[at - wanted : at]


def test_sessions_that_evict_each_other_choose_as_the_full_forward(folder: Path, padded_vocabulary: int) -> None:
    model = load(folder, padded_vocabulary)
    per_token = model.kv_bytes_per_token
    store = KvStore(model.kv_pool, budget_bytes=130 * per_token, bytes_per_token=per_token)
    texts = [prompt(seed, 60, padded_vocabulary) for seed in range(4)]
    expected = [oracle(folder, text, padded_vocabulary, SAMPLED) for text in texts]
    dice = random.Random(3)
    for _ in range(60):
        session, length = dice.randrange(4), dice.randint(1, 60)
        wanted = dice.randint(0, min(8, length))
        text = TokenTree(tuple(texts[session][:length]))
        cache, held = store.prepare(session, text, num_choices=wanted)
        todo = text.token_ids[held:]
        choices = model.forward([feeding(cache, todo, wanted, SAMPLED)])[0] if todo else []
        store.commit(session, text)
        assert [choice.token_id for choice in choices] == expected[session][length - wanted : length]
    assert store.stats.evictions > 4


def test_ids_beyond_the_vocabulary_are_never_chosen(folder: Path, padded_vocabulary: int) -> None:
    small = padded_vocabulary // 4
    tokens = prompt(4, 100, small)
    hot = SamplingParams(temperature=5.0, seed=1)
    assert max(oracle(folder, tokens, padded_vocabulary, hot)) >= small
    model = load(folder, small)
    [choices] = model.forward([feeding(model.kv_pool.new_cache(), tokens, 100, hot)])
    assert [choice.token_id for choice in choices] == oracle(folder, tokens, small, hot)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_takes_the_memory_that_was_announced(folder: Path, padded_vocabulary: int, dtype: Dtype) -> None:
    model = load(folder, padded_vocabulary, dtype)
    cache = model.kv_pool.new_cache()
    assert bytes_held(cache) == 0
    model.forward([feeding(cache, prompt(5, 30, padded_vocabulary), 0, GREEDY)])
    assert bytes_held(cache) == 30 * model.kv_bytes_per_token
    cache.crop(10)
    model.forward([feeding(cache, [1], 0, GREEDY)])
    assert bytes_held(cache) == 11 * model.kv_bytes_per_token


def test_bfloat16_mostly_chooses_the_same(folder: Path, padded_vocabulary: int) -> None:
    tokens = prompt(6, 100, padded_vocabulary)
    model = load(folder, padded_vocabulary, "bfloat16")
    expected = oracle(folder, tokens, padded_vocabulary, SAMPLED)
    cache, got = model.kv_pool.new_cache(), list[int]()
    for at, length in [(0, 1), (1, 2), (3, 5), (8, 32), (40, 60)]:
        [choices] = model.forward([feeding(cache, tokens[at : at + length], length, SAMPLED)])
        got += [choice.token_id for choice in choices]
    assert sum(left == right for left, right in zip(expected, got, strict=True)) >= 90


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no model there; run `chaperone-cloud models pull`"):
        load(tmp_path, 10)


def test_a_damaged_model_is_named(folder: Path, padded_vocabulary: int, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelCorrupt, match="cut: transformers cannot load it"):
        load(tmp_path / "cut", padded_vocabulary)


def test_a_configuration_beyond_the_models_limits_is_refused(folder: Path, padded_vocabulary: int) -> None:
    with pytest.raises(ConfigError, match=f"vocabulary_size: {padded_vocabulary + 1}, but the model knows"):
        load(folder, padded_vocabulary + 1)
    with pytest.raises(ConfigError, match="context_tokens: 10000000, but the model holds"):
        TorchModel.load(
            folder, dtype="float32", threads=1, vocabulary_size=padded_vocabulary, context_tokens=10_000_000
        )
