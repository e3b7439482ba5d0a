"""The encoding of prompts, made in the forward that fills their caches.

Hooks take the hidden states of the rows that are wanted, and of no others. So a prompt is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    def joined(self, layers: Sequence[int]) -> torch.Tensor:
        """Return the states [rows, width of all layers] of some layers, in this order."""
        return torch.cat([self._taken[layer] for layer in layers], dim=1)


class Encoder:
    """A projector, and the model of transformers whose hidden states it reads."""

    def __init__(self, model: Any, weights: ProjectorWeights) -> None:
        """Take a causal language model; raises ModelError if the projector is of another one."""
        weights.check_cloud(model.config, model.config.model_type)
        base = model.base_model
        self._base = model.model if base is model else base  # Gemma 3 names none
        self._layers = weights.layers
        self._projector = weights.module(model.device)
        self.width = weights.width

    @contextmanager
    def watching(self, rows: Sequence[int]) -> Iterator[States]:
        """Take the hidden states of these rows of the forward that runs in this context."""
        states = States(torch.tensor([*rows], device=self._base.device))
        hooks = [self._watch(layer, states) for layer in {*self._layers}] if rows else []
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, layer: int, states: States) -> Any:
        """Let a forward report the states of a layer, and return the hook."""
        blocks = self._base.h if hasattr(self._base, "h") else self._base.layers  # GPT-2 has its own name for them
        if layer == len(blocks):  # after the last norm
            return self._base.register_forward_hook(
                lambda module, args, output: states.take(layer, output.last_hidden_state)
            )

        def before(module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            states.take(layer, args[0] if args else named["hidden_states"])

        return blocks[layer].register_forward_pre_hook(before, with_kwargs=True)

    def encodings(self, states: States, spans: Sequence[tuple[int, int]]) -> list[Encoding]:
        """Return the encodings of several texts; each has a start and a number of the rows that were taken, in order.

        The caller is in inference mode.
        """
        if not any(count for _, count in spans):
            return [replace(Encoding.empty(self.width), start=start) for start, _ in spans]
        rows = self._projector(states.joined(self._layers)).cpu()
        parts = rows.split([count for _, count in spans])
        return [Encoding.of(part.numpy(), start) for part, (start, _) in zip(parts, spans, strict=True)]
