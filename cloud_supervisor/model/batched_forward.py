"""One forward for the tokens of many sequences, each with keys and values of its own.

All tokens are in one row, so that the weights are read once, and each linear layer is one product for all lengths. Only
attention runs once per sequence. transformers passes new keys and values to its cache, and the cache's return value to
the attention function of the model's configuration. Here these are `torch_kv.Sequences` and `attend`. transformers does
not look at the values that they exchange; a test and a pinned version guard this.

The caches keep the tokens of all layers whole. A layer with a sliding window passes the window's width to its attention
function, and the layer's own mask hides the tokens outside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from chaperone_common.token_tree import TokenTree
from cloud_supervisor.model import exact_attention

ATTENTION = "chaperone_sequences"  # the name of `attend` in a model's configuration
EXACT_ATTENTION = "chaperone_exact"  # of `attend_exactly`


class View:
    """The tokens that each token fed may see: its path, within the window of the layer."""

    def __init__(self, tree: TokenTree, device: torch.device) -> None:
        """Feed `tree` after the `tree.start` tokens that the cache holds."""
        self.positions = [*range(tree.end), *tree.positions]  # of all tokens, by index
        self.fed = tree.size - tree.start
        self._tree = tree
        self._device = device
        self._masks: dict[int | None, torch.Tensor | None] = {}  # by the window's width; made when first needed
        self._hidden: dict[int | None, torch.Tensor | None] = {}

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Return a mask [1, 1, fed, held + fed] bool as `sdpa` takes it, or None where `sdpa` needs none.

        `window` is the number of tokens that the layer sees, a token itself included. None means the whole path.
        """
        if window is not None and window > max(self.positions):
            window = None
        if window not in self._masks:
            self._masks[window] = self._make(window)
        return self._masks[window]

    def hidden(self, window: int | None) -> torch.Tensor | None:
        """Return a mask [fed, held + fed] bool of what each token fed may not see, or None if each sees everything."""
        if window not in self._hidden:
            hidden = ~self._seen(window)
            self._hidden[window] = hidden.to(self._device) if hidden.any() else None
        return self._hidden[window]

    def _make(self, window: int | None) -> torch.Tensor | None:
        if window is None and not self._tree.branches and (not self._tree.start or self.fed == 1):
            return None
        return self._seen(window).to(self._device)[None, None]

    def _seen(self, window: int | None) -> torch.Tensor:
        """Return which tokens each token fed may see: [fed, held + fed] bool, on the processor."""
        seen = torch.from_numpy(self._tree.visible())
        if window is not None:
            positions = torch.tensor(self.positions)
            seen &= positions > positions[self._tree.start :, None] - window
        return seen


class Held(NamedTuple):
    """Keys or values of each sequence, [1, heads, tokens, head_dim], those of the tokens just fed included."""

    tensors: list[torch.Tensor]
    views: list[View]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Held,
    value: Held,
    attention_mask: Any,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to each sequence's own keys and values, as if it were alone: an attention function of transformers.

    A text's first tokens go to transformers' own function for `sdpa`, which knows their causal mask. Later ones are
    fed as rows of their group's head, and scores with a soft cap are computed here: `sdpa` does not support them.
    `is_causal` is ignored: models conclude it from the mask that they get, which belongs to no sequence.
    """
    outputs = []  # [1, fed, heads, head_dim] each
    queries = query.split([view.fed for view in key.views], dim=2)
    for fed, keys, values, view in zip(queries, key.tensors, value.tensors, key.views, strict=True):
        mask = view.mask(sliding_window)
        if softcap is not None:
            outputs.append(_attend_capped(fed, keys, values, mask, softcap, kwargs["scaling"]))
        elif mask is None and view.fed > 1:
            outputs.append(sdpa_attention_forward(module, fed, keys, values, mask, **kwargs)[0])
        else:
            outputs.append(_attend_in_groups(fed, keys, values, mask, kwargs.get("scaling")))
    return torch.cat(outputs, dim=1), None


def _attend_in_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attend with the query heads that share a key head as further rows of it.

    transformers copies keys and values for each query head, which takes 13 times as long for one token in bfloat16,
    and twice for 8.
    """
    _, heads, fed, width = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(1, key.shape[1], groups * fed, width)
    mask = mask if mask is None else mask.repeat(1, 1, groups, 1)
    found = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(1, heads, fed, value.shape[-1]).transpose(1, 2)


def _attend_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    softcap: float,
    scaling: float,
) -> torch.Tensor:
    """Attend with scores limited to `softcap`, as Gemma 2 does."""
    fed, tokens, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    if mask is None:
        mask = torch.ones(fed, tokens, dtype=torch.bool, device=query.device).tril(tokens - fed)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def attend_exactly(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Held,
    value: Held,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `attend` does, with `exact_attention`, whose keys and values `Sequences` has rounded."""
    outputs = []  # [1, fed, heads, head_dim] each
    queries = exact_attention.round_keys(query)[0].split([view.fed for view in key.views], dim=1)
    for fed, keys, values, view in zip(queries, key.tensors, value.tensors, key.views, strict=True):
        attended = exact_attention.attention(
            fed,
            keys[0],
            values[0],
            view.hidden(sliding_window),
            scaling=scaling or fed.shape[2] ** -0.5,
            softcap=softcap,
        )
        outputs.append(attended.transpose(0, 1)[None])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION, attend)
AttentionInterface.register(EXACT_ATTENTION, attend_exactly)
