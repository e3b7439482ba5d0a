"""The oracle: the loss of every route of a token, by exhaustive search, and the best under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import softmax
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from adaptive.duo import DuoTransformer, Effort

Floats = NDArray[np.float32]
ALL = (Effort.SKIP, Effort.SMALL, Effort.BIG)


def routes_of(layers: int, efforts: Sequence[Effort] = ALL) -> list[tuple[Effort, ...]]:
    """Return all routes, in the order in which `route_losses` has them: the last layer changes fastest."""
    return [*product(efforts, repeat=layers)]


def route_costs(layers: int, efforts: Sequence[Effort] = ALL) -> Floats:
    """Return the cost of each route [routes], in big FFNs."""
    return np.array([sum(effort.cost for effort in route) for route in routes_of(layers, efforts)], np.float32)


@torch.inference_mode()
def route_losses(
    duo: DuoTransformer, token_ids: torch.Tensor, places: Sequence[int], efforts: Sequence[Effort] = ALL
) -> Floats:
    """Return the loss in nats [places, routes] of the token after each place, for every route of the place's token.

    `token_ids` [tokens] are one text. All tokens before a place take the big FFNs, so that routes are compared in one
    context. A state after some layers is computed once for all routes that begin alike.
    """
    text = token_ids[None]
    duo(text)  # for its side effect: no route is set
    keys, values = _context(duo, text)
    at = torch.tensor(places)
    model = duo.model.model
    cos, sin = model.rotary_emb(model.embed_tokens(text), torch.arange(len(token_ids))[None])
    states = model.embed_tokens(token_ids[at])[:, None]  # [places, routes so far, width]
    for layer, block in enumerate(duo.decoder_layers):
        attended = states + _attended(block, states, at, keys[layer], values[layer], cos[0], sin[0])
        x = block.post_attention_layernorm(attended)
        found = {
            Effort.SKIP: attended,
            Effort.SMALL: attended + block.mlp.small(x) if Effort.SMALL in efforts else attended,
            Effort.BIG: attended + block.mlp.big(x) if Effort.BIG in efforts else attended,
        }
        states = torch.stack([found[effort] for effort in efforts], dim=2).flatten(1, 2)
    targets = token_ids[at + 1]
    losses = []
    for rows, target in zip(states, targets, strict=True):
        logits = duo.model.lm_head(model.norm(rows)).float()
        losses.append(logits.logsumexp(dim=-1) - logits[:, target])
    result: Floats = torch.stack(losses).numpy()
    return result


def best_under(losses: Floats, costs: Floats, budget: float) -> NDArray[np.int64]:
    """Return the best route of each place [places] among those whose cost is within the budget."""
    allowed = np.flatnonzero(costs <= budget + 1e-6)
    return np.asarray(allowed[losses[:, allowed].argmin(axis=1)], np.int64)


def best_fixed(losses: Floats, costs: Floats, budget: float) -> int:
    """Return the route within the budget that is best for all places together."""
    allowed = np.flatnonzero(costs <= budget + 1e-6)
    return int(allowed[losses[:, allowed].mean(axis=0).argmin()])


def gain_of(losses: Floats, costs: Floats, budget: float, base: int) -> Floats:
    """Return what the oracle gains over one route at each place [places], in nats: the paper's difficulty."""
    best = best_under(losses, costs, budget)
    gains: Floats = losses[:, base] - losses[np.arange(len(losses)), best]
    return gains


def _context(duo: DuoTransformer, text: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the keys and values [kv heads, tokens, head width] of each layer, of a text whose tokens are all big."""
    model = duo.model.model
    cache = model(text, use_cache=True).past_key_values
    return [layer.keys[0] for layer in cache.layers], [layer.values[0] for layer in cache.layers]


def _attended(
    block: Any,
    states: torch.Tensor,
    at: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Return the attention's output [places, routes, width] for states of tokens at some places of a text.

    Each state attends to the text before its place, and to itself.
    """
    attention = block.self_attn
    hidden = block.input_layernorm(states)
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    q, k, v = (
        projection(hidden).view(shape).transpose(1, 2)  # [places, heads, routes, head width]
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    # All routes of a place are at its position.
    q, k = apply_rotary_pos_emb(q, k, cos[at][:, None], sin[at][:, None])
    group = attention.num_key_value_groups
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    before_keys, before_values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)
    scores = torch.einsum("phrd,htd->phrt", q, before_keys) * attention.scaling
    later = torch.arange(keys.shape[1]) >= at[:, None]
    scores = scores.masked_fill(later[:, None, None], float("-inf"))
    own = (q * k).sum(dim=-1, keepdim=True) * attention.scaling
    weights = softmax(torch.cat([scores, own], dim=-1), dim=-1)
    found = torch.einsum("phrt,htd->phrd", weights[..., :-1], before_values) + weights[..., -1:] * v
    result: torch.Tensor = attention.o_proj(found.transpose(1, 2).flatten(2))
    return result
