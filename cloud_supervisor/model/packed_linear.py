"""Linear layers whose weights lie in memory as oneDNN reads them fastest; for float32 on a processor.

torch multiplies by a float32 weight as it lies in the checkpoint, and so does badly where a verification lives, at 2 to
64 tokens: on a processor with AVX2 alone, packed weights read 8 to 16 tokens of a 1.5B model in two thirds of the time.
The two operators are those that torch's own compiler packs with where the number of tokens varies.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

_TOKENS = 16  # of a forward, which the packing is chosen for; it serves any number of them


class PackedLinear(nn.Module):
    """What `nn.Linear` computes, up to rounding; for inference alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TOKENS)
        self.bias = linear.bias

    def forward(self, activations: Tensor) -> Tensor:  # [..., in] -> [..., out], float32
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(activations, self.weight, self.bias, "none", [], "")
        return packed


def pack(model: nn.Module) -> None:
    """Replace all linear layers of a float32 model on the processor, one by one, so that few weights are held twice.

    A weight that another layer shares, as an output matrix may be the embedding, stays there, too. The model must not
    be a linear layer itself, nor name one twice. Without oneDNN nothing is changed.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for name, kind in [(name, type(layer)) for name, layer in model.named_modules()]:
        if kind is nn.Linear:
            model.set_submodule(name, PackedLinear(cast(nn.Linear, model.get_submodule(name))), strict=True)
