"""A draft model without a model: a `FakeTarget` as the device's port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from chaperone_common.errors import InvalidRequest, PromptTooLong
from edge_client.ports import TEXT_ROW, DraftStep
from tests.support.fakes.target import FakeTarget


class FakeDraft:
    """Obeys the contract of `DraftModel`; its logits are those of a `FakeTarget` after the same tokens.

    The seeds and disturbances of device and cloud determine how often the two agree. A step
    takes `step_s` seconds of the event loop's time, which may be virtual.
    """

    def __init__(self, source: FakeTarget | None = None, *, step_s: float = 0.0, branches: int = 0) -> None:
        self._source = source or FakeTarget()
        self._step_s = step_s
        self._branches = branches
        self._rows: dict[int, list[int]] = {TEXT_ROW: []}
        self._stepping = False
        self._closed = False
        self.steps = 0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._rows[TEXT_ROW])

    @property
    def length(self) -> int:
        return len(self._rows[TEXT_ROW])

    @property
    def branches(self) -> int:
        return self._branches

    @property
    def context_tokens(self) -> int:
        return self._source.context_tokens

    def rewind(self, length: int) -> None:
        if self._stepping:
            raise RuntimeError("rewind: a step is under way; await or cancel it first")
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind: {length} is outside [0, {self.length}], the tokens fed")
        del self._rows[TEXT_ROW][length:]

    def fork(self, branch: int, length: int) -> None:
        self._check_idle("fork")
        if not 1 <= branch <= self._branches:
            raise ValueError(f"fork: there is no branch {branch}; the sequence has {self._branches}, numbered from 1")
        if not 0 <= length <= self.length:
            raise ValueError(f"fork: {length} is outside [0, {self.length}], the text's tokens")
        self._rows[branch] = self._rows[TEXT_ROW][:length]

    def adopt(self, branch: int) -> None:
        self._check_idle("adopt")
        if branch == TEXT_ROW:
            raise ValueError(f"adopt: row {TEXT_ROW} is the text itself; branches are numbered from 1")
        self._check_forked("adopt", branch)
        self._rows[TEXT_ROW] = self._rows.pop(branch)

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        return (await self._feed("step", {TEXT_ROW: token_ids}))[TEXT_ROW]

    async def read(self, token_ids: Sequence[int]) -> AsyncIterator[DraftStep]:
        for token_id in token_ids:
            yield (await self._feed("read", {TEXT_ROW: (token_id,)}))[TEXT_ROW]

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, DraftStep]:
        return await self._feed("step_rows", {row: (token_id,) for row, token_id in token_ids.items()})

    def close(self) -> None:
        self._closed = True
        self._rows = {TEXT_ROW: []}

    async def _feed(self, action: str, token_ids: Mapping[int, Sequence[int]]) -> dict[int, DraftStep]:
        self._check_idle(action)
        if not token_ids or not all(token_ids.values()):
            raise ValueError(f"{action}: no tokens; feed at least one")
        for row, fed in token_ids.items():
            self._check_forked(action, row)
            self._check_tokens(len(self._rows[row]), fed)
        self._stepping = True
        try:
            await asyncio.sleep(self._step_s)
        finally:
            self._stepping = False
        self.steps += 1
        for row, fed in token_ids.items():
            self._rows[row].extend(fed)
        return {row: DraftStep(self._source.logits(self._rows[row]), len(self._rows[row])) for row in token_ids}

    def _check_idle(self, action: str) -> None:
        if self._closed or self._stepping:
            raise RuntimeError(f"{action}: the sequence is {'closed' if self._closed else 'in another step'}")

    def _check_forked(self, action: str, row: int) -> None:
        if row not in self._rows:
            raise ValueError(f"{action}: branch {row} is not forked, or was adopted; fork it first")

    def _check_tokens(self, start: int, token_ids: Sequence[int]) -> None:
        needed = start + len(token_ids)
        if needed > self.context_tokens:
            raise PromptTooLong(f"prompt: {needed} tokens, but the device's model holds {self.context_tokens}")
        if min(token_ids) < 0 or max(token_ids) >= self._source.vocabulary_size:
            raise InvalidRequest(f"prompt: a token id is outside [0, {self._source.vocabulary_size})")
