"""The planner of `exact` and `gated`: it decides by the costs of drafting, link and cloud, as estimated so far.

`schedule.py` computes the rate that the best schedule reaches, and compares it with plain streaming. `spans.py`
chooses the length of the next span. Until that is reached, the device drafts the tokens most likely to be used.

`gated` plans in the same way. It sends a span only if the gate asks about one of its tokens, and a request has a price
(`questions.py`). With a price of 0 and a gate that asks about every token it decides as `exact` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from chaperone_common.planning.costs import Costs
from chaperone_common.planning.schedule import Schedule, schedule_for
from chaperone_common.session import DeviceSession
from chaperone_common.types import Mode
from edge_client.planner.actions import Action, CatchUp, Decision, DraftToken, HandOver, Send, Wait
from edge_client.planner.branch_prefixes import branches_worth_sending
from edge_client.planner.costs import survival
from edge_client.planner.questions import default_price_ms, skipping_schedule, worth_asking_ahead, worth_reading_ahead
from edge_client.planner.rereading import CHUNK_SHARE
from edge_client.planner.situation import Situation
from edge_client.planner.spans import LONGEST, Plan, best_span, best_take_back

# A draft that is less likely to be used than this is not worth the device's energy.
_HOPELESS = 0.01
# A span that takes over from the cloud must be worth this many tokens more than the cloud's own writing.
_SURE_TOKENS = 1.0
# The price of a branch token's bytes, in tokens. It keeps uploads below 12 bytes a token (test_bytes.py).
_UPLOAD = 0.08
# Tokens to feed in one forward while the cloud writes; a chunk costs a fraction of single tokens.
_CATCH_UP_TOKENS = 8
# Feed every streamed token if it takes this many times as long as a draft (an assumption).
_LEISURE = 4
# `on_deviation: retract` waits for the cloud if this is the chance that all tokens stand, or a smaller one (an
# assumption). Until then a request can be saved.
_DOUBTFUL = 0.5


@dataclass(frozen=True, slots=True)
class AdaptivePlanner:
    """Picks the action with the best expected speed, token by token.

    In `gated` a request costs `request_price_ms`: the milliseconds by which a text may take longer to save one request.
    None: `default_price_ms`.
    """

    mode: Mode
    request_price_ms: float | None = None

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        if self.mode.writes_alone:
            return Decision(Wait() if session.exhausted else DraftToken(), "the device writes alone")
        if self.mode is Mode.CLOUD:
            return self._stream(session)
        estimates = situation.pipeline.estimates
        costs = estimates.costs()
        schedule = schedule_for(costs).delivering(estimates.delivery, costs)
        if self.mode is Mode.GATED and session.skips_are_final:
            schedule = skipping_schedule(schedule, costs)
        if not situation.takeovers:
            schedule = replace(schedule, streams=False, cloud_writes_on=False)
        taken_over = session.following and not session.spans
        if taken_over or (session.spans and not session.spans[-1].token_ids):
            return self._follow(situation, costs)
        return self._span(situation, self._priced(costs), schedule)

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _stream(self, session: DeviceSession) -> Decision:
        if session.following or session.spans:
            return Decision(Wait(), "the cloud writes")
        return Decision(HandOver(session.limit - len(session.text)), "the cloud writes alone")

    def _priced(self, costs: Costs) -> Costs:
        """Return the costs with the price of a request, which `gated` alone pays."""
        if self.mode is not Mode.GATED:
            return costs
        price_ms = default_price_ms(costs) if self.request_price_ms is None else self.request_price_ms
        return replace(costs, request_ms=price_ms)

    def _span(self, situation: Situation, costs: Costs, schedule: Schedule) -> Decision:
        """Draft until the next span has its best length, then send it if there is anything to ask."""
        session = situation.session
        unsent = len(session.text) - session.sent_length
        room = session.limit - len(session.text)
        wait_ms = situation.pipeline.wait_ms(situation.now_ms)
        plan = _planned(situation, costs, schedule.rate)
        figures = {
            "unsent": unsent,
            "best": plan.tokens,
            "value": plan.value,
            "wait_ms": wait_ms,
            "tokens_per_s": schedule.rate * 1e3,
            "price_ms": costs.request_ms,
        }
        idle = not session.spans and not unsent and session.prefilled
        if schedule.streams and idle and room:
            return Decision(HandOver(room), "spans are no faster than the cloud alone", figures)
        draft = self._draft(situation, costs, schedule.rate)
        if not session.has_question and not _must_be_read(situation, draft):
            action, reason = _without_question(situation, costs, draft)
            return Decision(action, reason, figures)
        if not schedule.cloud_writes_on and not _worth_asking_ahead(situation, costs):
            return Decision(draft, "asking before the answer comes is not worth its price", figures)
        # Keep a span that would only wait in the cloud: it may grow, or become void.
        early = wait_ms > costs.draft_ms + costs.row_ms and not isinstance(draft, Wait)
        onward = session.limit - max(session.sent_length, session.final_length) if schedule.cloud_writes_on else 0
        least = schedule.rate * costs.read_token_ms + _UPLOAD
        if not early and (plan.tokens <= unsent or session.exhausted):
            send = _send(situation, min(plan.tokens, unsent), onward, least)
            return Decision(send, "a longer span would not be faster", figures)
        if isinstance(draft, Wait):
            return Decision(_send(situation, unsent, onward, least), "nothing more is worth drafting", figures)
        return Decision(draft, "the span is worth more with another token", figures)

    def _follow(self, situation: Situation, costs: Costs) -> Decision:
        """Draft ahead of a cloud that writes, and take back once that is worth more than its writing."""
        session = situation.session
        risks = _risks(situation, session.final_length)
        drafted = len(risks)
        # The device's model must be fed the cloud's tokens before it can draft after them. The forward that drafts
        # feeds the last one.
        unread = len(session.text) - situation.fed_length
        reading_ms = max(unread - 1, 0) * CHUNK_SHARE * costs.draft_ms
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


def _planned(situation: Situation, costs: Costs, rate: float) -> Plan:
    """Return the best length of the next span. It counts final tokens that the cloud has yet to read, too."""
    session = situation.session
    begin = max(session.sent_length, session.final_length)
    read_along = begin - session.sent_length
    if read_along:
        costs = replace(costs, read_base_ms=costs.read_ms(read_along))
    drafts = 0 if session.exhausted else min(session.limit - len(session.text), LONGEST)
    wait_ms = situation.pipeline.wait_ms(situation.now_ms)
    plan = best_span(_risks(situation, begin), drafts, wait_ms, costs, rate)
    return replace(plan, tokens=read_along + plan.tokens)


def _worth_asking_ahead(situation: Situation, costs: Costs) -> bool:
    session = situation.session
    if not session.spans or not costs.request_ms:
        return True
    risks = _risks(situation, session.final_length)
    in_flight = max(session.sent_length - session.final_length, 0)
    fails = 1.0 if session.exhausted else 1.0 - survival(risks[in_flight:])  # the end of a text is waited for
    return worth_asking_ahead(survival(risks[:in_flight]), fails, costs)


def _must_be_read(situation: Situation, draft: Action) -> bool:
    """Return whether to send tokens that the gate skipped, because they become final in no other way."""
    session = situation.session
    if not session.stranded:
        return False
    if session.skips_are_final or isinstance(draft, Wait):
        return True
    return survival(_risks(situation, session.final_length)) < _DOUBTFUL


def _without_question(situation: Situation, costs: Costs, draft: Action) -> tuple[Action, str]:
    """Draft on, or send skipped tokens alone if they would delay the next question."""
    session = situation.session
    unread = session.final_length - session.sent_length - 1  # the cloud would choose a token after the last one
    cloud_waits = not session.spans and not situation.pipeline.wait_ms(situation.now_ms)
    if unread > 0 and cloud_waits and worth_reading_ahead(unread, situation.ending, costs):
        return Send(unread), "the unread tokens would delay the next question"
    return draft, "there is nothing new to ask"


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
