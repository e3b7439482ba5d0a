"""A drafter that proposes remembered corrections in place of the small model's own choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chaperone_common.types import Proposal
from edge_client.model.corrections import CorrectionMemory
from edge_client.ports import TEXT_ROW, Drafter


class AdaptedDrafter:
    """A `Drafter` over another one. Only mode `exact` may use it: there the cloud checks each token.

    It keeps the tokens of each row, since a correction depends on the tokens before it.
    """

    def __init__(self, drafter: Drafter, corrections: CorrectionMemory, held: Sequence[int]) -> None:
        """Adapt `drafter`, whose text holds the tokens `held` already."""
        self._drafter = drafter
        self._corrections = corrections
        self._rows = {TEXT_ROW: [*held]}
        self.close = drafter.close

    @property
    def top_logprobs(self) -> int | None:
        return self._drafter.top_logprobs

    @top_logprobs.setter
    def top_logprobs(self, count: int | None) -> None:
        self._drafter.top_logprobs = count

    @property
    def length(self) -> int:
        return self._drafter.length

    @property
    def branches(self) -> int:
        return self._drafter.branches

    def rewind(self, length: int) -> None:
        self._drafter.rewind(length)
        del self._rows[TEXT_ROW][length:]

    def fork(self, branch: int, length: int) -> None:
        self._drafter.fork(branch, length)
        self._rows[branch] = self._rows[TEXT_ROW][:length]

    def adopt(self, branch: int) -> None:
        self._drafter.adopt(branch)
        self._rows[TEXT_ROW] = self._rows.pop(branch)

    async def step(self, token_ids: Sequence[int]) -> Proposal:
        return self._adapted(TEXT_ROW, token_ids, await self._drafter.step(token_ids))

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, Proposal]:
        proposals = await self._drafter.step_rows(token_ids)
        return {row: self._adapted(row, (token_ids[row],), proposal) for row, proposal in proposals.items()}

    def _adapted(self, row: int, fed: Sequence[int], proposal: Proposal) -> Proposal:
        """Return the proposal after the tokens that a row was fed. A step that was cancelled has fed none."""
        text = self._rows[row]
        text.extend(fed)
        return self._corrections.adapted(text, proposal)
