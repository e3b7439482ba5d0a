"""The planner that has no knobs: it reckons with what drafting, link and cloud have cost so far.

The long view (`schedule.py`) says what rate can be reached, and whether plain streaming is as fast; the near view
(`spans.py`) how long the next span should be. In between, the device drafts what is likeliest to be of use.
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

_HOPELESS = 0.01  # chance of being of use below which a draft is not worth the device's energy
# Tokens between two fires that are judged with them, though nobody asked: with more there are fewer questions, and
# fewer tokens that are final at once (chosen on tuning prompts).
_GAP = 4
_LONG = 3  # questions' time that reading a stretch takes which is worth a request of its own (chosen on tuning traces)
_LIKELY = 0.7  # chance that what is on its way stands, from which on more is asked meanwhile (chosen on tuning traces)
_DOUBTFUL = 0.5  # chance that all stands below which skipped tokens that stay provisional are read (an assumption)
_SURE_TOKENS = 1.0  # that a span must promise beyond what the cloud would write anyway, and surely
_UPLOAD = 0.08  # tokens, the price of a branch token's bytes: with it, 12 bytes up a token suffice (test_bytes.py)
_CATCH_UP_TOKENS = 8  # read in one forward while the cloud writes; a chunk costs a fraction of single tokens
_LEISURE = 4  # times a draft's time that a streamed token takes: the device has the time to read along (an assumption)
# Of a draft's time, for each further token of a chunk: measured on the default pair, where a chunk of 8 takes 3.3 times
# as long as one token (DRAFT_CHUNK in benchmarks/simulation/costs.py).
_READING_SHARE = 1 / 3


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
            return self._follow(situation, costs) if self.mode is Mode.EXACT else self._read_along(situation)
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
        """DraftToken until the span that the cloud should read next is there, and send it."""
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
        # A span that would only wait in the cloud is better kept: it may yet grow, or be void.
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
        """Send what fired, with all before it and what fires close behind it.

        While something is on its way, what fires is asked about only if that will likely stand, and not earlier than
        the cloud has time for it. Long stretches that nobody asked about are read beforehand, for the next question
        would have to wait for that.
        """
        session = situation.session
        wait_ms = situation.pipeline.wait_ms(situation.now_ms)
        action = self._draft(situation, costs, rate)
        asked = session.tokens_to_ask(_GAP)
        ready = isinstance(action, Wait) or self._group_is_whole(situation, costs, rate, asked, wait_ms)
        busy = wait_ms > costs.draft_ms + costs.row_ms and not isinstance(action, Wait)
        if asked and ready and not busy and _likely(situation):
            onward = takeover_tokens(situation.pipeline.estimates.override_clusters, costs)
            onward = min(onward, session.limit - session.final_length)
            # The cloud chooses behind what it reads: the last of them need not be sent, unless it is to write on there.
            tokens = asked if onward or asked == 1 else asked - 1
            return Decision(Send(tokens, onward), "the gate fired", {"takeover": onward, "wait_ms": wait_ms})
        unread = session.final_length - session.sent_length - 1  # behind the last one the cloud would choose
        if unread > 0 and not session.spans and costs.read_ms(unread) > _LONG * (costs.read_ms(1) + costs.rtt_ms):
            return Decision(Send(unread), "what is unread would hold up the next question")
        if session.stranded and (
            isinstance(action, Wait) or survival(_risks(situation, session.final_length)) < _DOUBTFUL
        ):
            return Decision(Send(), "what there is must be read to be final, and may well be taken back")
        return Decision(action, "a question had better wait" if asked else "the gate has not fired")

    def _group_is_whole(self, situation: Situation, costs: Costs, rate: float, asked: int, wait_ms: float) -> bool:
        """Whether nothing fires close behind what is to be asked about, or that is as much as makes a good span."""
        session = situation.session
        if len(session.text) - session.sent_length - asked >= _GAP:
            return True
        drafts = 0 if session.exhausted else min(session.limit - len(session.text), LONGEST)
        begin = max(session.final_length, session.sent_length)
        plan = best_span(_risks(situation, begin), drafts, wait_ms, costs, rate)
        return session.sent_length + asked - begin >= max(plan.tokens, _GAP + 1)

    def _follow(self, situation: Situation, costs: Costs) -> Decision:
        """While the cloud writes, draft ahead of it, and take back once that is worth more than its writing."""
        session = situation.session
        risks = _risks(situation, session.final_length)
        drafted = len(risks)
        # What the cloud has written has to be read before anything can be drafted behind it; its last token is read
        # by the forward that drafts.
        unread = len(session.text) - situation.fed_length
        reading_ms = max(unread - 1, 0) * _READING_SHARE * costs.draft_ms
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
        rest = CatchUp() if _reads_along(costs, unread, plan.value) else Wait()
        return Decision(rest, "drafting cannot get ahead of the cloud", figures)

    def _read_along(self, situation: Situation) -> Decision:
        """The cloud is to write some tokens: read them in chunks, so that drafting can go on behind the last one."""
        unread = len(situation.session.text) - situation.fed_length
        return Decision(CatchUp() if unread >= _CATCH_UP_TOKENS else Wait(), "the cloud writes")

    def _draft(self, situation: Situation, costs: Costs, rate: float) -> Action:
        """The forward that drafts most tokens of use in its time: of the text, of a branch, or of both."""
        session = situation.session
        text = 0.0 if session.exhausted else survival(_risks(situation, session.final_length))
        branch, start = max(situation.tree.sites(), default=(0.0, -1))
        awaited = not session.spans and not situation.pipeline.wait_ms(situation.now_ms)
        if awaited:  # the cloud waits for the text, and for a branch if that is worth its row and its reading
            beside = (start,) if branch > rate * (costs.row_ms + costs.read_token_ms) else ()
            return DraftToken(branches=beside) if text >= _HOPELESS else Wait()
        if max(text, branch) < _HOPELESS:
            return Wait()
        both_ms = costs.draft_ms + costs.row_ms
        if (text + branch) / both_ms > max(text, branch) / costs.draft_ms:
            return DraftToken(text > 0, (start,))
        return DraftToken() if text >= branch else DraftToken(False, (start,))


def _send(situation: Situation, tokens: int, continuation_tokens: int, least: float) -> Send:
    """The oldest unsent tokens, and beside them the branch tokens that are at least so likely to stand."""
    start = situation.session.sent_length
    return Send(tokens, continuation_tokens, branches_worth_sending(situation.tree, start, start + tokens, least))


def _likely(situation: Situation) -> bool:
    """Whether all that is on its way to be judged will likely stand."""
    session = situation.session
    judged = {position for span in session.spans for position in range(span.final_before, span.end + 1)}
    return survival([situation.tree.risk(position) for position in judged if position < len(session.text)]) >= _LIKELY


def _reads_along(costs: Costs, unread: int, value: float) -> bool:
    """Whether to read what the cloud has written so far, while it writes.

    At leisure each token is read, for what the device would have drafted there tells how often it is right. Otherwise
    only where drafting may become of use, and in chunks: one holds up what comes meanwhile.
    """
    if _LEISURE * costs.draft_ms < costs.stream_ms:
        return unread > 0
    return unread >= _CATCH_UP_TOKENS and value > 0 and costs.draft_ms < costs.stream_ms


def _risks(situation: Situation, start: int) -> list[float]:
    """Of the text's tokens from a position on."""
    return [situation.tree.risk(position) for position in range(start, len(situation.session.text))]
