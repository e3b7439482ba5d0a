"""The encoding of prompts, made in the forward that fills their caches.

Hooks take the hidden states of the rows that are wanted, and of no others. So a prompt is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch

from chaperone_common.conditioning import Encoding
from cloud_supervisor.model.projector import ProjectorWeights


class States:
    """The hidden states of some rows of one forward, by layer."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows  # [rows] int64
        self._taken: dict[int, torch.Tensor] = {}

    def take(self, layer: int, states: torch.Tensor) -> None:
        """Keep the rows of the states [1, tokens, width] of a layer."""
        self._taken[layer] = states[0].index_select(0, self._rows).float()

    def of(self, layer: int) -> torch.Tensor:
        """Return the states [rows, width] of a layer, float32."""
        return self._taken[layer]

    def joined(self, layers: Sequence[int]) -> torch.Tensor:
        """Return the states [rows, width of all layers] of some layers, in this order."""
        return torch.cat([self._taken[layer] for layer in layers], dim=1)


@contextmanager
def watching(model: Any, layers: Sequence[int], rows: Sequence[int]) -> Iterator[States]:
    """Take the hidden states of some layers and rows of the forward of a causal language model in this context."""
    base = model.base_model
    base = model.model if base is model else base  # Gemma 3 names none
    states = States(torch.tensor([*rows], device=base.device))
    hooks = [_watch(base, layer, states) for layer in {*layers}] if rows else []
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _watch(base: Any, layer: int, states: States) -> Any:
    """Let a forward report the states of a layer, and return the hook."""
    blocks = base.h if hasattr(base, "h") else base.layers  # GPT-2 has its own name for them
    if layer == len(blocks):  # after the last norm
        return base.register_forward_hook(lambda module, args, output: states.take(layer, output.last_hidden_state))

    def before(module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        states.take(layer, args[0] if args else named["hidden_states"])

    return blocks[layer].register_forward_pre_hook(before, with_kwargs=True)


class Encoder:
    """A projector, and the model of transformers whose hidden states it reads."""

    def __init__(self, model: Any, weights: ProjectorWeights) -> None:
        """Take a causal language model; raises ModelError if the projector is of another one."""
        weights.check_cloud(model.config, model.config.model_type)
        self._model = model
        self._layers = weights.layers
        self._projector = weights.module(model.device)
        self.width = weights.width

    def watching(self, rows: Sequence[int]) -> AbstractContextManager[States]:
        """Take the hidden states of these rows of the forward that runs in this context."""
        return watching(self._model, self._layers, rows)

    def encodings(self, states: States, spans: Sequence[tuple[int, int]]) -> list[Encoding]:
        """Return the encodings of several texts; each has a start and a number of the rows that were taken, in order.

        The caller is in inference mode.
        """
        if not any(count for _, count in spans):
            return [replace(Encoding.empty(self.width), start=start) for start, _ in spans]
        rows = self._projector(states.joined(self._layers)).cpu()
        parts = rows.split([count for _, count in spans])
        return [Encoding.of(part.numpy(), start) for part, (start, _) in zip(parts, spans, strict=True)]
