"""Keys and values of all sequences in one preallocated block of memory, on torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cloud_supervisor.kv.slots import SlotCache, SlotPool
from cloud_supervisor.model.batched_forward import Held, View
from cloud_supervisor.model.exact_attention import round_keys, round_values


class TorchKv(SlotPool):
    """A pool whose slots hold a token's keys and values in all layers.

    Each layer's memory is reserved as a whole when the first forward writes to it. On a processor the system provides
    it page by page, as slots are used for the first time.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values, [slots, heads, head_dim]

    @property
    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The keys and values of the layers that were written to."""
        return [*self._layers.values()]

    def layer(self, index: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a layer; those of one forward are `like` [1, heads, tokens, head_dim]."""
        if index not in self._layers:
            shape = (self.capacity, like.shape[1], like.shape[3])
            keys = torch.empty(shape, dtype=like.dtype, device=like.device)
            self._layers[index] = keys, torch.empty_like(keys)
        return self._layers[index]


class _Sequence(NamedTuple):
    slots: torch.Tensor  # [held + fed] int64
    view: View


class Sequences:
    """The caches of several sequences, as the one cache of transformers that a forward writes to."""

    def __init__(
        self, caches: Sequence[SlotCache], views: Sequence[View], device: torch.device, *, exact: bool = False
    ) -> None:
        """Add the entries of the tokens that the views feed; `exact` rounds them for `exact_attention`."""
        pool = caches[0].pool
        assert isinstance(pool, TorchKv)
        self._pool = pool
        self._exact = exact
        self._sequences: list[_Sequence] = []
        fed: list[int] = []
        for cache, view in zip(caches, views, strict=True):
            cache.extend(view.fed)
            fed += cache.slots[-view.fed :]
            self._sequences.append(_Sequence(torch.tensor(cache.slots, device=device), view))
        self._fed = torch.tensor(fed, device=device)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Held, Held]:
        """Write a row, [1, heads, all tokens fed, head_dim], and return each sequence's keys and values."""
        if self._exact:
            keys, values = round_keys(keys), round_values(values)
        held = self._pool.layer(layer, keys)
        found: list[list[torch.Tensor]] = [[], []]
        for stored, new, tensors in zip(held, (keys, values), found, strict=True):
            stored.index_copy_(0, self._fed, new[0].transpose(0, 1))
            for sequence in self._sequences:
                tensors.append(stored.index_select(0, sequence.slots).transpose(0, 1)[None])
        views = [sequence.view for sequence in self._sequences]
        return Held(found[0], views), Held(found[1], views)
