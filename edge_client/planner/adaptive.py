"""The planner without settings: it decides by the costs of drafting, link and cloud, as estimated so far.

`schedule.py` computes the rate that the best schedule reaches, and compares it with plain streaming. `spans.py`
chooses the length of the next span. Until that is reached, the device drafts the tokens most likely to be used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from chaperone_common.session import DeviceSession
from chaperone_common.types import Mode
from edge_client.planner.actions import Action, CatchUp, Decision, DraftToken, HandOver, Send, Wait
from edge_client.planner.branch_prefixes import branches_worth_sending
from edge_client.planner.costs import Costs, survival
from edge_client.planner.schedule import Schedule, schedule_for
from edge_client.planner.situation import Situation
from edge_client.planner.spans import LONGEST, best_span, best_take_back
from edge_client.planner.takeover import takeover_tokens

# A draft that is less likely to be used than this is not worth the device's energy.
_HOPELESS = 0.01
# Up to this many skipped tokens between two fires are sent and judged with them. A larger gap makes fewer requests, and
# fewer tokens that are final at once (chosen on tuning prompts).
_GAP = 4
# Unread tokens are sent alone if reading them takes this many times as long as one request (chosen on tuning traces).
_LONG = 3
# Ask about more tokens while spans are in flight if those stand with this chance (chosen on tuning traces).
_LIKELY = 0.7
# Send provisional skipped tokens if the chance that all stand is below this (an assumption).
_DOUBTFUL = 0.5
# A span that takes over from the cloud must be worth this many tokens more than the cloud's own writing.
_SURE_TOKENS = 1.0
# The price of a branch token's bytes, in tokens. It keeps uploads below 12 bytes a token (test_bytes.py).
_UPLOAD = 0.08
# Tokens to feed in one forward while the cloud writes; a chunk costs a fraction of single tokens.
_CATCH_UP_TOKENS = 8
# Feed every streamed token if it takes this many times as long as a draft (an assumption).
_LEISURE = 4
# Share of a draft's time for each further token of a chunk. Measured on the default pair, where a chunk of 8 takes 3.3
# times as long as one token (DRAFT_CHUNK in benchmarks/simulation/costs.py).
_CHUNK_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class AdaptivePlanner:
    """Picks the action with the best expected speed, token by token."""

    mode: Mode

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        if self.mode is Mode.EDGE:
            return Decision(Wait() if session.exhausted else DraftToken(), "the device writes alone")
        if self.mode is Mode.CLOUD:
            return self._stream(session)
        estimates = situation.pipeline.estimates
        costs = estimates.costs()
        schedule = schedule_for(costs).delivering(estimates.delivery, costs)
        taken_over = session.following and not session.spans
        if taken_over or (session.spans and not session.spans[-1].token_ids):
            return self._follow(situation, costs) if self.mode is Mode.EXACT else self._feed_along(situation)
        if self.mode is Mode.GATED:
            return self._ask(situation, costs, schedule.rate)
        return self._span(situation, costs, schedule)

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _stream(self, session: DeviceSession) -> Decision:
        if session.following or session.spans:
            return Decision(Wait(), "the cloud writes")
        return Decision(HandOver(session.limit - len(session.text)), "the cloud writes alone")

    def _span(self, situation: Situation, costs: Costs, schedule: Schedule) -> Decision:
        """Draft until the next span has its best length, then send it."""
        session = situation.session
        unsent = len(session.text) - session.sent_length
        room = session.limit - len(session.text)
        wait_ms = situation.pipeline.wait_ms(situation.now_ms)
        drafts = 0 if session.exhausted else min(room, LONGEST)
        plan = best_span(_risks(situation, session.sent_length), drafts, wait_ms, costs, schedule.rate)
        figures = {
            "unsent": unsent,
            "best": plan.tokens,
            "value": plan.value,
            "wait_ms": wait_ms,
            "tokens_per_s": schedule.rate * 1e3,
        }
        idle = not session.spans and not unsent and session.prefilled
        if schedule.streams and idle and room > 0:
            return Decision(HandOver(room), "spans are no faster than the cloud alone", figures)
        draft = self._draft(situation, costs, schedule.rate)
        # Keep a span that would only wait in the cloud: it may grow, or become void.
        early = wait_ms > costs.draft_ms + costs.row_ms and not isinstance(draft, Wait)
        onward = room + unsent if schedule.cloud_writes_on else 0
        least = schedule.rate * costs.read_token_ms + _UPLOAD
        if unsent and not early and (plan.tokens <= unsent or session.exhausted):
            send = _send(situation, min(plan.tokens, unsent), onward, least)
            return Decision(send, "a longer span would not be faster", figures)
        if unsent and isinstance(draft, Wait):
            return Decision(_send(situation, unsent, onward, least), "nothing more is worth drafting", figures)
        return Decision(draft, "the span is worth more with another token", figures)

    def _ask(self, situation: Situation, costs: Costs, rate: float) -> Decision:
        """Send the tokens that fired, with all tokens before them and the fires close after them.

        While spans are in flight, send only if those will likely stand, and once the cloud has time. Send many unread
        tokens ahead of the next fire, which would have to wait for them.
        """
        session = situation.session
        wait_ms = situation.pipeline.wait_ms(situation.now_ms)
        action = self._draft(situation, costs, rate)
        asked = session.tokens_to_ask(_GAP)
        ready = isinstance(action, Wait) or self._group_is_whole(situation, costs, rate, asked, wait_ms)
        busy = wait_ms > costs.draft_ms + costs.row_ms and not isinstance(action, Wait)
        if asked and ready and not busy and _likely(situation):
            onward = takeover_tokens(situation.pipeline.estimates.override_clusters, costs)
            onward = min(onward, situation.takeover_room)
            # The cloud chooses the token after a span, so the last fire need not be sent unless the cloud may write on.
            tokens = asked if onward or asked == 1 else asked - 1
            return Decision(Send(tokens, onward), "the gate fired", {"takeover": onward, "wait_ms": wait_ms})
        unread = session.final_length - session.sent_length - 1  # the cloud would choose a token after the last one
        if unread > 0 and not session.spans and costs.read_ms(unread) > _LONG * (costs.read_ms(1) + costs.rtt_ms):
            return Decision(Send(unread), "what is unread would hold up the next question")
        if session.stranded and (
            isinstance(action, Wait) or survival(_risks(situation, session.final_length)) < _DOUBTFUL
        ):
            return Decision(Send(), "what there is must be read to be final, and may well be taken back")
        return Decision(action, "a question had better wait" if asked else "the gate has not fired")

    def _group_is_whole(self, situation: Situation, costs: Costs, rate: float, asked: int, wait_ms: float) -> bool:
        """Return whether no fire can follow close after the `asked` tokens, or they already make a good span."""
        session = situation.session
        if len(session.text) - session.sent_length - asked >= _GAP:
            return True
        drafts = 0 if session.exhausted else min(session.limit - len(session.text), LONGEST)
        begin = max(session.final_length, session.sent_length)
        plan = best_span(_risks(situation, begin), drafts, wait_ms, costs, rate)
        return session.sent_length + asked - begin >= max(plan.tokens, _GAP + 1)

    def _follow(self, situation: Situation, costs: Costs) -> Decision:
        """Draft ahead of a cloud that writes, and take back once that is worth more than its writing."""
        session = situation.session
        risks = _risks(situation, session.final_length)
        drafted = len(risks)
        # The device's model must be fed the cloud's tokens before it can draft after them. The forward that drafts
        # feeds the last one.
        unread = len(session.text) - situation.fed_length
        reading_ms = max(unread - 1, 0) * _CHUNK_SHARE * costs.draft_ms
        written = situation.pipeline.written_by(situation.now_ms + reading_ms)
        room = session.limit - session.final_length
        if written >= room:
            return Decision(Wait(), "the cloud is about to be done")
        plan = best_take_back(risks, written, room, costs)
        figures = {"drafted": drafted, "written": written, "best": plan.tokens, "value": plan.value}
        promising = plan.value > _SURE_TOKENS
        if promising and drafted >= plan.tokens:
            return Decision(Send(None, room), "the draft is far enough ahead of the cloud", figures)
        if promising and not session.exhausted:
            return Decision(DraftToken(), "drafting can get ahead of the cloud", figures)
        rest = CatchUp() if _should_feed(costs, unread, plan.value) else Wait()
        return Decision(rest, "drafting cannot get ahead of the cloud", figures)

    def _feed_along(self, situation: Situation) -> Decision:
        """Feed the tokens that the cloud writes in chunks, so that drafting can go on after the last one."""
        unread = len(situation.session.text) - situation.fed_length
        return Decision(CatchUp() if unread >= _CATCH_UP_TOKENS else Wait(), "the cloud writes")

    def _draft(self, situation: Situation, costs: Costs, rate: float) -> Action:
        """Return the forward that drafts most useful tokens in its time: of the text, of a branch, or of both."""
        session = situation.session
        text = 0.0 if session.exhausted else survival(_risks(situation, session.final_length))
        branch, start = max(situation.tree.sites(), default=(0.0, -1))
        awaited = not session.spans and not situation.pipeline.wait_ms(situation.now_ms)
        if awaited:  # the cloud waits for the text: a branch must be worth its row and its verification
            branches = (start,) if branch > rate * (costs.row_ms + costs.read_token_ms) else ()
            return DraftToken(branches=branches) if text >= _HOPELESS else Wait()
        if max(text, branch) < _HOPELESS:
            return Wait()
        both_ms = costs.draft_ms + costs.row_ms
        if (text + branch) / both_ms > max(text, branch) / costs.draft_ms:
            return DraftToken(text > 0, (start,))
        return DraftToken() if text >= branch else DraftToken(False, (start,))


def _send(situation: Situation, tokens: int, continuation_tokens: int, least: float) -> Send:
    """Return a Send of the oldest unsent tokens, with the branch tokens whose chance to stand is at least `least`."""
    start = situation.session.sent_length
    return Send(tokens, continuation_tokens, branches_worth_sending(situation.tree, start, start + tokens, least))


def _likely(situation: Situation) -> bool:
    """Return whether all tokens that the cloud is asked to judge will likely stand."""
    session = situation.session
    judged = {position for span in session.spans for position in range(span.final_before, span.end + 1)}
    return survival([situation.tree.risk(position) for position in judged if position < len(session.text)]) >= _LIKELY


def _should_feed(costs: Costs, unread: int, value: float) -> bool:
    """Return whether to feed the tokens that the cloud has written so far, while it writes.

    A device with time to spare feeds each token, to learn how often its own draft would have been right. Any other one
    feeds chunks, and only if drafting may become useful: a forward delays the frames that arrive during it.
    """
    if _LEISURE * costs.draft_ms < costs.stream_ms:
        return unread > 0
    return unread >= _CATCH_UP_TOKENS and value > 0 and costs.draft_ms < costs.stream_ms


def _risks(situation: Situation, start: int) -> list[float]:
    """Return the risks of the text's tokens from a position on."""
    return [situation.tree.risk(position) for position in range(start, len(situation.session.text))]
