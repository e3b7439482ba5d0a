"""Linear layers with weights and activations of 8 bits, whose sums do not depend on how many rows are read together.

Sums of integers are exact in any order. So a row's result is the same to the last bit, whether the row is read alone or
with others, with any kernel. Each output of the weight has a scale, and each row of the activations. The weights use
the range of 7 bits: processors without VNNI add pairs of products in 16 bits, which 8 bits would overflow (255 x 127 x
2 > 32767). The product is FBGEMM's, which torch contains for processors of x86.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

_MOST_WEIGHT = 64  # 255 x 64 x 2 fits into 16 bits
_MOST_ACTIVATION = 127
_ZERO_POINT = 128  # of activations, which FBGEMM stores without sign
_LEAST = 1e-12  # of a scale, for rows of zeros
_ENGINE = "fbgemm"


def available() -> bool:
    """Return whether this processor and this build of torch have the product."""
    return _ENGINE in torch.backends.quantized.supported_engines


class Int8Linear(nn.Module):
    """The function of `nn.Linear`, up to quantisation; for inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / _MOST_WEIGHT).clamp(min=_LEAST)
        whole = (weight / scales[:, None]).round().to(torch.int8)
        self.packed = _pack(whole, scales)
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, activations: Tensor) -> Tensor:  # [..., in] -> [..., out], float32
        scales = (activations.abs().amax(dim=-1, keepdim=True) / _MOST_ACTIVATION).clamp_(min=_LEAST)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            activations / scales, 1.0, _ZERO_POINT, self.packed
        )
        product = cast(Tensor, product).mul_(scales)
        return product if self.bias is None else product.add_(self.bias)


class FloatEmbedding(nn.Module):
    """An embedding that is stored as it is, and looked up in float32."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, token_ids: Tensor) -> Tensor:  # [..., tokens] int64 -> [..., tokens, hidden]
        return cast(Tensor, self.embedding(token_ids)).float()


def quantise(model: Any) -> None:
    """Replace all linear layers of a model of transformers on the processor, one by one; the rest becomes float32.

    The model's embedding keeps its data type, since it is large and only looked up.
    """
    embedding = model.get_input_embeddings()
    for name, kind in [(name, type(layer)) for name, layer in model.named_modules()]:
        if kind is nn.Linear:
            model.set_submodule(name, Int8Linear(model.get_submodule(name)), strict=True)
    weight = embedding.weight.detach()
    embedding.weight = None
    model.float()
    embedding.weight = nn.Parameter(weight, requires_grad=False)
    model.set_input_embeddings(FloatEmbedding(embedding))


def _pack(whole: Tensor, scales: Tensor) -> Any:
    with warnings.catch_warnings():
        # torch deprecates tensors of quantised types, in favour of compilers. Its product still takes nothing else.
        warnings.simplefilter("ignore", UserWarning)
        quantised = torch._make_per_channel_quantized_tensor(
            whole, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0
        )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = _ENGINE
    try:
        return torch.ops.quantized.linear_prepack(quantised, None)
    finally:
        torch.backends.quantized.engine = before
