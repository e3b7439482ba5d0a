"""Branch tokens in bfloat16, where an inexact attention mask would show first."""

from __future__ import annotations

import json
import random
from pathlib import Path

from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.torch_model import TorchModel
from tests.support.cloud.forward import feeding

SAMPLED = SamplingParams(temperature=0.8, seed=11)
CHAIN_TOKENS, BRANCH_TOKENS, TREES = 8, 8, 6


def test_bfloat16_mostly_chooses_the_same_along_branches_and_chains(tiny_pair: Path) -> None:
    folder, dice = tiny_pair / "cloud", random.Random(1)
    vocabulary_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    model = TorchModel.load(folder, dtype="bfloat16", threads=1, vocabulary_size=vocabulary_size, context_tokens=512)
    same = []
    for _ in range(TREES):
        held = tuple(dice.randrange(256) for _ in range(dice.randint(1, 400)))
        chain = tuple(dice.randrange(256) for _ in range(CHAIN_TOKENS))
        branches = [
            BranchToken(len(held) + dice.randrange(CHAIN_TOKENS + index), dice.randrange(256))
            for index in range(BRANCH_TOKENS)
        ]
        cache = model.kv_pool.new_cache()
        model.forward([feeding(cache, held, 0, SAMPLED)])
        [choices] = model.forward([feeding(cache, chain, CHAIN_TOKENS, SAMPLED, branches)])
        texts = [held + chain[: end + 1] for end in range(CHAIN_TOKENS)]
        texts += TokenTree(held + chain, tuple(branches)).paths()
        for choice, text in zip(choices, texts, strict=True):
            [[alone]] = model.forward([feeding(model.kv_pool.new_cache(), text, 1, SAMPLED)])
            same.append(choice.token_id == alone.token_id)
    assert sum(same) >= 0.95 * len(same) == 0.95 * TREES * (CHAIN_TOKENS + BRANCH_TOKENS)
