"""A draft model without a model: the twin of `FakeTarget`, behind the device's port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.errors import InvalidRequest, PromptTooLong
from edge_client.ports import DraftStep
from tests.contract.fake_target import FakeTarget


class FakeDraft:
    """Obeys the contract of `DraftModel`; its logits are those of a `FakeTarget` after the same tokens.

    Two of them, or one and a `FakeTarget` on the cloud's side, agree as their seeds and disturbances say. A step
    takes `step_s` seconds of the event loop's time, which may be virtual.
    """

    def __init__(self, source: FakeTarget | None = None, *, step_s: float = 0.0) -> None:
        self._source = source or FakeTarget()
        self._step_s = step_s
        self._token_ids: list[int] = []
        self._stepping = False
        self._closed = False
        self.steps = 0

    @property
    def length(self) -> int:
        return len(self._token_ids)

    @property
    def context_tokens(self) -> int:
        return self._source.context_tokens

    def rewind(self, length: int) -> None:
        if self._stepping:
            raise RuntimeError("rewind: a step is under way; await or cancel it first")
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind: {length} is outside [0, {self.length}], the tokens fed")
        del self._token_ids[length:]

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        self._check(token_ids)
        self._stepping = True
        try:
            await asyncio.sleep(self._step_s)
        finally:
            self._stepping = False
        self._token_ids.extend(token_ids)
        self.steps += 1
        return DraftStep(self._source.logits(self._token_ids), None)

    def close(self) -> None:
        self._closed = True
        self._token_ids = []

    def _check(self, token_ids: Sequence[int]) -> None:
        if self._closed or self._stepping:
            raise RuntimeError(f"step: the sequence is {'closed' if self._closed else 'in another step'}")
        if not token_ids:
            raise ValueError("step: no tokens; feed at least one")
        needed = self.length + len(token_ids)
        if needed > self.context_tokens:
            raise PromptTooLong(f"prompt: {needed} tokens, but the device's model holds {self.context_tokens}")
        if min(token_ids) < 0 or max(token_ids) >= self._source.vocabulary_size:
            raise InvalidRequest(f"prompt: a token id is outside [0, {self._source.vocabulary_size})")
