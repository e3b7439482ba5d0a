"""The adaptive planner in mode `gated`, in situations made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaperone_common.frames import Verdict
from chaperone_common.types import Mode, OnDeviation
from edge_client.planner import AdaptivePlanner, DraftToken, Estimates, HandOver, Send, Wait
from tests.support.device.planner import EOS, PROMPT, PlannerHarness, known


def skipping(estimates: Estimates | None = None, *, fires: float = 0.05) -> Estimates:
    """Return estimates of a client whose gate asks about this share of the tokens."""
    estimates = estimates or known()
    for index in range(1, 401):
        estimates.gated(fires=int(index * fires) > int((index - 1) * fires))
    return estimates


def test_nothing_is_asked_before_the_gate_fires() -> None:
    harness = PlannerHarness(skipping()).drafted(*[0.01] * 12, fires=False)
    assert harness.decide(Mode.GATED).action == DraftToken()
    action = harness.drafted(0.9).decide(Mode.GATED).action
    assert isinstance(action, Send)
    assert action.tokens == 13, "with all skipped tokens before it, which are audited"


def test_a_doubtful_token_does_not_wait_for_others() -> None:
    assert isinstance(PlannerHarness(skipping()).drafted(0.6).decide(Mode.GATED).action, Send)


def test_a_question_waits_for_others_while_the_cloud_reads() -> None:
    harness = PlannerHarness(skipping(known(read_ms=400))).drafted(0.05).sent().drafted(0.6)
    assert isinstance(harness.decide(Mode.GATED).action, DraftToken)
    harness.drafted(0.6).later(400)
    action = harness.decide(Mode.GATED).action
    assert isinstance(action, Send)
    assert action.tokens == 2, "both in one request"


@pytest.mark.parametrize(("risk", "asks"), [(0.1, True), (0.97, False)])
def test_a_question_is_asked_ahead_if_tokens_in_flight_will_likely_stand(risk: float, asks: bool) -> None:
    harness = PlannerHarness(skipping(known(rtt_ms=400))).drafted(risk).sent()
    harness.drafted(0.01, fires=False).drafted(0.6).later(100)
    assert isinstance(harness.decide(Mode.GATED).action, Send) is asks


def test_a_higher_price_makes_longer_questions() -> None:
    def tokens(price_ms: float) -> int:
        harness = PlannerHarness(skipping(known(stream_ms=1000), fires=0.5))
        while isinstance(harness.decide(Mode.GATED, price_ms=price_ms).action, DraftToken):
            harness.drafted(0.05).later(10)
        action = harness.decide(Mode.GATED, price_ms=price_ms).action
        assert isinstance(action, Send)
        assert action.tokens is not None
        return action.tokens

    assert tokens(0.0) < tokens(200.0)


def test_the_price_is_among_the_figures_of_a_decision() -> None:
    harness = PlannerHarness(skipping()).drafted(0.1)
    assert harness.decide(Mode.GATED, price_ms=70.0).figures["price_ms"] == 70.0
    assert harness.decide(Mode.GATED).figures["price_ms"] > 0
    assert harness.decide(Mode.EXACT).figures["price_ms"] == 0, "exact needs every answer"


def test_long_stretches_are_read_before_the_next_question() -> None:
    harness = PlannerHarness(skipping(known(rtt_ms=20, read_ms=50, token_ms=5)))
    while isinstance(harness.decide(Mode.GATED).action, DraftToken):
        harness.drafted(0.001, fires=False)
    unread = len(harness.session.text) - len(PROMPT)
    assert 5 < unread < 60
    assert harness.decide(Mode.GATED).action == Send(unread - 1), "the cloud need not choose the next token"
    assert harness.sent().decide(Mode.GATED).action == DraftToken()


def test_tokens_that_the_cloud_chooses_anyway_are_not_sent() -> None:
    harness = PlannerHarness(skipping(known(rtt_ms=400))).drafted(0.1).sent().drafted(0.2, token_id=EOS)
    assert harness.decide(Mode.GATED).action == Wait()


def test_the_end_of_the_text_is_asked_about_at_once() -> None:
    harness = PlannerHarness(skipping()).drafted(*[0.01] * 4, fires=False).drafted(0.01, token_id=EOS)
    action = harness.decide(Mode.GATED).action
    assert isinstance(action, Send)
    assert action.tokens == 5


def test_both_outcomes_of_a_question_are_drafted_while_it_is_answered() -> None:
    harness = PlannerHarness(skipping(known(row_ms=0.5)), rows=2).drafted(0.02, fires=False).drafted(0.5).sent()
    assert harness.decide(Mode.GATED).action == DraftToken(True, (len(PROMPT) + 1,))


def test_the_answer_leaves_later_fires_for_the_next_question() -> None:
    harness = PlannerHarness(skipping(), rows=2).drafted(0.01, fires=False).drafted(0.3).sent()
    harness.drafted(0.2).drafted(*[0.01] * 4, fires=False).drafted(0.6).drafted(*[0.01] * 4, fires=False)
    stood = harness.session.spans[0]
    harness.now_ms += 160
    harness.receive(Verdict(0, stood.end, harness.session.text[stood.end], compute_us=100_000))
    assert harness.session.final_length == stood.end + 5, "the cloud's own token confirms the first of them"
    action = harness.decide(Mode.GATED).action
    assert isinstance(action, Send)
    assert action.tokens is not None
    assert harness.session.sent_length + action.tokens > stood.end + 5, "up to the next fire or beyond"


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED])
def test_the_cloud_writes_where_spans_are_no_faster(mode: Mode) -> None:
    harness = PlannerHarness(skipping(known(draft_ms=40, read_ms=5, stream_ms=5)))
    assert harness.decide(mode).action == HandOver(197)


def test_the_device_writes_where_only_asking_about_every_token_is_slower_than_the_cloud() -> None:
    costs = {"draft_ms": 20, "read_ms": 300, "stream_ms": 150, "risk": 0.5}
    assert PlannerHarness(skipping(known(**costs))).decide(Mode.EXACT).action == HandOver(197)
    assert PlannerHarness(skipping(known(**costs))).decide(Mode.GATED).action == DraftToken()
    assert PlannerHarness(skipping(known(**costs), fires=0.9)).decide(Mode.GATED).action == HandOver(197)


@pytest.mark.parametrize(("takeovers", "action"), [(True, HandOver(197)), (False, DraftToken())])
def test_under_a_ceiling_the_cloud_is_handed_nothing(takeovers: bool, action: HandOver | DraftToken) -> None:
    situation = PlannerHarness(skipping(known(draft_ms=40, read_ms=5, stream_ms=5))).situation
    assert AdaptivePlanner(Mode.GATED).decide(replace(situation, takeovers=takeovers)).action == action


@pytest.mark.parametrize(("takeovers", "tokens"), [(True, 197), (False, 0)])
def test_under_a_ceiling_the_cloud_does_not_write_on_after_an_override(takeovers: bool, tokens: int) -> None:
    """A far cloud that writes quickly: after an override it should write until the next span arrives."""
    estimates = skipping(known(draft_ms=10, rtt_ms=600, read_ms=80, token_ms=0, stream_ms=80, risk=0.2))
    harness = PlannerHarness(estimates).drafted(0.9)
    action = AdaptivePlanner(Mode.GATED).decide(replace(harness.situation, takeovers=takeovers)).action
    assert isinstance(action, Send)
    assert action.continuation_tokens == tokens


@pytest.mark.parametrize(("on_deviation", "sends"), [(OnDeviation.KEEP, False), (OnDeviation.RETRACT, True)])
def test_doubtful_text_is_sent_where_skipped_tokens_wait_for_the_cloud(on_deviation: OnDeviation, sends: bool) -> None:
    harness = PlannerHarness(skipping(), on_deviation=on_deviation).drafted(*[0.02] * 20, fires=False)
    assert harness.decide(Mode.GATED).action == DraftToken(), "a request may be saved"
    harness.drafted(*[0.02] * 15, fires=False)
    assert isinstance(harness.decide(Mode.GATED).action, Send) is sends


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED])
def test_a_text_is_taken_back_from_a_cloud_that_writes_slowly(mode: Mode) -> None:
    harness = PlannerHarness(skipping(known(read_ms=400, token_ms=0, stream_ms=400))).taken_over()
    while isinstance(harness.decide(mode).action, DraftToken):
        harness.drafted(0.01, fires=mode is Mode.EXACT).later(10)
    assert isinstance(harness.decide(mode).action, Send)
