"""Attention whose sums are exact, so that a token's result does not depend on what is read with it.

A sum of floating-point numbers depends on the order of its terms, and kernels choose an order by the number of keys and
queries. Here all terms of a sum are multiples of one power of two, and their sum has less than 53 bits. So float64
holds every partial sum exactly, and any kernel finds the same bits: for a token alone, in a span, in a chunk of a
prompt, and at the end of a branch.

    scores    queries and keys have 21 bits each, counted from the largest number of their head; a sum adds up to 11
    weights   whole numbers of 24 bits, before and after they are divided by their sum
    values    multiples of 2^-16 up to 2^12
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST = 2.0**-64  # of the largest number of a head, so that powers of two stay in the range of float32
_WEIGHT_BITS = 24
_VALUE_FRACTION_BITS = 16
_MOST_VALUE = 2.0**12  # 24 + 16 + 12 bits; the weights are shares of one, so the number of keys adds none


def round_keys(keys: Tensor) -> Tensor:
    """Return keys, or queries, [..., head_dim] that are whole numbers of a power of two, one for each head."""
    largest: Tensor = torch.linalg.vector_norm(keys, math.inf, dim=-1, keepdim=True).clamp_(min=_LEAST)
    above = largest.div_(torch.frexp(largest).mantissa)  # the power of two above it
    # Between 4 and 8 times that power float32 has the steps that are wanted: a sum there is rounded to them.
    shift = above.mul_(6.0)
    return (keys + shift).sub_(shift)


def round_values(values: Tensor) -> Tensor:
    """Return values [..., head_dim] that are whole numbers of one power of two."""
    steps = 2.0**_VALUE_FRACTION_BITS
    return values.clamp(-_MOST_VALUE, _MOST_VALUE).mul_(steps).round_().div_(steps)


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, *, scaling: float, softcap: float | None
) -> Tensor:
    """Return the results [heads, fed, head_dim] of a sequence, float32.

    `queries` [heads, fed, head_dim] and `keys` [groups, tokens, head_dim] come from `round_keys`, `values` from
    `round_values`. `hidden` [fed, tokens] bool masks what each token fed may not see. Scores are limited to `softcap`,
    as Gemma 2 does.
    """
    heads, fed, head_dim = queries.shape
    groups, tokens, _ = keys.shape
    rows = queries.double().reshape(groups, -1, head_dim)  # the heads that share keys, and their tokens
    scores = torch.bmm(rows, keys.double().transpose(1, 2)).mul_(scaling)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if hidden is not None:
        scores.view(heads, fed, tokens).masked_fill_(hidden, -torch.inf)
    results = torch.bmm(_whole_weights(scores), values.double()).mul_(2.0**-_WEIGHT_BITS)
    return results.view(heads, fed, -1).float()


def _whole_weights(scores: Tensor) -> Tensor:
    """Return the softmax of scores [..., tokens] in whole numbers, which takes the memory of `scores`."""
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest.sub_(_WEIGHT_BITS * math.log(2))).exp_().round_()
    return weights.mul_(2.0**_WEIGHT_BITS / weights.sum(dim=-1, keepdim=True)).round_()
