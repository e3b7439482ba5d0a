"""The device's model in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from benchmarks.simulation.costs import DraftCosts
from benchmarks.simulation.script import ScriptedModels
from chaperone_common.types import Proposal
from edge_client.ports import TEXT_ROW


class SimulatedDrafter:
    """A `Drafter` that returns the proposals of scripted models. Its virtual time is that of `costs`."""

    def __init__(self, models: ScriptedModels, costs: DraftCosts, *, measuring_ms: float = 0.0) -> None:
        """Prepare a drafter. `measuring_ms` is added for each proposal, for a signal that costs extra time."""
        self._models = models
        self._measuring_ms = measuring_ms
        self._costs = costs
        self.top_logprobs: int | None = None  # scripts have no probabilities
        self._rows: dict[int, list[int]] = {TEXT_ROW: []}
        self._busy = False
        self._closed = False

    @property
    def length(self) -> int:
        return len(self._rows[TEXT_ROW])

    @property
    def branches(self) -> int:
        return self._costs.branches

    def rewind(self, length: int) -> None:
        self._check_idle("rewind")
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind: {length} is outside [0, {self.length}], the tokens fed")
        del self._rows[TEXT_ROW][length:]

    def fork(self, branch: int, length: int) -> None:
        self._check_idle("fork")
        if not 1 <= branch <= self.branches:
            raise ValueError(f"fork: there is no branch {branch}; there are {self.branches}, from 1")
        if not 0 <= length <= self.length:
            raise ValueError(f"fork: {length} is outside [0, {self.length}], the tokens fed")
        self._rows[branch] = self._rows[TEXT_ROW][:length]

    def adopt(self, branch: int) -> None:
        self._check_idle("adopt")
        if branch == TEXT_ROW or branch not in self._rows:
            raise ValueError(f"adopt: branch {branch} was not forked")
        self._rows[TEXT_ROW] = self._rows.pop(branch)

    async def step(self, token_ids: Sequence[int]) -> Proposal:
        if not token_ids:
            raise ValueError("step: no tokens; feed at least one")
        return (await self._forward({TEXT_ROW: token_ids}, self._costs.chunk_ms(len(token_ids))))[TEXT_ROW]

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, Proposal]:
        missing = token_ids.keys() - self._rows.keys()
        if missing or not token_ids:
            raise ValueError(f"step_rows: rows {sorted(missing)} were not forked" if missing else "step_rows: no rows")
        fed = {row: (token_id,) for row, token_id in token_ids.items()}
        return await self._forward(fed, self._costs.rows_ms(len(fed)))

    def close(self) -> None:
        self._closed = True

    async def _forward(self, fed: Mapping[int, Sequence[int]], cost_ms: float) -> dict[int, Proposal]:
        """Return the proposals after the fed tokens. As with a real model, a cancelled forward has no effect."""
        self._check_idle("step")
        self._busy = True
        texts = {row: [*self._rows[row], *token_ids] for row, token_ids in fed.items()}
        for text in texts.values():
            self._models.expect_proposal(text)
        try:
            await asyncio.sleep((cost_ms + self._measuring_ms * len(fed)) / 1e3)
        finally:
            self._busy = False
        self._rows |= texts
        return {row: self._models.proposal(text) for row, text in texts.items()}

    def _check_idle(self, action: str) -> None:
        if self._closed or self._busy:
            raise RuntimeError(f"{action}: the sequence is {'closed' if self._closed else 'in another step'}")
