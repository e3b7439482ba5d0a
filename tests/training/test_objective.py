"""The divergence that training makes small, and the figures of likeness."""

from __future__ import annotations

import pytest
import torch

from training.distillation.objective import Likeness, divergence


def _rows(seed: int, rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=draws) * 3, torch.randn(rows, vocabulary, generator=draws) * 3


def _top(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, ids = logits.log_softmax(-1).topk(count, dim=-1)
    return ids, values


def test_over_all_tokens_but_one_it_is_the_divergence_of_the_distributions() -> None:
    p, q = _rows(1, 5, 12)
    ids, logprobs = _top(p, 11)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(divergence(q, ids, logprobs), expected.sum(-1), atol=1e-4, rtol=1e-4)


def test_fewer_tokens_never_raise_it() -> None:
    p, q = _rows(2, 50, 40)
    found = [divergence(q, *_top(p, count)) for count in (2, 8, 32)]
    assert bool((found[0] <= found[1] + 1e-5).all() and (found[1] <= found[2] + 1e-5).all())


def test_a_token_that_was_left_out_counts_with_the_others() -> None:
    p, q = _rows(4, 5, 12)
    ids, logprobs = _top(p, 6)
    without = logprobs.clone()
    without[:, 4:] = -torch.inf
    torch.testing.assert_close(divergence(q, ids, without), divergence(q, ids[:, :4], logprobs[:, :4]))


def test_it_is_zero_for_the_same_distribution_and_has_a_finite_slope_everywhere() -> None:
    p, _ = _rows(3, 6, 30)
    ids, logprobs = _top(p, 29)
    sure = torch.full((1, 30), -200.0)
    sure[0, 4] = 200.0
    logits = torch.cat([p, sure]).requires_grad_()
    loss = divergence(logits, torch.cat([ids, ids[:1]]), torch.cat([logprobs, logprobs[:1]]).half().float())
    assert bool((loss[:-1].abs() < 1e-3).all())
    loss.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_likeness_counts_equal_choices_and_shared_probability() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]]).log()
    q = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]).log()
    found = Likeness()
    found.add(q, *_top(p, 2))
    assert found.as_json()["agreement"] == 0.5
    assert found.as_json()["overlap"] == pytest.approx((0.6 + 0.2 + 0.1 + 0.4) / 2)
    assert found.as_json()["tokens"] == 2
