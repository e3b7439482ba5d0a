"""Which action next: draft on, send, wait, or hand over."""

from __future__ import annotations

from dataclasses import dataclass

from common.session import DeviceSession
from common.types import Mode


@dataclass(frozen=True, slots=True)
class Draft:
    """Write one more token."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send what is unsent."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until the cloud answers."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Ask the cloud to write this many tokens by itself."""

    tokens: int


Action = Draft | Send | Wait | HandOver


@dataclass(frozen=True, slots=True)
class FixedPlanner:
    """Send whenever `span_tokens` tokens wait for the cloud, with at most `spans_in_flight` spans on their way.

    Drafting runs on meanwhile, up to `run_ahead_tokens` provisional tokens.
    """

    mode: Mode
    span_tokens: int
    spans_in_flight: int
    run_ahead_tokens: int

    def next_action(self, session: DeviceSession) -> Action:
        """Decide from the session's state alone."""
        if session.following:
            return Wait()
        if self.mode is Mode.CLOUD:
            return Wait() if session.spans else HandOver(session.limit - len(session.text))
        if self._worth_sending(session):
            return Send()
        return Wait() if self._must_stop(session) else Draft()

    def _must_stop(self, session: DeviceSession) -> bool:
        return session.exhausted or len(session.text) - session.final >= self.run_ahead_tokens

    def _worth_sending(self, session: DeviceSession) -> bool:
        waiting = session.unsent_fires
        if not waiting or len(session.spans) >= self.spans_in_flight:
            return False
        return waiting >= self.span_tokens or self._must_stop(session)
