"""The planner that has no knobs: it reckons with what drafting, link and cloud have cost so far.

Values are in tokens. A millisecond costs `rate` tokens, which is what the best schedule makes in it (`schedule.py`); so
a span is worth the tokens that it is expected to settle, less the time that the cloud spends on it or waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from common.planner.actions import Action, CatchUp, Decision, Draft, HandOver, Send, Wait
from common.planner.costs import Costs
from common.planner.schedule import MAX_STOCK, Float64s, Schedule, schedule_for
from common.planner.situation import Situation
from common.session import DeviceSession
from common.types import Mode

_HOPELESS = 0.02  # chance of being of use below which a draft is not worth the device's energy
_CATCH_UP_TOKENS = 8  # read in one forward while the cloud writes; a chunk costs a fraction of single tokens


@dataclass(frozen=True, slots=True)
class _Plan:
    """The best length of the next span, and what it is worth."""

    tokens: int
    value: float


@dataclass(frozen=True, slots=True)
class AdaptivePlanner:
    """Picks the action with the best expected speed, token by token."""

    mode: Mode

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        if self.mode is Mode.EDGE:
            return Decision(Wait() if session.exhausted else Draft(), "the device writes alone")
        if self.mode is Mode.CLOUD:
            return self._stream(session)
        costs = situation.pipeline.estimates.costs()
        schedule = schedule_for(costs)
        if session.following and not session.spans:
            return self._follow(situation, costs, schedule)
        if self.mode is Mode.GATED:
            return self._ask(situation, costs)
        return self._span(situation, costs, schedule)

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _stream(self, session: DeviceSession) -> Decision:
        if session.following or session.spans:
            return Decision(Wait(), "the cloud writes")
        return Decision(HandOver(session.limit - len(session.text)), "the cloud writes alone")

    def _span(self, situation: Situation, costs: Costs, schedule: Schedule) -> Decision:
        """Draft until the span that the cloud should read next is there, and send it."""
        session = situation.session
        unsent = len(session.text) - session.sent
        room = session.limit - len(session.text)
        wait_ms = situation.pipeline.wait_ms(situation.now_ms)
        plan = self._plan(situation, costs, schedule, wait_ms)
        figures = {
            "unsent": unsent,
            "best": plan.tokens,
            "value": plan.value,
            "wait_ms": wait_ms,
            "tokens_per_s": schedule.rate * 1e3,
        }
        idle = not session.spans and not unsent and session.prefilled
        if schedule.streams and plan.value <= 0 and idle and room > 0:
            return Decision(HandOver(room), "no span is worth the cloud's time: it writes alone", figures)
        draft = self._draft(situation, costs)
        # A span that would only wait in the cloud is better kept: it may yet grow, or be void.
        early = wait_ms > costs.draft_ms + costs.row_ms and not isinstance(draft, Wait)
        onward = room + unsent if schedule.cloud_writes_on else 0
        if unsent and not early and (plan.tokens <= unsent or session.exhausted):
            return Decision(Send(plan.tokens, onward), "a longer span would not be faster", figures)
        if unsent and isinstance(draft, Wait):
            return Decision(Send(None, onward), "nothing more is worth drafting", figures)
        return Decision(draft, "the span is worth more with another token", figures)

    def _ask(self, situation: Situation, costs: Costs) -> Decision:
        """A fired token is what the device waits for, so it is sent at once, with all before it."""
        if situation.session.unsent_fires:
            return Decision(Send(), "the gate fired")
        return Decision(self._draft(situation, costs), "the gate has not fired")

    def _follow(self, situation: Situation, costs: Costs, schedule: Schedule) -> Decision:
        """While the cloud writes, draft ahead of it, and take back once what is ahead is worth more than its writing.

        The cloud goes on at a token each `stream_ms` until the span arrives, so only the reading's time has a price.
        """
        session = situation.session
        risks = [situation.tree.risk(position) for position in range(session.final, len(session.text))]
        drafted = len(risks)
        written = situation.pipeline.written_by(situation.now_ms)
        room = min(session.limit - session.final, drafted + MAX_STOCK)
        lengths = np.arange(written + 1, room + 1)
        if not len(lengths):
            return Decision(Wait(), "the cloud is about to be done")
        stands = _survivals(risks, room, costs.risk)
        overtaken = np.maximum(0, lengths - drafted) * costs.draft_ms / costs.stream_ms
        gained = np.cumsum(stands)[lengths] - np.cumsum(stands)[written] + stands[written] - overtaken * stands[lengths]
        reading_ms = costs.stream_ms / 2 + costs.read_base_ms + costs.read_token_ms * (lengths - written)
        values = gained - schedule.rate * reading_ms
        best = int(values.argmax())
        figures = {
            "drafted": drafted,
            "written": written,
            "best": int(lengths[best]),
            "value": float(values[best]),
            "tokens_per_s": schedule.rate * 1e3,
        }
        if values[best] > 0 and drafted >= lengths[best]:
            return Decision(Send(None, room), "the draft is far enough ahead of the cloud", figures)
        if session.exhausted or costs.draft_ms >= costs.stream_ms or stands[drafted] < _HOPELESS:
            behind = len(session.text) - situation.read >= _CATCH_UP_TOKENS
            return Decision(CatchUp() if behind else Wait(), "drafting cannot get ahead of the cloud", figures)
        return Decision(Draft(), "drafting ahead of the cloud", figures)

    def _plan(self, situation: Situation, costs: Costs, schedule: Schedule, wait_ms: float) -> _Plan:
        """The length of the next span, from 1, that is worth most, given that all tokens before it stand."""
        session, tree = situation.session, situation.tree
        unsent = len(session.text) - session.sent
        drafts = 0 if session.exhausted else min(session.limit - len(session.text), MAX_STOCK)
        longest = min(unsent + drafts, max(unsent, MAX_STOCK))
        if not longest:
            return _Plan(0, 0.0)
        risks = [tree.risk(position) for position in range(session.sent, len(session.text))]
        stands = _survivals(risks, longest, costs.risk)
        lengths = np.arange(1, longest + 1)
        drafting_ms = np.maximum(0, lengths - unsent) * costs.draft_ms
        reading_ms = costs.read_base_ms + costs.read_token_ms * lengths
        idle_ms = np.maximum(0, drafting_ms - wait_ms)
        values = np.cumsum(stands)[1:] - schedule.rate * (idle_ms + reading_ms)
        best = int(values.argmax())
        return _Plan(best + 1, float(values[best]))

    def _draft(self, situation: Situation, costs: Costs) -> Action:
        """The forward that drafts most tokens of use in its time: of the text, of a branch, or of both."""
        session, tree = situation.session, situation.tree
        reached = 1.0
        for position in range(session.final, len(session.text)):
            reached *= 1.0 - tree.risk(position)
        text = 0.0 if session.exhausted else reached
        branch, start = max(tree.sites(), default=(0.0, -1))
        if max(text, branch) < _HOPELESS:
            return Wait()
        both_ms = costs.draft_ms + costs.row_ms
        if (text + branch) / both_ms > max(text, branch) / costs.draft_ms:
            return Draft(text > 0, (start,))
        return Draft() if text >= branch else Draft(False, (start,))


def _survivals(risks: list[float], length: int, later: float) -> Float64s:
    """The chance that the first k tokens stand, for k from 0 to `length`; `later` is the risk of those not drafted."""
    known = risks[:length]
    steps = np.concatenate(([0.0], known, np.full(length - len(known), later)))
    return np.asarray(np.cumprod(1.0 - steps), np.float64)
