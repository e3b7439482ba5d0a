"""Shared by the tests of draft models: sizes, input tokens, and the tolerance of logits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_client.ports import DraftModel

CONTEXT_TOKENS = 300
USED_IDS = 60  # every model under test knows at least these


class NewSequence(Protocol):
    def __call__(self, *, branches: int = 0) -> DraftModel: ...


def tokens(seed: int, count: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(USED_IDS) for _ in range(count)]


async def logits_after(sequence: DraftModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return a copy of a step's logits, since the next step may overwrite them."""
    return (await sequence.step(token_ids)).logits.copy()


def close_to(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    """Return whether logits are equal up to rounding.

    Kernels of an int4 model round activations to 8 bits, and differently for each batch shape.
    """
    return bool(np.abs(left - right).max() < 0.1 * right.std())


async def fresh_logits(new_sequence: NewSequence, token_ids: Sequence[int]) -> NDArray[np.float32]:
    return await logits_after(new_sequence(), token_ids)
