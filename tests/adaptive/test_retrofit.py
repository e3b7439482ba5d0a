"""Twins of a model that was trained without them, and the search for the layers where they do least harm."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2ForCausalLM

from adaptive.duo import DuoConfig, Effort
from adaptive.retrofit import Pattern, fit_twin, install, pruned, record, search, set_pattern

SKIP, SMALL, BIG = Effort.SKIP, Effort.SMALL, Effort.BIG
CONFIG = DuoConfig(vocabulary=40, layers=3, width=32, heads=4, kv_heads=2, big=64, context=32)


@pytest.fixture
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(1)
    found: Qwen2ForCausalLM = Qwen2ForCausalLM(CONFIG.qwen2(CONFIG.big)).eval()
    return found


def texts() -> torch.Tensor:
    return torch.randint(40, (8, 16), generator=torch.Generator().manual_seed(2))


def test_what_each_ffn_reads_and_writes_is_recorded(model: Qwen2ForCausalLM) -> None:
    found = record(model.model.layers, lambda: [model(texts()[:4]), model(texts()[4:])])
    assert len(found) == 3
    for recorded, block in zip(found, model.model.layers, strict=True):
        assert recorded.x.shape == recorded.y.shape == (8 * 16, 32)
        with torch.inference_mode():
            torch.testing.assert_close(block.mlp(recorded.x), recorded.y)
    assert not model.model.layers[0].mlp._forward_hooks


def test_a_pruned_ffn_keeps_the_neurons_that_write_most(model: Qwen2ForCausalLM) -> None:
    big = model.model.layers[0].mlp
    with torch.no_grad():
        big.down_proj.weight[:, 8:] = 0
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(pruned(big, 8, x)(x), big(x))


def test_a_twin_comes_nearer_by_fitting(model: Qwen2ForCausalLM) -> None:
    [recorded, *_] = record(model.model.layers, lambda: model(texts()))
    big = model.model.layers[0].mlp
    _, before = fit_twin(big, recorded, inner=16, steps=1, learning_rate=1e-9)
    twin, after = fit_twin(big, recorded, inner=16, steps=200, learning_rate=3e-3)
    assert after < 0.7 * before
    assert twin.down_proj.weight.shape == (32, 16)
    again, _ = fit_twin(big, recorded, inner=16, steps=200, learning_rate=3e-3)
    torch.testing.assert_close(twin.down_proj.weight, again.down_proj.weight)


def test_a_pattern_chooses_for_all_tokens(model: Qwen2ForCausalLM) -> None:
    recorded = record(model.model.layers, lambda: model(texts()))
    twins = [fit_twin(block.mlp, found, steps=1)[0] for block, found in zip(model.model.layers, recorded, strict=True)]
    with torch.inference_mode():
        whole = model(texts()).logits
        ffns = install(model.model.layers, twins)
        torch.testing.assert_close(model(texts()).logits, whole)
        set_pattern(ffns, (BIG, SKIP, SMALL))
        x = torch.randn(1, 4, 32)
        assert torch.equal(ffns[1](x), torch.zeros_like(x))
        torch.testing.assert_close(ffns[2](x), twins[2](x))
        assert (model(texts()).logits - whole).abs().max() > 1e-4
        set_pattern(ffns, (BIG, BIG, BIG))
        torch.testing.assert_close(model(texts()).logits, whole)


def test_the_search_finds_the_layers_that_matter_least() -> None:
    harm = {0: 5.0, 1: 1.0, 2: 3.0, 3: 0.5}
    asked: list[Pattern] = []

    def score(pattern: Pattern) -> float:
        asked.append(pattern)
        lost = sum(
            harm[layer] * (1.0 if effort is SKIP else 0.6) for layer, effort in enumerate(pattern) if effort != BIG
        )
        joint = 4.0 if pattern[1] != BIG and pattern[3] != BIG else 0.0  # these two cannot both be missed
        return 10.0 - lost - joint

    best = search(score, 4, reduced=2)
    assert best[0].pattern == (BIG,) * 4
    assert best[1].pattern == (BIG, BIG, BIG, SMALL)
    assert best[2].pattern == (BIG, BIG, SMALL, SMALL)
    assert [each.score for each in best] == sorted((each.score for each in best), reverse=True)
    assert len(asked) == len(set(asked)), "each pattern is asked once"
