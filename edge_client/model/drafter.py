"""From scores to proposals: the small model's choice with the noise that the cloud shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chaperone_common.sampling import choose, softmax
from chaperone_common.types import Proposal, SamplingParams
from edge_client.model.uncertainty import measure
from edge_client.ports import TEXT_ROW, DraftModel, DraftStep


class ChoosingDrafter:
    """A `Drafter` over a `DraftModel`."""

    def __init__(self, model: DraftModel, sampling: SamplingParams) -> None:
        self._model = model
        self._sampling = sampling
        self._branch_lengths: dict[int, int] = {}

    @property
    def length(self) -> int:
        return self._model.length

    @property
    def branches(self) -> int:
        return self._model.branches

    def rewind(self, length: int) -> None:
        self._model.rewind(length)

    def fork(self, branch: int, length: int) -> None:
        self._model.fork(branch, length)
        self._branch_lengths[branch] = length

    def adopt(self, branch: int) -> None:
        self._model.adopt(branch)
        del self._branch_lengths[branch]

    async def step(self, token_ids: Sequence[int]) -> Proposal:
        step = await self._model.step(token_ids)
        return self._propose(step, self._model.length)

    async def read(self, token_ids: Sequence[int]) -> list[Proposal]:
        """Feed the text; what it would write after each token."""
        position = self._model.length
        proposals: list[Proposal] = []
        async for step in self._model.read(token_ids):
            position += 1
            proposals.append(self._propose(step, position))
        return proposals

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, Proposal]:
        steps = await self._model.step_rows(token_ids)
        proposals = {}
        for row, step in steps.items():
            if row == TEXT_ROW:
                proposals[row] = self._propose(step, self._model.length)
            else:
                self._branch_lengths[row] += 1
                proposals[row] = self._propose(step, self._branch_lengths[row])
        return proposals

    def close(self) -> None:
        self._model.close()

    def _propose(self, step: DraftStep, position: int) -> Proposal:
        soft = softmax(step.logits, self._sampling.temperature)
        choice = choose(soft, self._sampling, position)
        return Proposal(choice.token_id, measure(soft, choice), choice.runner_up)
