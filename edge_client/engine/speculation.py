"""The device's model and its draft tree, kept in step with the text.

While the cloud reads, the device drafts branches where an override is likely. If the override begins such a branch, its
continuation is drafted already, and in the model's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.clock import Clock
from chaperone_common.session import Audited, Committed, DeviceSession, Drafted, Retracted, SessionEvent
from chaperone_common.types import Proposal
from edge_client.planner import DraftToken, Estimates
from edge_client.planner.draft_tree import Branch, DraftTree
from edge_client.ports import TEXT_ROW, Corrections, Drafter


class Speculation:
    """Drafts the text and its branches, and teaches the estimates how long drafting takes and how often it is right."""

    def __init__(
        self,
        session: DeviceSession,
        drafter: Drafter | None,
        estimates: Estimates,
        clock: Clock,
        corrections: Corrections | None = None,
    ) -> None:
        self.drafter = drafter
        self.tree = DraftTree(
            drafter.branches if drafter is not None else 0,
            session.proposal,
            limit=session.limit,
            eos_token_ids=session.eos_token_ids,
            risk=estimates.risks.corrected,
            hit=lambda: estimates.hit,
        )
        self._session = session
        self._estimates = estimates
        self._clock = clock
        self._corrections = corrections
        self._next_proposal: tuple[int, Proposal] | None = None  # with a position that the text has not reached
        self._adopted_branch: Branch | None = None  # the branch that has just become the text

    @property
    def fed_length(self) -> int:
        """Tokens of the text that the model was fed."""
        return self.drafter.length if self.drafter is not None else 0

    async def feed(self, token_ids: Sequence[int]) -> None:
        """Feed more of the text to the model, and keep its proposal for the next token."""
        assert self.drafter is not None, "the planner drafts only where there is a model"
        proposal = await self.drafter.step(token_ids)
        self._next_proposal = (self.drafter.length, proposal)

    async def catch_up(self) -> None:
        """Feed the tokens that the cloud has written. Their one proposal stands for as many tokens in the estimates."""
        unread = self._session.text[self.fed_length :]
        await self.feed(unread)
        assert self._next_proposal is not None
        self._estimates.risks.drafted(self._next_proposal[1].signal.risk, tokens=len(unread))

    async def draft(self, action: DraftToken) -> Proposal | None:
        """Draft one token of the text, of branches, or of both; return the text's proposal, if there is one."""
        drafter = self.drafter
        assert drafter is not None, "the planner drafts only where there is a model"
        unread = self._session.text[drafter.length :]
        if action.text and len(unread) != 1:  # several after a takeover, none after `feed`
            if unread:
                await self.feed(unread)
            assert self._next_proposal is not None, "feeding the whole text leaves a proposal"
            return self._next_proposal[1]
        rows = {TEXT_ROW: unread[0]} if action.text else {}
        starts = {self._row(start): start for start in action.branches}
        rows |= {row: self.tree.branches[start].unread for row, start in starts.items()}
        began = self._clock.now()
        proposals = await drafter.step_rows(rows)
        self._estimates.drafted(len(rows), (self._clock.now() - began) * 1e3)
        for row, start in starts.items():
            self.tree.grow(start, proposals[row])
        return proposals.get(TEXT_ROW)

    def read_again(self, start: int) -> None:
        """Forget what the model has read from position `start` on: it is about to read it in another way."""
        if self.drafter is not None:
            self.drafter.rewind(min(self.drafter.length, start))
        self.tree.drop_branches()
        self._next_proposal = None

    def take_adopted(self) -> list[Proposal]:
        """Return the proposals after the end of the text, from the branch that the cloud has just made the text."""
        session = self._session
        branch, self._adopted_branch = self._adopted_branch, None
        if branch is None or self.drafter is None:
            return []
        agreed = branch.agreed(session.text)
        if session.finish_reason is not None or len(session.text) != branch.start + 1 + agreed:
            self.drafter.rewind(min(self.drafter.length, branch.start + 1 + agreed))  # the text continued differently
            return []
        return branch.proposals[agreed:]

    def follow(self, event: SessionEvent) -> None:
        """Keep model and tree in step with the text."""
        match event:
            case Drafted(position, _, signal):
                if position >= self._session.final_length:
                    self.tree.add(position)
                self._estimates.risks.drafted(signal.risk)
            case Retracted(position):
                if self.drafter is not None:
                    self.drafter.rewind(min(self.drafter.length, position))
                if self._next_proposal is not None and self._next_proposal[0] > position:
                    self._next_proposal = None
            case Committed():
                self._learn(event)
                if event.replaced is not None:
                    self._cut_back(event, event.replaced)
                self.tree.settle(event.position + 1)
            case Audited():
                pass

    def close(self) -> None:
        """Release the model's caches."""
        if self.drafter is not None:
            self.drafter.close()

    def _row(self, start: int) -> int:
        """Return the row of the branch that begins at `start`; fork a new branch off the text if there is none."""
        branch = self.tree.branches.get(start)
        if branch is None:
            branch = self.tree.plant(start)
            assert self.drafter is not None
            self.drafter.fork(branch.row, start)
        return branch.row

    def _learn(self, event: Committed) -> None:
        """Teach the estimates, and the memory of corrections, by a final token."""
        proposal = event.proposal or self._unwritten(event.position)
        judged = event.origin.judged
        overridden = judged and proposal is not None and proposal.token_id != event.token_id
        if proposal is not None and judged:
            self._estimates.risks.judged(proposal.signal.risk, agreed=not overridden)
            if self._corrections is not None:
                self._corrections.judged(self._session.text, event.position, proposal, event.token_id)

    def _unwritten(self, position: int) -> Proposal | None:
        """Return the model's proposal for a position that the cloud wrote before the device did, if it made one."""
        if self._next_proposal is not None and self._next_proposal[0] == position:
            return self._next_proposal[1]
        branch = self._adopted_branch
        if branch is None:
            return None
        index = position - branch.start - 1
        found = branch.agreed(self._session.text[:position]) == index < len(branch.proposals)
        return branch.proposals[index] if found else None

    def _cut_back(self, event: Committed, replaced: Proposal) -> None:
        """Drop the text's proposals from an override on. A branch that begins with the override takes their place."""
        branch = self.tree.take(event.position, event.token_id)
        self.tree.cut(event.position)
        hit = replaced.runner_up == event.token_id
        self._estimates.overridden(by_runner_up=hit, foreseen_tokens=len(branch.proposals) if branch else None)
        if branch is not None and branch.proposals and self.drafter is not None:
            self.drafter.adopt(branch.row)
            self._adopted_branch = branch
