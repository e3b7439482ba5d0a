"""A planner for tests that sends branches at every position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from chaperone_common.types import Mode
from edge_client.planner import BranchPrefix, Decision, DraftToken, FixedPlanner, Send, Situation


@dataclass(frozen=True, slots=True)
class BranchingPlanner:
    """Decides as another planner, but sends a branch of up to `tokens` tokens next to every token.

    With each draft token, the likeliest branch grows, too.
    """

    planner: FixedPlanner
    tokens: int = 3

    @property
    def mode(self) -> Mode:
        return self.planner.mode

    def decide(self, situation: Situation) -> Decision:
        session, decision = situation.session, self.planner.decide(situation)
        match decision.action:
            case Send():
                starts = range(session.sent_length, len(session.text))
                prefixes = tuple(BranchPrefix(start, self.tokens) for start in starts)
                return replace(decision, action=replace(decision.action, branches=prefixes))
            case DraftToken():
                likeliest = max(situation.tree.sites(), default=None)
                return replace(decision, action=DraftToken(branches=() if likeliest is None else (likeliest[1],)))
            case _:
                return decision

    def alone(self) -> Self:
        return replace(self, planner=self.planner.alone())
