"""A model with weights and activations of 8 bits, whose rows do not depend on how many rows are read together.

Sums of integers are exact in any order. So a row's result is the same to the last bit, whether the row is read alone or
with others, with any kernel. Each output of the weight has a scale, and each row of the activations. The product is
FBGEMM's, which torch contains for processors of x86. Where these have no VNNI, it adds pairs of products in 16 bits;
hence the range of the numbers.

A few channels of a language model's activations are much larger than the others, and would leave them few of the steps
of a row's scale. So weights and activations are rotated by a Hadamard matrix first, which spreads each channel over a
block and leaves the product as it was (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

_MOST = 90  # of a weight, and of an activation: (2 x 90) x 90 x 2 fits into 16 bits with a sign
_ZERO_POINT = _MOST  # of activations, which FBGEMM stores without sign
_MOST_BLOCK = 128  # channels that are mixed; a power of two
_MOST_ROTATED = 2**15  # of an activation before the rotation: float32 adds 128 of them exactly, in any order
_LEAST = 1e-12  # of a scale, for rows of zeros
_ENGINE = "fbgemm"
_CONV1D = ("transformers.pytorch_utils", "Conv1D")  # GPT-2's linear layers
_ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")


def available() -> bool:
    """Return whether this processor and this build of torch have the product."""
    return _ENGINE in torch.backends.quantized.supported_engines


class Rotation:
    """Rotates activations, and remembers the last ones: some layers in a row read the same.

    Activations must not change in place between two such layers; models of transformers never do that.
    """

    def __init__(self) -> None:
        self._matrices: dict[int, Tensor] = {}
        self._seen: Tensor | None = None
        self._found: tuple[Tensor, Tensor] | None = None

    def of(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated activations [..., channels] in steps of their row, and the size of a step [..., 1]."""
        if self._found is None or activations is not self._seen:
            fine = _steps(activations, _MOST_ROTATED)
            mixed = self._mixed((activations / fine).round_())
            steps = _steps(mixed, _MOST)
            self._seen, self._found = activations, (mixed.div_(steps), steps.mul_(fine))
        return self._found

    def weight(self, weight: Tensor) -> Tensor:
        """Return a weight [out, in] whose product with rotated activations is the product of those that were not."""
        return self._mixed(weight) / _block(weight.shape[-1])

    def _mixed(self, numbers: Tensor) -> Tensor:
        block = _block(numbers.shape[-1])
        if block not in self._matrices:
            self._matrices[block] = _hadamard(block)
        return (numbers.reshape(-1, block) @ self._matrices[block]).view(numbers.shape)


class Int8Linear(nn.Module):
    """The function of `nn.Linear`, up to quantisation; for inference only."""

    def __init__(self, linear: nn.Linear, rotation: Rotation) -> None:
        super().__init__()
        self._rotation = rotation
        weight = rotation.weight(linear.weight.detach().float())
        steps = _steps(weight, _MOST)
        self.packed = _pack((weight / steps).round_().to(torch.int8), steps[:, 0])
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, activations: Tensor) -> Tensor:  # [..., in] -> [..., out], float32
        rotated, steps = self._rotation.of(activations)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rotated, 1.0, _ZERO_POINT, self.packed
        )
        product = cast(Tensor, product).mul_(steps)
        return product if self.bias is None else product.add_(self.bias)


class RowActivation(nn.Module):
    """An activation function, applied to each row alone.

    Kernels compute most numbers of a tensor in vectors and the last ones singly, with other roundings.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, rows: Tensor) -> Tensor:  # [..., rows, channels]
        return torch.cat([self.activation(row) for row in rows.split(1, dim=-2)], dim=-2)


class FloatEmbedding(nn.Module):
    """An embedding that is stored as it is, and looked up in float32."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, token_ids: Tensor) -> Tensor:  # [..., tokens] int64 -> [..., tokens, hidden]
        return cast(Tensor, self.embedding(token_ids)).float()


def quantise(model: Any) -> None:
    """Replace all linear layers of a model of transformers on the processor, one by one; the rest becomes float32.

    Activation functions are applied row by row. The model's embedding keeps its data type, since it is large and only
    looked up.
    """
    embedding, rotation = model.get_input_embeddings(), Rotation()
    for name, kind in [(name, type(layer)) for name, layer in model.named_modules()]:
        layer = model.get_submodule(name)
        if kind is nn.Linear:
            model.set_submodule(name, Int8Linear(layer, rotation), strict=True)
        elif kind.__module__ == _CONV1D[0] and kind.__name__ == _CONV1D[1]:
            model.set_submodule(name, Int8Linear(_linear_of(layer), rotation), strict=True)
        elif kind.__module__ in _ACTIVATIONS:
            model.set_submodule(name, RowActivation(layer), strict=True)
    weight = embedding.weight.detach()
    embedding.weight = None
    model.float()
    embedding.weight = nn.Parameter(weight, requires_grad=False)
    model.set_input_embeddings(FloatEmbedding(embedding))


def _linear_of(layer: Any) -> nn.Linear:
    """Return a layer of GPT-2, whose weight is [in, out], as a linear layer that shares it."""
    linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1], device="meta")
    linear.weight, linear.bias = nn.Parameter(layer.weight.detach().T), layer.bias
    return linear


def _steps(numbers: Tensor, most: int) -> Tensor:
    """Return the size of a step for each row, so that its largest number is `most` steps away from zero."""
    largest: Tensor = torch.linalg.vector_norm(numbers, math.inf, dim=-1, keepdim=True)
    return largest.div_(most).clamp_(min=_LEAST)


def _block(channels: int) -> int:
    """Return the largest power of two that divides the channels, up to the largest block."""
    return math.gcd(channels, _MOST_BLOCK)


def _hadamard(order: int) -> Tensor:
    """Return Sylvester's matrix [order, order] of 1 and -1, which times itself is `order` times the identity."""
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


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
