"""The engine against a scripted cloud and a draft model without a model; no gRPC, no files, no real time."""

from __future__ import annotations

import asyncio

import pytest

from chaperone_common.errors import CloudTimeout, CloudUnavailable, InternalError, Overloaded, ProtocolViolation
from chaperone_common.frames import Close, Closed, Draft, Failure, Open, Opened, Verdict
from chaperone_common.session import Committed, Drafted, Retracted
from chaperone_common.types import FinishReason, Mode, Origin
from edge_client.gate import Always, Gate, Never
from tests.support.device.engine import (
    OPENED,
    PROMPT,
    TARGET,
    EngineHarness,
    cloud_text,
    failed,
    finished,
    origins,
    written,
)
from tests.support.fakes.link import FakeLink, cloud_of
from tests.support.fakes.target import FakeTarget


@pytest.mark.parametrize("takeover", [0, 3])
@pytest.mark.parametrize(("span", "in_flight", "run_ahead"), [(1, 1, 1), (4, 2, 16), (16, 1, 16), (3, 3, 5)])
def test_exact_writes_the_cloud_only_text(span: int, in_flight: int, run_ahead: int, takeover: int) -> None:
    harness = EngineHarness(
        FakeLink(cloud_of(TARGET)), span=span, in_flight=in_flight, run_ahead=run_ahead, takeover_tokens=takeover
    )
    assert written(harness.run()) == cloud_text(40)


def test_cloud_mode_follows_without_drafting() -> None:
    events = EngineHarness(FakeLink(cloud_of(TARGET)), mode=Mode.CLOUD).run()
    assert written(events) == cloud_text(40)
    assert not [event for event in events if isinstance(event, Drafted | Retracted)]
    assert origins(events) <= {Origin.BONUS, Origin.OVERRIDE, Origin.TAKEOVER}


def test_edge_mode_writes_alone() -> None:
    events = EngineHarness(None, mode=Mode.EDGE, disturbance=0.0).run()
    assert written(events) == cloud_text(40)
    assert origins(events) == {Origin.DRAFT}
    assert finished(events).stats.bytes_up == 0
    assert finished(events).text == "."


def test_a_verdict_is_applied_before_the_next_token_is_drafted() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    harness = EngineHarness(link, new_tokens=8, run_ahead=8)
    own = 63  # a token that neither model writes here

    def override(step: int) -> None:
        if step == 6:
            link.deliver(Verdict(1, 3, own))
        elif step == 7:
            link.hang_up()

    harness.model.during_step = override
    events = harness.run()
    sixth = next(index for index, event in enumerate(events) if isinstance(event, Drafted) and event.position == 8)
    assert [type(event) for event in events[sixth + 1 : sixth + 3]] == [Retracted, Committed]
    assert harness.model.rewinds == [3]
    assert harness.model.fed[6] == (3, (own,)), "the seventh step feeds the cloud's token"


def test_the_model_always_holds_a_prefix_of_the_text() -> None:
    harness = EngineHarness(FakeLink(cloud_of(TARGET)))
    session = harness.engine.session
    fed_in_place = []

    def check(step: int) -> None:
        position, tokens = harness.model.fed[-1]
        fed_in_place.append(tuple(session.text[position:]) == tokens and position + len(tokens) == len(session.text))

    harness.model.during_step = check
    harness.run()
    assert harness.model.rewinds, "the models differ, so there must be overrides"
    assert all(fed_in_place)


def test_the_link_is_not_awaited_while_drafting_is_possible() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    harness = EngineHarness(link, verification_deadline_ms=1.0)
    waits = []
    harness.model.during_step = lambda step: waits.append(link.waits)
    assert isinstance(failed(harness.run()).error, CloudTimeout)
    assert waits == [0] * 16, "sixteen tokens ahead of the cloud, and only then a wait"
    assert link.waits == 1
    assert [type(frame) for frame in link.sent] == [Open, Draft, Draft], "two spans on their way"


@pytest.mark.parametrize(
    ("greeting", "deadline"),
    [([], "cloud.open_deadline_ms"), ([Opened(False, 512)], "20 ms"), ([OPENED], "10 ms")],
)
def test_a_cloud_that_does_not_answer_is_one_failure_at_the_deadline(greeting: list[Opened], deadline: str) -> None:
    link = FakeLink()
    link.deliver(*greeting)
    events = EngineHarness(link, open_deadline_ms=20.0, verification_deadline_ms=10.0).run()
    error = failed(events).error
    assert isinstance(error, CloudTimeout)
    assert deadline in error.message
    assert "verification_deadline_ms" in error.message
    assert "position 3" in error.message
    assert link.cancelled


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.CLOUD])
@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure("UNAVAILABLE", "gone"), CloudUnavailable),
        (Failure("DEADLINE_EXCEEDED", "late"), CloudTimeout),
        (Failure("RESOURCE_EXHAUSTED", "full", 250), Overloaded),
        (Failure("INTERNAL", "a bug"), InternalError),
        (Failure("NONSENSE", "a bug"), InternalError),
    ],
)
def test_a_failure_ends_the_generation_once(mode: Mode, failure: Failure, kind: type[Exception]) -> None:
    link = FakeLink()
    link.deliver(OPENED, failure)
    error = failed(EngineHarness(link, mode=mode).run()).error
    assert type(error) is kind
    assert (error.message, error.retry_after_ms) == (failure.message, failure.retry_after_ms)
    assert link.cancelled


def test_a_failed_generation_holds_back_text_for_its_resume() -> None:
    link = FakeLink()
    link.deliver(OPENED, Failure("UNAVAILABLE", "gone"))
    assert failed(EngineHarness(link).run()).text == "", "not the flushed rest"


def test_a_cloud_that_breaks_the_rules_is_one_failure() -> None:
    link = FakeLink()
    link.deliver(OPENED, Verdict(0, 3, 9))
    error = failed(EngineHarness(link).run()).error
    assert isinstance(error, ProtocolViolation)
    assert "answers no span" in error.message
    assert link.cancelled


@pytest.mark.parametrize("gate", [Always(), Never()])
def test_without_the_cloud_a_text_may_continue_unverified(gate: Gate) -> None:
    link = FakeLink()
    link.deliver(OPENED)
    harness = EngineHarness(link, gate=gate, disturbance=0.0, continue_without_cloud=True)
    harness.model.during_step = lambda step: link.hang_up() if step == 6 else None
    events = harness.run()
    stats = finished(events).stats
    assert written(events) == cloud_text(40)
    expected = {Origin.UNVERIFIED} if gate == Always() else {Origin.DRAFT, Origin.UNVERIFIED}
    assert origins(events) == expected
    assert stats.unverified_tokens + stats.skipped_tokens == 40
    assert stats.deviation_bound == 1.0, "no token was judged"
    assert stats.bytes_up == link.bytes_up > 0, "the lost link's traffic counts"
    assert link.cancelled
    assert not [frame for frame in link.sent if isinstance(frame, Close)]


def test_a_text_continues_without_a_cloud_that_is_silent_in_a_takeover() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    harness = EngineHarness(link, takeover_tokens=8, continue_without_cloud=True, verification_deadline_ms=5.0)
    harness.model.during_step = lambda step: link.deliver(Verdict(1, 3, 63)) if step == 5 else None
    events = harness.run()
    assert finished(events).finish_reason is FinishReason.LENGTH
    assert len(written(events)) == 40
    assert origins(events) == {Origin.OVERRIDE, Origin.UNVERIFIED}


def test_cloud_mode_cannot_continue_without_the_cloud() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    link.hang_up()
    error = failed(EngineHarness(link, mode=Mode.CLOUD, continue_without_cloud=True).run()).error
    assert isinstance(error, CloudUnavailable)


@pytest.mark.parametrize("lost", [True, False])
def test_a_loss_during_the_closing_audit_loses_only_the_audit(lost: bool) -> None:
    link = FakeLink()
    link.deliver(OPENED)
    harness = EngineHarness(link, gate=Never(), closing_audit=True, verification_deadline_ms=5.0)
    harness.model.during_step = lambda step: link.hang_up() if lost and step == 40 else None
    events = harness.run()
    stats = finished(events).stats
    assert len(written(events)) == stats.skipped_tokens + stats.unverified_tokens == 40
    assert stats.deviation_bound == 1.0


def test_the_closing_audit_is_counted() -> None:
    link = FakeLink(cloud_of(TARGET))
    events = EngineHarness(link, gate=Never(), closing_audit=True).run()
    text, deviations = list(PROMPT), 0
    for token_id in written(events):
        deviations += token_id != int(TARGET.logits(text).argmax())
        text.append(token_id)
    stats = finished(events).stats
    assert deviations > 0, "the models differ"
    assert stats.deviations == deviations
    assert stats.audited_tokens == stats.skipped_tokens == 40
    assert stats.deviation_bound == deviations / 40
    assert link.sent[-1] == Close(3, tuple(written(events)))


def test_end_of_text_is_never_skipped() -> None:
    eos = cloud_text(40)[12]
    expected = cloud_text(40)[: cloud_text(40).index(eos) + 1]
    events = EngineHarness(FakeLink(cloud_of(TARGET)), gate=Never(), disturbance=0.0, eos=(eos,)).run()
    assert written(events) == expected
    assert finished(events).finish_reason is FinishReason.STOP
    assert finished(events).stats.fired == 1
    last = [event for event in events if isinstance(event, Committed)][-1]
    assert last.origin is Origin.VERIFIED


def test_a_stop_string_ends_the_text() -> None:
    stop_at = cloud_text(40)[10]
    expected = cloud_text(40)[: cloud_text(40).index(stop_at) + 1]
    link = FakeLink(cloud_of(TARGET))
    events = EngineHarness(link, stop_at=stop_at).run()
    assert written(events) == expected
    assert finished(events).finish_reason is FinishReason.STOP
    assert finished(events).stats.completion_tokens == len(expected)
    assert isinstance(link.sent[-1], Close)


def test_a_request_is_a_round_trip_if_the_device_waited_for_it() -> None:
    answers = cloud_of(TARGET)

    class Slow(FakeLink):
        async def wait(self, timeout_ms: float) -> bool:
            self.deliver(*[frame for sent in self.sent[-1:] for frame in answers(sent)])
            return True

    slow = Slow()
    slow.deliver(OPENED)
    harness = EngineHarness(slow, span=4, in_flight=1, run_ahead=4, disturbance=0.0)
    list(answers(harness.engine.opening))
    stats = finished(harness.run()).stats
    assert stats.round_trips == len([frame for frame in slow.sent if isinstance(frame, Draft)]) == 8
    assert stats.hidden_round_trips == 0


def test_a_request_is_hidden_if_drafting_covered_it() -> None:
    stats = finished(EngineHarness(FakeLink(cloud_of(TARGET)), disturbance=0.0).run()).stats
    assert stats.round_trips == 0
    assert stats.hidden_round_trips == 8, "spans of four and a bonus each, forty tokens"


def test_a_span_is_no_longer_than_the_cloud_allows() -> None:
    link = FakeLink(cloud_of(TARGET))
    events = EngineHarness(link, span=8, max_span_tokens=3).run()
    assert written(events) == cloud_text(40)
    assert max(len(frame.token_ids) for frame in link.sent if isinstance(frame, Draft)) == 3


def test_times_count_from_a_clock_that_begins_at_zero() -> None:
    harness = EngineHarness(FakeLink(cloud_of(TARGET)), disturbance=0.0, span=4, step_s=0.0)

    def tick(step: int) -> None:
        harness.clock.seconds += 0.010 if step > 1 else 0.0

    harness.model.during_step = tick
    stats = finished(harness.run()).stats
    assert stats.ttft_ms == 0.0
    assert stats.ttft_committed_ms == pytest.approx(30.0)
    assert stats.total_ms == pytest.approx(10.0 * (len(harness.model.fed) - 1))
    assert stats.edge_compute_ms == pytest.approx(stats.total_ms)


def test_a_warm_start_drafts_nothing_until_both_ends_hold_the_prompt() -> None:
    link = FakeLink()
    harness = EngineHarness(link, warm_start=True, disturbance=0.0)

    def open_late(step: int) -> None:
        if step == 1:
            link.deliver(Opened(False, 512), OPENED)
        elif step == 2:
            link.hang_up()

    harness.model.during_step = open_late
    stats = failed(harness.run()).stats
    assert harness.model.fed[0] == (0, PROMPT[:-1])
    assert harness.model.fed[1] == (2, PROMPT[-1:])
    assert stats.decode_ms == pytest.approx(10.0)
    assert stats.total_ms == pytest.approx(20.0)


@pytest.mark.parametrize("after", [1, 5])
def test_leaving_early_cancels(after: int) -> None:
    link = FakeLink(cloud_of(TARGET))
    harness = EngineHarness(link)

    async def leave() -> None:
        events = harness.engine.stream()
        for _ in range(after):
            await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert link.cancelled
    assert harness.model.was_closed
    assert not [frame for frame in link.sent if isinstance(frame, Close | Closed)]


def test_the_deadline_of_a_span_includes_the_prefill() -> None:
    link = FakeLink(cloud_of(FakeTarget()))
    EngineHarness(link).run()
    drafts = [frame for frame in link.sent if isinstance(frame, Draft)]
    assert [draft.deadline_ms for draft in drafts] == [1_000, *[0] * (len(drafts) - 1)], "sent once"

    unread = FakeLink()
    EngineHarness(unread, open_deadline_ms=50.0).run()
    (first, *_) = [frame for frame in unread.sent if isinstance(frame, Draft)]
    assert first.deadline_ms == 50
