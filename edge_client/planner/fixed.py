"""A planner with fixed settings, for comparisons. It uses neither costs nor risks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from chaperone_common.session import DeviceSession
from chaperone_common.types import Mode
from edge_client.planner.actions import Action, Decision, DraftToken, HandOver, Send, Wait
from edge_client.planner.situation import Situation


@dataclass(frozen=True, slots=True)
class FixedPlanner:
    """Sends when `span_tokens` fired tokens are unsent, with at most `spans_in_flight` spans in flight.

    It drafts on until `run_ahead_tokens` tokens are provisional. After an override the cloud may write
    `takeover_tokens` more by itself.
    """

    mode: Mode
    span_tokens: int
    spans_in_flight: int
    run_ahead_tokens: int
    takeover_tokens: int = 0

    def decide(self, situation: Situation) -> Decision:
        return Decision(self.next_action(situation.session), "as set")

    def next_action(self, session: DeviceSession) -> Action:
        """Return the next action, which depends on the session's state alone."""
        if session.following:
            return Wait()
        if self.mode is Mode.CLOUD:
            return Wait() if session.spans else HandOver(session.limit - len(session.text))
        if self._worth_sending(session):
            return Send(continuation_tokens=self.takeover_tokens)
        return Wait() if self._must_stop(session) else DraftToken()

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _must_stop(self, session: DeviceSession) -> bool:
        return session.exhausted or len(session.text) - session.final_length >= self.run_ahead_tokens

    def _worth_sending(self, session: DeviceSession) -> bool:
        if session.stranded and self._must_stop(session):
            return True
        waiting = session.unsent_fires
        if not waiting or len(session.spans) >= self.spans_in_flight:
            return False
        return waiting >= self.span_tokens or self._must_stop(session)
