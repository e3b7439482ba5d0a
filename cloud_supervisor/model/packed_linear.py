"""Linear layers with weights in oneDNN's fastest memory layout, for float32 on a processor.

torch uses float32 weights in the checkpoint's layout, which is slow for verifications, at 2 to 64 tokens. On a
processor with AVX2 alone, packed weights read 8 to 16 tokens of a 1.5B model in two thirds of the time. The two private
operators are those that torch's own compiler uses for a varying number of tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

_TOKENS = 16  # of the forward that the layout is optimised for; it works for any number


class PackedLinear(nn.Module):
    """The same function as `nn.Linear`, up to rounding; for inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TOKENS)
        self.bias = linear.bias

    def forward(self, activations: Tensor) -> Tensor:  # [..., in] -> [..., out], float32
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(activations, self.weight, self.bias, "none", [], "")
        return packed


def pack(model: nn.Module) -> None:
    """Replace all linear layers of a float32 model on the processor, one by one, so that few weights are held twice.

    A weight that another layer shares stays there, too: the output matrix may be the embedding. The model must not be a
    linear layer itself, nor name one twice. Without oneDNN nothing is changed.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for name, kind in [(name, type(layer)) for name, layer in model.named_modules()]:
        if kind is nn.Linear:
            model.set_submodule(name, PackedLinear(cast(nn.Linear, model.get_submodule(name))), strict=True)
