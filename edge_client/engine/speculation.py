"""The device's model and its draft tree, kept in step with the text.

While the cloud reads, branches are drafted beside the text where an override is likely. An override that was foreseen
finds its continuation ready, in the model's cache as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.clock import Clock
from chaperone_common.session import Audited, Committed, DeviceSession, Drafted, Retracted, SessionEvent
from chaperone_common.types import Proposal
from edge_client.planner import DraftToken, Estimates
from edge_client.planner.draft_tree import Branch, DraftTree
from edge_client.ports import TEXT_ROW, Drafter


class Speculation:
    """Drafts the text and its branches, and tells the estimates what drafting takes and how often it is right."""

    def __init__(
        self,
        session: DeviceSession,
        drafter: Drafter | None,
        estimates: Estimates,
        clock: Clock,
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
        self._relapses = estimates.override_clusters
        self._clock = clock
        self._next_proposal: tuple[int, Proposal] | None = None  # proposed for a position that the text has not reached
        self._overridden_at: int | None = None  # for the last time
        self._adopted_branch: Branch | None = None  # that the text has just become

    @property
    def fed_length(self) -> int:
        """Tokens of the text that the model has read."""
        return self.drafter.length if self.drafter is not None else 0

    async def feed(self, token_ids: Sequence[int]) -> None:
        """Read more of the text, and keep what comes to mind for the token after it."""
        assert self.drafter is not None, "the planner drafts only where there is a model"
        proposal = await self.drafter.step(token_ids)
        self._next_proposal = (self.drafter.length, proposal)

    async def catch_up(self) -> None:
        """Read what the cloud has written; the one proposal that comes of it stands for as many tokens."""
        unread = self._session.text[self.fed_length :]
        await self.feed(unread)
        assert self._next_proposal is not None
        self._estimates.risks.drafted(self._next_proposal[1].signal.risk, tokens=len(unread))

    async def draft(self, action: DraftToken) -> Proposal | None:
        """Draft one token of the text, of branches, or of both; returns the text's."""
        drafter = self.drafter
        assert drafter is not None, "the planner drafts only where there is a model"
        unread = self._session.text[drafter.length :]
        if action.text and len(unread) != 1:  # behind after a takeover, or ahead after reading on
            if unread:
                await self.feed(unread)
            assert self._next_proposal is not None, "a text that was read to its end has left a proposal"
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

    def take_adopted(self) -> list[Proposal]:
        """What was drafted behind the end of the text, in the branch that the cloud has just made the text."""
        session = self._session
        branch, self._adopted_branch = self._adopted_branch, None
        if branch is None or self.drafter is None:
            return []
        agreed = branch.agreed(session.text)
        if session.finish_reason is not None or len(session.text) != branch.start + 1 + agreed:
            self.drafter.rewind(min(self.drafter.length, branch.start + 1 + agreed))  # the text went on otherwise
            return []
        return branch.proposals[agreed:]

    def follow(self, event: SessionEvent) -> None:
        """Keep model and tree in step with what happens to the text."""
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
        """Give the model's caches back."""
        if self.drafter is not None:
            self.drafter.close()

    def _row(self, start: int) -> int:
        """The row of the branch that begins there; a new one is forked off the text."""
        branch = self.tree.branches.get(start)
        if branch is None:
            branch = self.tree.plant(start)
            assert self.drafter is not None
            self.drafter.fork(branch.row, start)
        return branch.row

    def _learn(self, event: Committed) -> None:
        """What the cloud chose tells how much the risk is worth."""
        proposal = event.proposal or self._unwritten(event.position)
        judged = event.origin.judged
        overridden = judged and proposal is not None and proposal.token_id != event.token_id
        if proposal is not None and judged:
            self._estimates.risks.judged(proposal.signal.risk, agreed=not overridden)
        if self._overridden_at is not None:
            behind = event.position - self._overridden_at
            if proposal is not None:
                self._relapses.settled(behind, overridden=overridden)
            else:
                self._relapses.unknown(behind)
        if overridden:
            self._overridden_at = event.position

    def _unwritten(self, position: int) -> Proposal | None:
        """What the model proposed for a position that the cloud wrote before the device did."""
        if self._next_proposal is not None and self._next_proposal[0] == position:
            return self._next_proposal[1]
        branch = self._adopted_branch
        if branch is None:
            return None
        behind = position - branch.start - 1
        found = branch.agreed(self._session.text[:position]) == behind < len(branch.proposals)
        return branch.proposals[behind] if found else None

    def _cut_back(self, event: Committed, replaced: Proposal) -> None:
        """Void the text from an override on; a branch that begins with the override takes its place."""
        branch = self.tree.take(event.position, event.token_id)
        self.tree.cut(event.position)
        hit = replaced.runner_up == event.token_id
        self._estimates.overridden(by_runner_up=hit, foreseen_tokens=len(branch.proposals) if branch else None)
        if branch is not None and branch.proposals and self.drafter is not None:
            self.drafter.adopt(branch.row)
            self._adopted_branch = branch
