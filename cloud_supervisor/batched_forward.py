"""One forward for the tokens of many sequences, each with keys and values of its own.

All tokens stand in one row, so that the weights are read once and each linear layer is one product, whatever the
lengths of the sequences; only attention goes from sequence to sequence. transformers gives new keys and values to the
cache that it was handed, and what the cache returns to the attention function of the model's configuration: here these
are `Sequences` and `attend`, and nothing in between looks at what they pass on. Each sequence is attended to by
transformers' own function for `sdpa`, as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "chaperone_sequences"  # the name by which a model's configuration knows `attend`


class Held(NamedTuple):
    """Keys or values of each sequence, [1, heads, tokens, head_dim], those just fed included."""

    tensors: list[torch.Tensor]
    fed: list[int]  # tokens just fed
    masks: list[torch.Tensor | None]  # [1, 1, fed, tokens] bool; None where all tokens before, and itself, are seen


class Sequences:
    """The caches of some sequences as the one cache that a forward writes to."""

    def __init__(self, caches: Sequence[Any], fed: Sequence[int], masks: Sequence[torch.Tensor | None]) -> None:
        self._caches = caches
        self._fed = [*fed]
        self._masks = [*masks]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Held, Held]:
        """Give each sequence its part of the row, [1, heads, all tokens fed, head_dim]."""
        parts = zip(self._caches, keys.split(self._fed, dim=2), values.split(self._fed, dim=2), strict=True)
        held = [cache.update(key, value, layer) for cache, key, value in parts]
        return (
            Held([key for key, _ in held], self._fed, self._masks),
            Held([value for _, value in held], self._fed, self._masks),
        )


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: over each sequence's own keys and values."""
    if not isinstance(key, Held):
        output: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
        return output, None
    parts = zip(query.split(key.fed, dim=2), key.tensors, value.tensors, key.masks, strict=True)
    outputs = [sdpa_attention_forward(module, *part, **kwargs)[0] for part in parts]  # [1, fed, heads, head_dim] each
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
