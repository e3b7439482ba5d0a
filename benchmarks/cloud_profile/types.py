"""Values of a cloud profile: a decoder's shape, the time of one kind of step, and the plan of a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of the Qwen2 kind, as in the `config.json` that Qwen published."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary_size: int
    tied: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights, embeddings and biases included."""
        h, kv = self.hidden_size, self.hidden_size // self.heads * self.kv_heads
        attention = 2 * h * h + 2 * h * kv + h + 2 * kv  # biases on q, k and v
        layer = attention + 3 * h * self.intermediate_size + 2 * h
        return (1 if self.tied else 2) * self.vocabulary_size * h + self.layers * layer + h


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of step; times are in milliseconds."""

    shape: str
    dtype: str
    batch: int
    context: int  # tokens that each sequence holds before the step
    tokens: int  # that each sequence reads in it
    median_ms: float
    p10: float
    p90: float
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to measure, and the budget for them."""

    shapes: Mapping[str, Shape]
    batches: Sequence[int]
    contexts: Sequence[int]
    tokens: Sequence[int]
    repeats: int
    budget_s: float
    dtype: str = "bfloat16"
