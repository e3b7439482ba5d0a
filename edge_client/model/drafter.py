"""From logits to proposals: the small model's choice, with the noise that the cloud shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chaperone_common.logprobs import measure as measure_logprobs
from chaperone_common.sampling import choose, softmax
from chaperone_common.types import Proposal, SamplingParams
from edge_client.model.uncertainty import measure
from edge_client.ports import DraftModel, DraftStep


class ChoosingDrafter:
    """A `Drafter` over a `DraftModel`. Subclasses may override `propose`; give them to `EdgeClient(drafter=...)`."""

    def __init__(self, model: DraftModel, sampling: SamplingParams) -> None:
        self._model = model
        self._sampling = sampling
        self.top_logprobs: int | None = None
        # Its rows are those of the model.
        self.rewind = model.rewind
        self.fork = model.fork
        self.adopt = model.adopt
        self.close = model.close

    @property
    def length(self) -> int:
        return self._model.length

    @property
    def branches(self) -> int:
        return self._model.branches

    def propose(self, step: DraftStep) -> Proposal:
        """Return the model's choice at the position of a step, and how uncertain it is."""
        soft = softmax(step.logits, self._sampling.temperature)
        choice = choose(soft, self._sampling, step.position)
        return Proposal(choice.token_id, measure(soft, choice), choice.runner_up)

    async def step(self, token_ids: Sequence[int]) -> Proposal:
        return self._measured(await self._model.step(token_ids))

    async def read(self, token_ids: Sequence[int]) -> list[Proposal]:
        """Feed the text, and return the proposal after each token."""
        return [self.propose(step) async for step in self._model.read(token_ids)]

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, Proposal]:
        steps = await self._model.step_rows(token_ids)
        return {row: self._measured(step) for row, step in steps.items()}

    def _measured(self, step: DraftStep) -> Proposal:
        """Return the proposal of a step, with log-probabilities if they are wanted."""
        proposal = self.propose(step)
        if self.top_logprobs is None:
            return proposal
        return replace(proposal, logprobs=measure_logprobs(step.logits, proposal.token_id, self.top_logprobs))
