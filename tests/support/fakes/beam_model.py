"""A small model of beams without a model: a `FakeTarget` as the device's port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chaperone_common.token_tree import common_prefix
from tests.support.fakes.target import FakeTarget


class FakeBeamModel:
    """Obeys the contract of `BeamModel`, and notes what it reads.

    A forward reads a token of each text, and takes time of the event loop, which may be virtual.
    """

    def __init__(self, source: FakeTarget | None = None, *, forward_ms: float = 0.0, row_ms: float = 0.0) -> None:
        """Take `forward_ms` + (n - 1) * `row_ms` for a forward of n texts."""
        self.model = source or FakeTarget()
        self._forward_ms, self._row_ms = forward_ms, row_ms
        self._held: list[tuple[int, ...]] = [()]
        self.read: list[list[tuple[int, ...]]] = []
        self.closed = False

    @property
    def context_tokens(self) -> int:
        return self.model.context_tokens

    async def logits(self, texts: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        assert len(set(texts)) == len(texts), "no text is read twice"
        self.read.append([*texts])
        if self._forward_ms:
            unread = [len(text) - max(common_prefix(text[:-1], held) for held in self._held) for text in texts]
            rows = [sum(left >= step for left in unread) for step in range(1, max(unread) + 1)]
            # A prompt, and much that the cloud has written alone, is read in chunks.
            forwards = [self._forward_ms + (count - 1) * self._row_ms for count in rows]
            await asyncio.sleep(
                sum(forwards if len(rows) < 4 else [*forwards[:1], self._forward_ms * len(texts)]) / 1e3
            )
            self._held = [*texts]
        return [self.model.logits(text) for text in texts]

    def close(self) -> None:
        self.closed = True
