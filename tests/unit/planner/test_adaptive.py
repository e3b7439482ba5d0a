"""The adaptive planner in situations made by hand, where the known costs make one decision obvious."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.types import Mode, Proposal, Signal
from edge_client.planner import (
    AdaptivePlanner,
    BranchPrefix,
    CatchUp,
    DraftForest,
    DraftToken,
    Estimates,
    HandOver,
    Send,
    Wait,
)
from tests.support.device.planner import EOS, PROMPT, RUNNER_UP, PlannerHarness, known, until_sent

# --- Spans -----------------------------------------------------------------------------------------------------------


def test_the_planner_drafts_before_it_sends() -> None:
    decision = PlannerHarness().decide()
    assert decision.action == DraftToken()
    assert decision.reason
    assert decision.figures["tokens_per_s"] > 0


def test_a_span_is_sent_to_an_idle_cloud_before_a_likely_override() -> None:
    harness = PlannerHarness(known(token_ms=10)).drafted(*[0.01] * 6, 0.97, *[0.05] * 3)
    action = harness.decide().action
    assert isinstance(action, Send)
    assert action.tokens in (6, 7), "later tokens are almost certainly void; the override itself may be requested"


def test_a_span_is_kept_back_while_the_cloud_reads_another() -> None:
    harness = PlannerHarness(known(read_ms=400)).drafted(*[0.02] * 8).sent().drafted(*[0.02] * 4)
    assert isinstance(harness.decide().action, DraftToken)
    freed = harness.later(60 + 400)
    assert not freed.session.following
    assert isinstance(freed.drafted(*[0.02] * 40).decide().action, Send), "the cloud is about to be free"


def test_even_a_complete_span_is_kept_back_while_the_cloud_is_busy() -> None:
    def harness() -> PlannerHarness:
        return (
            PlannerHarness(known(read_ms=400, token_ms=10), rows=2)
            .drafted(0.01, 0.01)
            .sent()
            .drafted(*[0.01] * 6, 0.97)
        )

    assert isinstance(harness().decide().action, DraftToken), (
        "the span may be void, and there are branches to draft until then"
    )
    assert isinstance(harness().later(460).decide().action, Send)


def test_a_span_is_kept_back_and_branches_are_drafted_while_the_cloud_reads_the_prompt() -> None:
    estimates = known(read_ms=400, token_ms=10)
    estimates.prefilled(100, 2000.0)
    harness = PlannerHarness(estimates, rows=2).drafted(*[0.01] * 6, 0.97)
    assert isinstance(harness.decide().action, Send)
    harness.pipeline.opened(harness.now_ms, prompt_tokens=100)
    action = harness.decide().action
    assert isinstance(action, DraftToken)
    assert action.branches, "there is time for branches"
    assert isinstance(harness.later(2000).decide().action, Send), "the span arrives when the prompt is read"


def test_spans_are_longer_where_forwards_are_expensive() -> None:
    cheap = until_sent(PlannerHarness(known(read_ms=20, token_ms=1, stream_ms=400)))
    dear = until_sent(PlannerHarness(known(read_ms=400, token_ms=1, stream_ms=400)))
    assert cheap < dear


def test_spans_are_shorter_where_the_draft_is_often_wrong() -> None:
    sure = until_sent(PlannerHarness(known(risk=0.01, stream_ms=400)), risk=0.01)
    unsure = until_sent(PlannerHarness(known(risk=0.3, stream_ms=400)), risk=0.3)
    assert unsure < sure


def test_a_text_that_has_ended_is_sent_whole() -> None:
    harness = PlannerHarness().drafted(0.01, 0.01).drafted(0.01, token_id=EOS)
    action = harness.decide().action
    assert isinstance(action, Send)
    assert action.tokens in (None, 3)
    full = PlannerHarness(limit=5).drafted(0.01, 0.01)
    action = full.decide().action
    assert isinstance(action, Send)
    assert action.tokens in (None, 2)


def test_the_planner_waits_after_sending_an_ended_text() -> None:
    harness = PlannerHarness().drafted(0.01).drafted(0.01, token_id=EOS).sent()
    assert harness.decide().action == Wait()


def test_the_planner_waits_when_further_drafts_are_likely_useless() -> None:
    harness = PlannerHarness().drafted(0.95, 0.95, 0.95).sent()
    assert harness.decide().action == Wait()


# --- Branches --------------------------------------------------------------------------------------------------------


def test_a_branch_is_drafted_where_an_override_is_likelier_than_agreement() -> None:
    harness = PlannerHarness(known(row_ms=10), rows=2).drafted(0.02, 0.8, 0.02).sent()
    assert harness.decide().action == DraftToken(False, (len(PROMPT) + 1,))


def test_text_and_branch_are_drafted_together_where_another_row_is_cheap() -> None:
    harness = PlannerHarness(known(row_ms=0.5), rows=2).drafted(0.02, 0.5, 0.02).sent()
    assert harness.decide().action == DraftToken(True, (len(PROMPT) + 1,))


def test_the_text_alone_is_drafted_where_it_is_sure() -> None:
    harness = PlannerHarness(known(row_ms=10), rows=2).drafted(0.01, 0.01).sent()
    assert harness.decide().action == DraftToken()


def test_without_rows_no_branch_is_drafted() -> None:
    harness = PlannerHarness(known(row_ms=0.5), rows=0).drafted(0.02, 0.5, 0.02).sent()
    assert harness.decide().action == DraftToken()


def test_branches_are_drafted_after_the_end_of_the_text() -> None:
    harness = PlannerHarness(rows=2).drafted(0.3).drafted(0.01, token_id=EOS).sent()
    assert harness.decide().action == DraftToken(False, (len(PROMPT),))


# --- Sent branches ---------------------------------------------------------------------------------------------------


def branches_sent(harness: PlannerHarness) -> tuple[BranchPrefix, ...]:
    action = harness.decide().action
    assert isinstance(action, Send)
    return action.branches


def test_a_runner_up_is_sent_next_to_an_unsure_token_and_no_other() -> None:
    harness = PlannerHarness(known(read_ms=300, token_ms=5), hit=0.9).drafted(0.01, 0.7, 0.01)
    assert branches_sent(harness) == ((len(PROMPT) + 1, 1),)


def test_the_likely_part_of_a_branch_is_sent() -> None:
    harness = PlannerHarness(known(read_ms=300, token_ms=10), rows=1, hit=0.9).drafted(0.01, 0.7, 0.01, 0.9)
    start = len(PROMPT) + 1
    harness.tree.plant(start)
    for risk in (0.1, 0.1, 0.99, 0.1):
        harness.tree.grow(start, Proposal(6, Signal(1.0, 0.5, 0.1, 1.0, risk), RUNNER_UP))
    assert branches_sent(harness)[0] == (start, 3)


def test_no_branch_is_sent_where_reading_a_token_is_expensive() -> None:
    assert branches_sent(PlannerHarness(known(read_ms=50, token_ms=60), hit=0.5).drafted(0.3, 0.6)) == ()


# --- Other modes -----------------------------------------------------------------------------------------------------


def test_without_a_cloud_the_planner_drafts_to_the_end() -> None:
    alone = AdaptivePlanner(Mode.EXACT).alone()
    assert alone.mode is Mode.EDGE
    harness = PlannerHarness(known(draft_ms=500, read_ms=5, stream_ms=5), limit=5)
    assert alone.decide(harness.situation).action == DraftToken()
    assert alone.decide(harness.drafted(0.5, 0.5, fires=False).situation).action == Wait()


def test_cloud_mode_hands_over_the_rest_once() -> None:
    harness = PlannerHarness(limit=30)
    assert harness.decide(Mode.CLOUD).action == HandOver(27)
    harness.sent(continuation_tokens=26)
    assert harness.decide(Mode.CLOUD).action == Wait()


# --- Any situation ---------------------------------------------------------------------------------------------------

RISKS = st.lists(st.floats(0.0001, 0.98), max_size=12)


@st.composite
def scenarios(draw: st.DrawFn) -> PlannerHarness:
    costs = {
        "draft_ms": draw(st.sampled_from([5.0, 20.0, 120.0])),
        "row_ms": draw(st.sampled_from([1.0, 10.0])),
        "rtt_ms": draw(st.sampled_from([1.0, 60.0, 300.0])),
        "read_ms": draw(st.sampled_from([10.0, 100.0, 400.0])),
    }
    harness = PlannerHarness(
        deepcopy(_learned(**costs)), rows=draw(st.integers(0, 3)), limit=draw(st.sampled_from([16, 200]))
    )
    if draw(st.booleans()):
        harness.taken_over()
    for risks in draw(st.lists(RISKS, max_size=2)):
        _drafted_within(harness, risks)
        idle = not harness.session.spans and not harness.session.following
        if draw(st.booleans()) and (harness.session.sent_length < len(harness.session.text) or idle):
            harness.sent(continuation_tokens=draw(st.sampled_from([0, 50])))  # without tokens, the cloud must write
        harness.later(draw(st.floats(0, 300)))
    return harness


@cache
def _learned(draft_ms: float, row_ms: float, rtt_ms: float, read_ms: float) -> Estimates:
    return known(draft_ms=draft_ms, row_ms=row_ms, rtt_ms=rtt_ms, read_ms=read_ms)


def _drafted_within(harness: PlannerHarness, risks: Sequence[float]) -> None:
    for risk in risks:
        if not harness.session.exhausted:
            harness.drafted(risk)


@settings(max_examples=150)
@given(harness=scenarios(), mode=st.sampled_from([Mode.EXACT, Mode.GATED]))
def test_every_decision_is_possible_and_deterministic(harness: PlannerHarness, mode: Mode) -> None:
    session = harness.session
    before = (tuple(session.text), session.sent_length, len(session.spans), set(harness.tree.branches))
    decision = harness.decide(mode)
    assert harness.decide(mode) == decision, "the same situation gives the same decision"
    assert (tuple(session.text), session.sent_length, len(session.spans), set(harness.tree.branches)) == before
    unsent = len(session.text) - session.sent_length
    match decision.action:
        case DraftToken(text, branches):
            assert text or branches
            assert not (text and session.exhausted)
            assert all(session.final_length <= start < len(session.text) for start in branches)
            assert not branches or harness.tree.branches.keys() >= set(branches) or harness.tree.sites()
        case Send(tokens, continuation_tokens):
            assert unsent > 0
            assert tokens is None or 0 < tokens <= unsent
            assert continuation_tokens >= 0
        case HandOver(tokens):
            assert not unsent
            assert 0 < tokens <= session.limit - len(session.text)
        case CatchUp():
            assert harness.read < len(session.text)
        case DraftForest():
            raise AssertionError("a single text has no forest")
        case Wait():
            assert session.spans or session.following, "a wait needs a pending answer"
