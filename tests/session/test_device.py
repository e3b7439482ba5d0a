"""The device's end by example: what is final, what is taken back, what is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import (
    ChaperoneError,
    CloudTimeout,
    CloudUnavailable,
    InternalError,
    Overloaded,
    ProtocolViolation,
    Superseded,
)
from common.messages import Close, Closed, Continuation, Draft, Failure, Open, Opened, Verdict
from common.session import CloudSession, Committed, DeviceSession, Drafted, Retracted, SessionEvent, State
from common.types import FinishReason, Origin, SamplingParams, SessionId, Signal

EOS = 0
PROMPT = (7, 8, 9)
START = len(PROMPT)
OPEN = Open(SessionId("s"), "", SamplingParams(), 20, (EOS,), PROMPT)


def session(*, limit: int = 23, committed: tuple[int, ...] = ()) -> DeviceSession:
    device = DeviceSession(Open(SessionId("s"), "", SamplingParams(), 20, (EOS,), PROMPT, committed), limit=limit)
    assert list(device.apply(Opened(prefilled=True, context_tokens=100))) == []
    return device


def fire(device: DeviceSession, *token_ids: int, risk: float = 0.5) -> list[SessionEvent]:
    signal = Signal(1.0, 0.5, 0.1, 1.0, risk)
    return [event for token_id in token_ids for event in device.draft(token_id, signal, fires=True)]


def skip(device: DeviceSession, *token_ids: int) -> list[SessionEvent]:
    signal = Signal(0.0, 1.0, 1.0, 9.0, 0.0)
    return [event for token_id in token_ids for event in device.draft(token_id, signal, fires=False)]


def committed(events: Iterable[SessionEvent]) -> list[tuple[int, int, Origin]]:
    return [(event.position, event.token_id, event.origin) for event in events if isinstance(event, Committed)]


# Drafting and sending


def test_a_fired_token_is_provisional_and_all_behind_it() -> None:
    device = session()
    assert committed(skip(device, 1)) == [(3, 1, Origin.DRAFT)]
    assert committed(fire(device, 2)) == []
    assert committed(skip(device, 3)) == []
    assert (device.final, device.unsent_fires, device.tally.fired) == (4, 1, 1)


def test_a_draft_tells_what_is_final() -> None:
    device = session()
    skip(device, 1, 2)
    fire(device, 3, risk=0.75)
    frame = device.send(continuation_tokens=4, deadline_ms=900)
    assert frame == Draft(0, 3, (1, 2, 3), (0.0, 0.0, 0.75), 5, 4, 900)
    assert device.unsent_fires == 0
    fire(device, 4)
    assert device.send() == Draft(0, 6, (4,), (0.5,), 6)


def test_a_long_audit_is_sent_in_chunks() -> None:
    device = session()
    skip(device, 1, 2, 3, 4)
    fire(device, 5)
    frames = [device.send(max_tokens=2) for _ in range(3)]
    assert [(frame.start, frame.token_ids, frame.final_before) for frame in frames] == [
        (3, (1, 2), 5),
        (5, (3, 4), 7),
        (7, (5,), 7),
    ]


def test_chunks_are_audited_once_each_and_only_the_last_is_judged() -> None:
    """Both ends together, with a cloud that would have written 1 2 8 4 6 here."""
    device = session()
    cloud = CloudSession(OPEN, context_tokens=100, vocabulary_size=50)
    skip(device, 1, 2, 3, 4)
    fire(device, 5)
    choices = [1, 2, 8, 4, 6, 7]
    answers = []
    for frame in [device.send(max_tokens=2) for _ in range(3)]:
        judging = cloud.receive(frame)
        if judging is not None:
            first = judging.start - START
            answers.append(cloud.answer(judging, choices[first : first + judging.choices]))
    assert answers == [Verdict(0, 5, 8), Verdict(0, 7, 6, (5,))]  # the bonus after the second chunk overrides the 5
    events = [event for answer in answers for event in device.apply(answer)]
    assert events == [Retracted(7), Committed(7, 6, Origin.BONUS)]
    assert device.text == cloud.text == [7, 8, 9, 1, 2, 3, 4, 6]
    assert device.revision == cloud.revision == 1
    assert (device.tally.deviations, device.tally.audited_tokens, device.tally.requests) == (1, 4, 3)


# Verdicts


def test_a_span_that_stands_is_verified_and_gets_its_bonus() -> None:
    device = session()
    fire(device, 1, 2)
    device.send()
    assert committed(device.apply(Verdict(0, 5, 3))) == [
        (3, 1, Origin.VERIFIED),
        (4, 2, Origin.VERIFIED),
        (5, 3, Origin.BONUS),
    ]
    assert (device.final, device.sent, device.read) == (6, 6, 6)


def test_an_override_retracts_what_hangs_on_the_token() -> None:
    device = session()
    fire(device, 1, 2, 3)
    device.send()
    fire(device, 4)
    device.send()
    events = list(device.apply(Verdict(1, 4, 8)))
    assert events == [Committed(3, 1, Origin.VERIFIED), Retracted(4), Committed(4, 8, Origin.OVERRIDE)]
    assert device.text == [7, 8, 9, 1, 8]
    assert (device.revision, len(device.spans), device.tally.retracted_tokens) == (1, 0, 3)
    fire(device, 5)
    assert device.send() == Draft(1, 5, (5,), (), 5)


def test_a_guessed_bonus_is_verified_without_being_sent() -> None:
    device = session()
    fire(device, 1)
    device.send()
    fire(device, 2, 3)
    assert committed(device.apply(Verdict(0, 4, 2))) == [(3, 1, Origin.VERIFIED), (4, 2, Origin.VERIFIED)]
    assert device.text == [7, 8, 9, 1, 2, 3]
    assert device.send().start == 5


def test_a_wrong_guess_of_the_bonus_raises_the_revision_only_if_it_was_sent() -> None:
    for sent in (False, True):
        device = session()
        fire(device, 1)
        device.send()
        fire(device, 2)
        if sent:
            device.send()
        assert list(device.apply(Verdict(0, 4, 6)))[1:] == [Retracted(4), Committed(4, 6, Origin.BONUS)]
        assert device.revision == int(sent)
        assert not device.spans


def test_tokens_skipped_behind_a_fire_become_final_with_it() -> None:
    device = session()
    fire(device, 1)
    device.send()
    skip(device, 2, 3)
    assert committed(device.apply(Verdict(0, 4, 2))) == [
        (3, 1, Origin.VERIFIED),
        (4, 2, Origin.VERIFIED),
        (5, 3, Origin.DRAFT),
    ]


@pytest.mark.parametrize("verdict", [Verdict(0, 5, 3), Verdict(1, 3, 6), Verdict(1, 4, 6)])
def test_a_replayed_verdict_is_harmless(verdict: Verdict) -> None:
    device = session()
    fire(device, 1, 2)
    device.send()
    list(device.apply(verdict))
    before = (list(device.text), device.final, device.sent, device.read, device.revision, repr(device.tally))
    assert list(device.apply(verdict)) == []
    assert (list(device.text), device.final, device.sent, device.read, device.revision, repr(device.tally)) == before


def test_a_replayed_verdict_does_not_answer_the_next_span() -> None:
    device = session()
    fire(device, 1)
    device.send()
    fire(device, 2, 3)
    device.send()
    list(device.apply(Verdict(0, 4, 2)))
    assert list(device.apply(Verdict(0, 4, 2))) == []
    assert len(device.spans) == 1
    assert committed(device.apply(Verdict(0, 6, 4))) == [(5, 3, Origin.VERIFIED), (6, 4, Origin.BONUS)]


def test_a_replayed_audit_is_not_counted_twice() -> None:
    device = session()
    skip(device, 1, 2, 3)
    device.send(max_tokens=2)
    device.send()
    audit = Verdict(0, 5, 9, deviations=(4,))  # the bonus contradicts a token that is final; the next span tells
    assert list(device.apply(audit)) == []
    assert list(device.apply(audit)) == []
    assert list(device.apply(Verdict(0, 6, 4, deviations=(5,)))) == [Committed(6, 4, Origin.BONUS)]
    assert (device.tally.deviations, device.tally.audited_tokens) == (2, 3)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (Verdict(0, 6, 1), "verdict at position 6 answers a span from 3 to 5"),
        (Verdict(0, 3, 6), "verdict of revision 0 answers a span of 0"),  # overrides without saying so
        (Verdict(1, 5, 6), "verdict of revision 1 answers a span of 0"),  # a bonus overrides nothing
        (Verdict(2, 3, 6), "verdict of revision 2 answers a span of 0"),
    ],
)
def test_a_verdict_that_fits_no_span_is_refused(verdict: Verdict, message: str) -> None:
    device = session()
    fire(device, 1, 2)
    device.send()
    with pytest.raises(ProtocolViolation, match=re.escape(message)):
        list(device.apply(verdict))


def test_a_verdict_may_not_touch_what_is_final() -> None:
    device = session()
    skip(device, 1, 2)
    fire(device, 3)
    device.send()
    with pytest.raises(ProtocolViolation, match="verdict at position 4 answers a span from 5 to 6"):
        list(device.apply(Verdict(1, 4, 6)))


def test_a_verdict_without_a_span_is_refused() -> None:
    device = session()
    fire(device, 1)
    with pytest.raises(ProtocolViolation, match="verdict at position 3 answers no span"):
        list(device.apply(Verdict(0, 3, 1)))


def test_times_of_the_cloud_add_up() -> None:
    device = session()
    list(device.apply(Opened(prefilled=True, context_tokens=100, queue_us=1, compute_us=10)))
    fire(device, 1)
    device.send()
    list(device.apply(Verdict(0, 4, 2, (), 100, 1000)))
    assert (device.tally.cloud_queue_us, device.tally.cloud_compute_us, device.prefill_us) == (101, 1010, 10)


# The end


def test_an_end_of_text_that_stands_ends_the_text() -> None:
    device = session()
    fire(device, 1, EOS)
    assert device.exhausted
    device.send()
    assert committed(device.apply(Verdict(0, 4, EOS))) == [(3, 1, Origin.VERIFIED), (4, EOS, Origin.VERIFIED)]
    assert device.finish_reason is FinishReason.STOP


def test_an_end_of_text_that_falls_lets_the_text_go_on() -> None:
    device = session()
    fire(device, EOS)
    device.send()
    list(device.apply(Verdict(1, 3, 5)))
    assert device.finish_reason is None
    assert not device.exhausted


def test_an_end_of_text_as_bonus_withdraws_what_was_drafted_on() -> None:
    device = session()
    fire(device, 1)
    device.send()
    fire(device, 2, 3)
    events = list(device.apply(Verdict(0, 4, EOS)))
    assert events[1:] == [Retracted(4), Committed(4, EOS, Origin.BONUS)]
    assert device.finish_reason is FinishReason.STOP
    assert device.text == [7, 8, 9, 1, EOS]


def test_an_end_of_text_id_in_the_prompt_exhausts_nothing() -> None:
    device = DeviceSession(Open(SessionId("s"), "", SamplingParams(), 20, (EOS,), (7, EOS)), limit=22)
    assert not device.exhausted


def test_the_text_stops_at_the_limit() -> None:
    device = session(limit=5)
    fire(device, 1, 2)
    assert device.exhausted
    device.send()
    assert committed(device.apply(Verdict(0, 4, 2)))[-1] == (4, 2, Origin.VERIFIED)
    assert device.finish_reason is FinishReason.LENGTH


def test_skipped_tokens_stop_at_the_limit_too() -> None:
    device = session(limit=5)
    skip(device, 1, 2)
    assert device.finish_reason is FinishReason.LENGTH
    assert device.close() == Close(3, (1, 2))


def test_a_stop_string_ends_the_text_where_it_was_completed() -> None:
    device = session()
    fire(device, 1, 2, 3)
    device.send()
    skip(device, 4)
    events = device.apply(Verdict(0, 6, 4))
    assert [next(events), next(events)] == [Committed(3, 1, Origin.VERIFIED), Committed(4, 2, Origin.VERIFIED)]
    assert list(device.finish_at(5)) == [Retracted(5)]
    assert (device.finish_reason, device.text, device.final) == (FinishReason.STOP, [7, 8, 9, 1, 2], 5)
    assert not device.spans
    assert device.close() == Close(5, ())  # the cloud has read it all


def test_a_stop_string_at_the_end_of_the_text_retracts_nothing() -> None:
    device = session()
    skip(device, 1, 2)
    assert list(device.finish_at(5)) == []
    assert device.close() == Close(3, (1, 2))


# Closing


def test_the_close_carries_what_was_never_read() -> None:
    device = session()
    skip(device, 1)
    fire(device, 2)
    device.send()
    list(device.apply(Verdict(0, 5, 3)))
    skip(device, 4, 5)
    fire(device, 6)  # provisional when the text is cut: withdrawn, not audited
    list(device.finish_at(8))
    assert device.close() == Close(6, (4, 5))
    assert list(device.apply(Closed((7,), queue_us=1, compute_us=2))) == []
    assert device.closed
    assert (device.tally.audited_tokens, device.tally.deviations, device.tally.cloud_compute_us) == (3, 1, 2)


def test_what_crosses_the_close_is_counted_and_changes_nothing() -> None:
    device = session()
    skip(device, 1, 2)
    device.send()
    device.close()
    text = list(device.text)
    for frame in (Opened(True, 100), Verdict(0, 5, 3, (4,)), Continuation(6, (1,), handed_back=True)):
        assert list(device.apply(frame)) == []
    assert device.text == text
    assert device.tally.deviations == 1
    list(device.apply(Closed()))
    assert device.state is State.DONE
    with pytest.raises(ProtocolViolation, match="Closed is not allowed"):
        list(device.apply(Closed()))


def test_nothing_is_sent_after_the_close() -> None:
    device = session()
    device.close()
    with pytest.raises(ProtocolViolation, match="Draft is not allowed"):
        device.send()


# Takeover


def test_the_cloud_writes_on_until_it_hands_back() -> None:
    device = session()
    fire(device, 1)
    device.send(continuation_tokens=3)
    list(device.apply(Verdict(1, 3, 5)))
    assert device.following
    assert committed(device.apply(Continuation(4, (6, 7), handed_back=False))) == [
        (4, 6, Origin.TAKEOVER),
        (5, 7, Origin.TAKEOVER),
    ]
    assert committed(device.apply(Continuation(6, (8,), handed_back=True))) == [(6, 8, Origin.TAKEOVER)]
    assert not device.following
    assert (device.sent, device.read, device.tally.takeover_tokens) == (7, 7, 3)


def test_an_empty_draft_hands_over() -> None:
    device = session()
    assert device.send(continuation_tokens=3) == Draft(0, 3, (), (), 3, 3)
    assert committed(device.apply(Verdict(0, 3, 5))) == [(3, 5, Origin.BONUS)]
    assert device.following


@pytest.mark.parametrize("continuation_tokens", [0, 3])
def test_no_takeover_without_an_override(continuation_tokens: int) -> None:
    device = session()
    fire(device, 1)
    device.send(continuation_tokens=continuation_tokens)
    list(device.apply(Verdict(0, 4, 5)))
    assert not device.following


def test_no_takeover_begins_when_the_override_ends_the_text() -> None:
    device = session()
    fire(device, 1)
    device.send(continuation_tokens=3)
    list(device.apply(Verdict(1, 3, EOS)))
    assert not device.following
    assert device.finish_reason is FinishReason.STOP


def test_a_takeover_ends_with_an_end_of_text() -> None:
    device = session()
    device.send(continuation_tokens=3)
    list(device.apply(Verdict(0, 3, 5)))
    list(device.apply(Continuation(4, (EOS,), handed_back=True)))
    assert device.finish_reason is FinishReason.STOP


def test_a_draft_takes_the_takeover_back_and_its_tokens_in_flight_stand() -> None:
    """Both ends: the device drafts while the cloud writes, guesses one token right and the next one wrong."""
    device, cloud = session(), CloudSession(OPEN, context_tokens=100, vocabulary_size=50)
    judging = cloud.receive(device.send(continuation_tokens=9))
    assert judging is not None
    list(device.apply(cloud.answer(judging, [5])))
    in_flight = [cloud.answer(cloud.writing(), [6]), cloud.answer(cloud.writing(), [7])]
    fire(device, 6, 1)
    frame = device.send()
    assert (frame.start, frame.revision) == (4, 0)
    in_flight.append(cloud.hand_back())
    assert cloud.receive(frame) is None  # contradicts the 7, which the device is about to receive
    events = [event for answer in in_flight for event in device.apply(answer)]
    assert committed(events) == [(4, 6, Origin.TAKEOVER), (5, 7, Origin.TAKEOVER)]
    assert Retracted(5) in events
    assert device.text == cloud.text == [7, 8, 9, 5, 6, 7]
    assert device.revision == cloud.revision == 1
    assert not device.following
    fire(device, 8)
    judging = cloud.receive(device.send())
    assert judging is not None
    assert committed(device.apply(cloud.answer(judging, [8, 9]))) == [(6, 8, Origin.VERIFIED), (7, 9, Origin.BONUS)]


@pytest.mark.parametrize(
    ("token_ids", "kept", "reason"),
    [((6, EOS, 7), [6, EOS], FinishReason.STOP), ((6, 7, 8, 1), [6, 7, 8], FinishReason.LENGTH)],
)
def test_nothing_follows_the_end_of_a_takeover(token_ids: tuple[int, ...], kept: list[int], reason: str) -> None:
    device = session(limit=7)
    device.send(continuation_tokens=9)
    list(device.apply(Verdict(0, 3, 5)))
    events = list(device.apply(Continuation(4, token_ids, handed_back=True)))
    assert [token_id for _, token_id, _ in committed(events)] == kept
    assert device.text == [7, 8, 9, 5, *kept]
    assert device.finish_reason == reason


def test_no_bonus_follows_an_end_of_text() -> None:
    device = session()
    fire(device, 1, EOS)
    device.send()
    assert committed(device.apply(Verdict(0, 5, 6)))[-1] == (4, EOS, Origin.VERIFIED)
    assert device.text[-1] == EOS


def test_a_replayed_continuation_is_harmless() -> None:
    device = session()
    device.send(continuation_tokens=2)
    list(device.apply(Verdict(0, 3, 1)))
    written = Continuation(4, (2, 5), handed_back=True)
    assert committed(device.apply(written)) == [(4, 2, Origin.TAKEOVER), (5, 5, Origin.TAKEOVER)]
    state = device.state
    assert list(device.apply(written)) == []
    assert (device.state, device.text[-2:], device.tally.takeover_tokens) == (state, [2, 5], 2)


def test_a_continuation_must_follow_the_text() -> None:
    device = session()
    device.send(continuation_tokens=3)
    list(device.apply(Verdict(0, 3, 5)))
    with pytest.raises(ProtocolViolation, match="continuation starts at 5, the final text ends at 4"):
        list(device.apply(Continuation(5, (6,), handed_back=False)))


def test_a_continuation_without_a_takeover_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="Continuation is not allowed"):
        list(session().apply(Continuation(3, (6,), handed_back=False)))


# Losing the cloud


def test_without_the_cloud_what_is_provisional_becomes_final_and_says_so() -> None:
    device = session()
    skip(device, 1)
    fire(device, 2)
    device.send()
    skip(device, 3)
    assert committed(device.lose_cloud()) == [(4, 2, Origin.UNVERIFIED), (5, 3, Origin.UNVERIFIED)]
    assert committed(skip(device, 4)) == [(6, 4, Origin.UNVERIFIED)]
    assert not device.spans
    assert device.tally.unverified_tokens == 3


def test_a_provisional_end_of_text_becomes_the_end() -> None:
    device = session()
    fire(device, EOS)
    assert committed(device.lose_cloud()) == [(3, EOS, Origin.UNVERIFIED)]
    assert device.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure("DEADLINE_EXCEEDED", "late"), CloudTimeout),
        (Failure("ABORTED", "newer stream"), Superseded),
        (Failure("RESOURCE_EXHAUSTED", "full", 250), Overloaded),
        (Failure("UNKNOWN", "?"), InternalError),
    ],
)
def test_a_failure_is_an_error_and_never_an_end_of_text(failure: Failure, error: type[ChaperoneError]) -> None:
    device = session()
    fire(device, 1)
    device.send()
    with pytest.raises(error, match=re.escape(failure.message)) as caught:
        list(device.apply(failure))
    assert caught.value.retry_after_ms == failure.retry_after_ms
    assert device.state is State.FAILED
    assert device.finish_reason is None
    assert device.final == START


# Resuming


def test_a_resumed_session_starts_behind_what_was_committed() -> None:
    device = session(committed=(1, 2))
    assert (device.final, device.sent, device.read, device.first_new) == (5, 5, 5, 5)
    events = fire(device, 3)
    assert isinstance(events[0], Drafted)
    assert events[0].position == 5
    assert device.send().start == 5


# A new stream after a failure


def lose(device: DeviceSession) -> None:
    with pytest.raises(CloudUnavailable):
        list(device.apply(Failure("UNAVAILABLE", "gone")))


def test_reopening_keeps_what_is_provisional_and_sends_it_again() -> None:
    device = session()
    fire(device, 1, 2)
    device.send(continuation_tokens=4)
    fire(device, 3)
    lose(device)
    assert device.reopen() == OPEN
    assert (device.text, device.final, device.sent, device.read) == ([7, 8, 9, 1, 2, 3], 3, 3, 3)
    assert (device.revision, len(device.spans), device.prefilled, device.unsent_fires) == (0, 0, False, 3)
    list(device.apply(Opened(prefilled=True, context_tokens=100)))
    assert device.send() == Draft(0, 3, (1, 2, 3), (), 3)
    assert committed(device.apply(Verdict(0, 6, 4)))[-1] == (6, 4, Origin.BONUS)
    assert (device.tally.fired, device.tally.requests, device.tally.reconnects) == (3, 1, 1)


def test_reopening_tells_what_was_read_and_the_rest_is_audited_by_the_next_draft() -> None:
    device = session(committed=(4,))
    fire(device, 1)
    device.send()
    list(device.apply(Verdict(0, 5, 2)))
    skip(device, 3, 6)
    fire(device, 5)
    device.send()
    lose(device)
    opening = device.reopen()
    assert opening.committed_token_ids == (4, 1, 2), "what an earlier generation had committed, and what was read since"
    assert opening.prompt_token_ids == PROMPT
    assert (device.sent, device.final) == (6, 8)
    frame = device.send()
    assert (frame.start, frame.token_ids, frame.final_before) == (6, (3, 6, 5), 8)
    list(device.apply(Verdict(0, 9, 1, (7,))))
    assert (device.tally.audited_tokens, device.tally.deviations, device.tally.skipped_tokens) == (2, 1, 2)


def test_tokens_on_their_way_to_a_judge_wait_for_one_again() -> None:
    """The fire before them is decided, so that without the loss only their own verdict was awaited."""
    device = session()
    fire(device, 1)
    device.send()
    skip(device, 2, 3)
    device.send()
    list(device.apply(Verdict(0, 4, 2)))  # the bonus confirms the 2, and the 3 is on its way
    assert (device.final, device.unsent_fires) == (5, 0)
    lose(device)
    assert device.reopen().committed_token_ids == (1, 2)
    assert device.unsent_fires == 1
    assert committed(skip(device, 4)) == []
    assert device.send() == Draft(0, 5, (3, 4), (0.0, 0.0), 5)


@pytest.mark.parametrize("handed_back", [False, True])
def test_an_interrupted_takeover_is_over(handed_back: bool) -> None:
    device = session()
    device.send(continuation_tokens=9)
    list(device.apply(Verdict(0, 3, 5)))
    list(device.apply(Continuation(4, (6, 7), handed_back=handed_back)))
    lose(device)
    assert device.reopen().committed_token_ids == (5, 6, 7)
    assert not device.following
    assert device.send(continuation_tokens=6) == Draft(0, 6, (), (), 6, 6)


def test_a_stream_on_which_the_cloud_never_answered_is_no_reconnect() -> None:
    device = session()
    for _ in range(3):
        lose(device)
        device.reopen()
    list(device.apply(Opened(prefilled=False, context_tokens=100)))
    list(device.apply(Opened(prefilled=True, context_tokens=100)))
    assert device.tally.reconnects == 1


def test_only_a_lost_stream_is_reopened_and_only_while_there_is_something_to_write() -> None:
    device = session()
    with pytest.raises(ProtocolViolation, match="Open of the same session on a new stream is not allowed"):
        device.reopen()
    skip(device, 1)
    list(device.finish_at(4))
    device.close()
    lose(device)
    with pytest.raises(ProtocolViolation, match="reopen: the text has ended at 4"):
        device.reopen()


# Whatever comes


TOKENS = st.lists(st.integers(0, 3), max_size=3).map(tuple)
POSITIONS = st.integers(2, 10)
MOVES = st.one_of(
    st.sampled_from(["fire", "skip", "send", "hand over"]),
    st.builds(Opened, st.booleans(), st.just(100)),
    st.builds(Verdict, st.integers(0, 2), POSITIONS, st.integers(0, 3), st.lists(POSITIONS, max_size=2).map(tuple)),
    st.builds(Continuation, POSITIONS, TOKENS, st.booleans()),
)


@settings(max_examples=300)
@given(moves=st.lists(MOVES, max_size=20))
def test_a_hostile_cloud_meets_only_named_refusals(moves: list[str | Opened | Verdict | Continuation]) -> None:
    """And whatever it says, what is final stays as it was."""
    device = session(limit=9)
    final: list[int] = [*PROMPT]
    for number, move in enumerate(moves):
        if device.finish_reason is not None:
            break
        try:
            if move in ("fire", "skip"):
                if not device.exhausted and not device.following:
                    list(device.draft(number % 4, Signal(1.0, 0.5, 0.1, 1.0, 0.5), fires=move == "fire"))
            elif isinstance(move, str):
                device.send(continuation_tokens=2 if move == "hand over" else 0)
            else:
                list(device.apply(move))
        except ProtocolViolation:
            break
        assert device.text[: len(final)] == final
        assert START <= device.final <= len(device.text) <= device.limit
        assert device.sent <= len(device.text)
        final = device.text[: device.final]
