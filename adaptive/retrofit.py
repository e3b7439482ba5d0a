"""Small twins for the FFNs of a model that was trained without them, and the layers where they do least harm.

A twin begins with the neurons of the big FFN that matter most, and is then fitted to the big one's outputs on recorded
inputs, layer by layer: nothing is trained through the network. A search finds the patterns of big FFNs, twins and
skipped FFNs that keep most of the agreement with the large model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from adaptive.duo import SMALL_SHARE, DuoFfn, Effort

Pattern = tuple[Effort, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Inputs and outputs of one layer's FFN."""

    x: torch.Tensor  # [tokens, width]
    y: torch.Tensor  # [tokens, width]


def record(layers: Sequence[Any], forward: Callable[[], object]) -> list[Recorded]:
    """Return what the FFNs of some decoder layers read and write while `forward` runs the model, padding included."""
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in layers]

    def keep(layer: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            found[layer].append((inputs[0].detach().flatten(0, 1), output.detach().flatten(0, 1)))

        return hook

    hooks = [block.mlp.register_forward_hook(keep(layer)) for layer, block in enumerate(layers)]
    try:
        with torch.inference_mode():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return [Recorded(torch.cat([x for x, _ in each]), torch.cat([y for _, y in each])) for each in found]


def pruned(big: Qwen2MLP, inner: int, x: torch.Tensor) -> Qwen2MLP:
    """Return an FFN with the `inner` neurons of a big one that write most, on average over inputs x [tokens, width]."""
    with torch.no_grad():
        activity = (big.act_fn(big.gate_proj(x)) * big.up_proj(x)).float().abs().mean(dim=0)
        chosen = (activity * big.down_proj.weight.float().norm(dim=0)).topk(inner).indices.sort().values
        config = deepcopy(big.config)
        config.intermediate_size = inner
        small = Qwen2MLP(config).float()
        small.gate_proj.weight.copy_(big.gate_proj.weight[chosen])
        small.up_proj.weight.copy_(big.up_proj.weight[chosen])
        small.down_proj.weight.copy_(big.down_proj.weight[:, chosen])
    return small


def fit_twin(
    big: Qwen2MLP,
    recorded: Recorded,
    *,
    inner: int | None = None,
    steps: int = 300,
    batch: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> tuple[Qwen2MLP, float]:
    """Return a twin of an FFN, and the share of its outputs' variance that the twin leaves unexplained."""
    width = inner or max(1, int(big.config.intermediate_size * SMALL_SHARE))
    twin = pruned(big, width, recorded.x)
    x, y = recorded.x.float(), recorded.y.float()
    optimiser = torch.optim.Adam(twin.parameters(), lr=learning_rate)
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        chosen = torch.randint(len(x), (min(batch, len(x)),), generator=draws)
        loss = mse_loss(twin(x[chosen]), y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        unexplained = mse_loss(twin(x), y) / y.var(dim=0, unbiased=False).mean()
    return twin.requires_grad_(False), float(unexplained)


def install(layers: Sequence[Any], twins: Sequence[Qwen2MLP]) -> list[DuoFfn]:
    """Put a twin next to the FFN of each layer, in place, and return them; `set_pattern` chooses."""
    found = []
    for block, twin in zip(layers, twins, strict=True):
        dtype = block.mlp.down_proj.weight.dtype
        block.mlp = DuoFfn(block.mlp, twin.to(dtype))
        found.append(block.mlp)
    return found


def set_pattern(ffns: Iterable[DuoFfn], pattern: Pattern) -> None:
    """Let all tokens take one pattern from now on, an effort for each layer."""
    for ffn, effort in zip(ffns, pattern, strict=True):
        ffn.constant = effort


@dataclass(frozen=True, slots=True)
class Tried:
    """A pattern and its score."""

    pattern: Pattern
    score: float


def search(
    score: Callable[[Pattern], float],
    layers: int,
    *,
    reduced: int,
    efforts: Sequence[Effort] = (Effort.SMALL, Effort.SKIP),
    width: int = 2,
) -> list[Tried]:
    """Return the best pattern found with 0, 1, ... up to `reduced` layers that are not big: a beam search.

    A step reduces one more layer of each kept pattern, in every way. `score` is higher for better patterns, and
    is asked once for each.
    """
    whole = (Effort.BIG,) * layers
    kept = [Tried(whole, score(whole))]
    best = [kept[0]]
    for _ in range(reduced):
        following = {
            (*each.pattern[:layer], effort, *each.pattern[layer + 1 :])
            for each in kept
            for layer in range(layers)
            if each.pattern[layer] is Effort.BIG
            for effort in efforts
        }
        tried = [Tried(pattern, score(pattern)) for pattern in sorted(following)]
        kept = sorted(tried, key=lambda each: -each.score)[:width]
        best.append(kept[0])
    return best
