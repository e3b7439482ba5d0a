"""Short constructors for requests of a forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_kv import TorchKv
from cloud_supervisor.model.torch_model import TorchModel
from tests.support.fakes.target import KV_BYTES_PER_TOKEN


def feeding(
    cache: SlotCache,
    token_ids: Sequence[int],
    num_choices: int,
    sampling: SamplingParams,
    branches: Sequence[BranchToken] = (),
) -> ForwardRequest:
    """Return a request that feeds these tokens after the cached ones."""
    return ForwardRequest(cache, TokenTree(tuple(token_ids), tuple(branches), cache.length), num_choices, sampling)


def logits_of(model: TorchModel, text: Sequence[int], cuts: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits after each token of a text, which is read in spans of these lengths."""
    cache, rows, at = model.kv_pool.new_cache(), [], 0
    for length in cuts:
        rows.append(model.scores(feeding(cache, text[at : at + length], length, SamplingParams())))
        at += length
    return np.concatenate(rows)


def bytes_held(cache: SlotCache) -> int:
    """Return the memory of the tokens of a cache of the fake or of torch."""
    if isinstance(cache.pool, TorchKv):
        tensors = [tensor for layer in cache.pool.layers for tensor in layer]
        return cache.length * sum(tensor[0].nbytes for tensor in tensors)
    return cache.length * KV_BYTES_PER_TOKEN
