"""Short constructors for requests of a forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import ForwardRequest, KvCache
from tests.support.fakes.target import KV_BYTES_PER_TOKEN, FakeCache


def feeding(
    cache: KvCache,
    token_ids: Sequence[int],
    num_choices: int,
    sampling: SamplingParams,
    branches: Sequence[BranchToken] = (),
) -> ForwardRequest:
    """Return a request that feeds these tokens after the cached ones."""
    return ForwardRequest(cache, TokenTree(tuple(token_ids), tuple(branches), cache.length), num_choices, sampling)


def bytes_held(cache: KvCache) -> int:
    """Return the memory of a cache of the fake or of torch; torch frees cropped tokens at the next forward."""
    if isinstance(cache, FakeCache):
        return cache.length * KV_BYTES_PER_TOKEN
    layers = cast(Any, cache).layers.layers
    tensors = (tensor for layer in layers if layer.is_initialized for tensor in (layer.keys, layer.values))
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
