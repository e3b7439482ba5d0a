"""One generation without engine, planner or link, for the tests of drafting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from chaperone_common.frames import Open, Opened, ServerFrame, Verdict
from chaperone_common.session import DeviceSession, SessionEvent
from chaperone_common.types import Proposal, SamplingParams, SessionId
from edge_client.engine.speculation import Speculation
from edge_client.model.adapted_drafter import AdaptedDrafter
from edge_client.model.corrections import CorrectionMemory
from edge_client.model.drafter import ChoosingDrafter
from edge_client.planner import BranchPrefix, DraftToken, Estimates
from edge_client.ports import Drafter
from tests.support.fakes.clock import ManualClock
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget

PROMPT = (5, 6, 7)
START = len(PROMPT)
SOURCE = FakeTarget(vocabulary_size=16)


def greedy(text: Iterable[int]) -> int:
    """Return the token that the small model writes after a text, without cache or rows."""
    return int(SOURCE.logits(list(text)).argmax())


def second(text: Iterable[int]) -> int:
    """Return the runner-up of that token."""
    return int(SOURCE.logits(list(text)).argsort()[-2])


class SpeculationHarness:
    """One generation without engine, planner or link: a test chooses the drafts and the cloud's answers."""

    def __init__(
        self,
        *,
        branches: int = 2,
        limit: int = 60,
        eos: tuple[int, ...] = (),
        corrections: CorrectionMemory | None = None,
    ) -> None:
        self.model = FakeDraft(SOURCE, branches=branches)
        self.estimates = Estimates()
        opening = Open(SessionId("s"), "", SamplingParams(), limit - START, eos, PROMPT)
        self.session = DeviceSession(opening, limit=limit)
        self.corrections = corrections
        drafter: Drafter = ChoosingDrafter(self.model, SamplingParams())
        if corrections is not None:
            drafter = AdaptedDrafter(drafter, corrections, held=())
        self.speculation = Speculation(self.session, drafter, self.estimates, ManualClock(), corrections)
        self.events: list[SessionEvent] = []
        self.receive(Opened(prefilled=True, context_tokens=512))

    @property
    def text(self) -> list[int]:
        return self.session.text

    def draft(self, tokens: int = 1, *, branches: tuple[int, ...] = (), text: bool = True) -> None:
        for _ in range(tokens):
            proposal = asyncio.run(self.speculation.draft(DraftToken(text, branches)))
            if proposal is not None:
                self._append(proposal)

    def branch(self, start: int, tokens: int = 1) -> None:
        self.draft(tokens, branches=(start,), text=False)

    def catch_up(self) -> None:
        asyncio.run(self.speculation.feed(self.text[self.speculation.fed_length :]))

    def send(self, *sprouts: BranchPrefix, continuation_tokens: int = 0) -> None:
        branches = self.speculation.tree.branch_tokens(self.session.sent_length, len(self.text), sprouts)
        self.session.send(continuation_tokens=continuation_tokens, branches=branches)

    def receive(self, frame: ServerFrame) -> None:
        self._follow(self.session.apply(frame))
        for proposal in self.speculation.take_adopted():
            if not self.session.exhausted:
                self._append(proposal)

    def override(self, position: int, token_id: int, *further: int) -> None:
        """Receive a verdict on the oldest span: the tokens before the position stand, and these follow."""
        revision = self.session.spans[0].revision + 1
        self.receive(Verdict(revision, position, token_id, further_token_ids=further))

    def _append(self, proposal: Proposal) -> None:
        self._follow(self.session.draft(proposal, fires=True))

    def _follow(self, events: Iterable[SessionEvent]) -> None:
        for event in events:
            self.events.append(event)
            self.speculation.follow(event)

    def check(self) -> None:
        """Check that each provisional token is the small model's choice after the text before it."""
        for position in range(self.session.final_length, len(self.text)):
            assert self.text[position] == greedy(self.text[:position])
            proposal = self.speculation.tree.proposal(position)
            assert proposal is not None
            assert proposal.token_id == self.text[position]
        tree = self.speculation.tree
        assert all(tree.proposal(position) is None for position in (*range(self.session.final_length), len(self.text)))
        assert self.speculation.fed_length <= len(self.text)


def drafted(tokens: int = 4, *, branches: int = 2, limit: int = 60, eos: tuple[int, ...] = ()) -> SpeculationHarness:
    """Return a harness with a span of some tokens in flight."""
    harness = SpeculationHarness(branches=branches, limit=limit, eos=eos)
    harness.draft(tokens)
    harness.send()
    return harness
