"""The end of a text on the device, by example: its own end, a close, or a lost cloud."""

from __future__ import annotations

import re

import pytest

from chaperone_common.errors import (
    ChaperoneError,
    CloudTimeout,
    InternalError,
    Overloaded,
    ProtocolViolation,
    Superseded,
)
from chaperone_common.frames import Close, Closed, Continuation, Failure, Open, Opened, Verdict
from chaperone_common.session import Audited, Committed, DeviceSession, Retracted, State
from chaperone_common.types import FinishReason, OnDeviation, Origin, SamplingParams, SessionId
from tests.support.session.device import EOS, START, committed, fire, lose, session, skip, unasked, with_two_questions

# Tokens that the cloud must not be asked about


def test_an_unasked_token_is_final_and_unverified_once_the_tokens_before_it_are() -> None:
    device = session()
    assert committed(unasked(device, 1)) == [(3, 1, Origin.UNVERIFIED)]
    fire(device, 2)
    assert committed(unasked(device, 3)) == []
    assert committed(skip(device, 4)) == []
    device.send(max_tokens=2)
    assert committed(device.apply(Verdict(0, 5, 3))) == [
        (4, 2, Origin.VERIFIED),
        (5, 3, Origin.VERIFIED),
        (6, 4, Origin.DRAFT),
    ]
    assert (device.tally.fired, device.tally.unverified_tokens, device.tally.cloud_tokens) == (1, 1, 0)
    assert device.unsent_fires == 0


def test_unasked_tokens_are_audited_with_the_next_question() -> None:
    device = session()
    unasked(device, 1)
    fire(device, 2)
    frame = device.send()
    assert (frame.start, frame.final_before) == (3, 4)
    assert device.apply(Verdict(1, 4, 9, deviations=(3,)))[0] == Audited(3, 4, (3,))
    assert (device.tally.audited_tokens, device.tally.deviations, device.tally.cloud_tokens) == (1, 1, 1)


# Deviations that are retracted


def test_retractable_skipped_tokens_become_final_when_they_are_read() -> None:
    device = session(on_deviation=OnDeviation.RETRACT)
    assert committed(skip(device, 1, 2, 3)) == []
    fire(device, 4)
    frame = device.send()
    assert (frame.token_ids, frame.final_before) == ((1, 2, 3, 4), 3)
    events = device.apply(Verdict(1, 5, 9))
    assert committed(events) == [(3, 1, Origin.VERIFIED), (4, 2, Origin.VERIFIED), (5, 9, Origin.OVERRIDE)]
    assert (device.tally.skipped_tokens, device.tally.deviations, device.tally.caught) == (0, 0, 1)


def test_a_text_of_unread_skips_is_stranded() -> None:
    device = session(limit=5, on_deviation=OnDeviation.RETRACT)
    assert not device.stranded
    skip(device, 1, 2)
    assert device.stranded
    device.send()
    assert not device.stranded
    assert committed(device.apply(Verdict(0, 4, 2)))[-1] == (4, 2, Origin.VERIFIED)
    assert device.finish_reason is FinishReason.LENGTH


def test_without_a_cloud_nothing_can_be_retracted() -> None:
    device = session(on_deviation=OnDeviation.RETRACT)
    skip(device, 1)
    lose(device)
    assert committed(device.lose_cloud()) == [(3, 1, Origin.UNVERIFIED)]
    assert committed(skip(device, 2)) == [(4, 2, Origin.UNVERIFIED)]


# The end


def test_an_end_of_text_that_stands_ends_the_text() -> None:
    device = session()
    fire(device, 1, EOS)
    assert device.exhausted
    device.send()
    assert committed(device.apply(Verdict(0, 4, EOS))) == [(3, 1, Origin.VERIFIED), (4, EOS, Origin.VERIFIED)]
    assert device.finish_reason is FinishReason.STOP


def test_a_rejected_end_of_text_continues_the_text() -> None:
    device = session()
    fire(device, EOS)
    device.send()
    device.apply(Verdict(1, 3, 5))
    assert device.finish_reason is None
    assert not device.exhausted


def test_an_end_of_text_as_bonus_withdraws_the_tokens_drafted_after_it() -> None:
    device = session()
    fire(device, 1)
    device.send()
    fire(device, 2, 3)
    events = device.apply(Verdict(0, 4, EOS))
    assert events[1:] == [Retracted(4), Committed(4, EOS, Origin.OVERRIDE)]
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
    assert events[:2] == [Committed(3, 1, Origin.VERIFIED), Committed(4, 2, Origin.VERIFIED)]
    assert device.finish_at(5) == [Retracted(5)]
    assert (device.finish_reason, device.text, device.final_length) == (FinishReason.STOP, [7, 8, 9, 1, 2], 5)
    assert not device.spans
    assert device.close() == Close(5, ())  # the cloud has read the whole text


def test_a_stop_string_before_an_override_undoes_the_override() -> None:
    """The counts equal those of a text that ended at the stop string."""
    device = session()
    fire(device, 1, 2, 3, 4)
    device.send()
    assert committed(device.apply(Verdict(1, 5, 9)))[-1] == (5, 9, Origin.OVERRIDE)
    assert device.finish_at(4) == [Retracted(4)]
    assert (device.finish_reason, device.text, device.final_length) == (FinishReason.STOP, [7, 8, 9, 1], 4)
    tally = device.tally
    assert (tally.verified_tokens, tally.overridden_tokens, tally.caught, tally.retracted_tokens) == (1, 0, 0, 3)
    assert device.close() == Close(4, ())


def test_a_stop_string_in_a_takeover_undoes_the_clouds_tokens_after_it() -> None:
    device = session()
    fire(device, 1)
    device.send(continuation_tokens=10)
    device.apply(Verdict(1, 3, 9))
    device.apply(Continuation(4, (5, 6, 7), handed_back=False))
    assert device.finish_at(5) == [], "the device had drafted nothing there"
    assert (device.text, device.tally.takeover_tokens, device.tally.overridden_tokens) == ([7, 8, 9, 9, 5], 1, 1)
    assert device.close() == Close(5, ())


def test_a_deadline_that_passed_ends_the_stream() -> None:
    device = session()
    error = CloudTimeout("cloud: no answer within 5 ms")
    with pytest.raises(CloudTimeout) as raised:
        device.fail(error)
    assert raised.value is error
    assert device.state is State.FAILED


def test_each_token_has_a_record_of_its_outcome() -> None:
    device = session()
    skip(device, 1)
    fire(device, 2, 3)
    device.send()
    (_, override) = [event for event in device.apply(Verdict(1, 4, 6)) if not isinstance(event, Audited)]
    assert isinstance(override, Committed)
    assert override.replaced is not None
    assert (override.replaced.token_id, override.fired) == (2, True)
    first, second = device.token(3), device.token(4)
    assert first is not None
    assert second is not None
    assert (first.token_id, first.origin, first.overridden) == (1, Origin.DRAFT, False)
    assert (second.token_id, second.origin, second.overridden) == (6, Origin.OVERRIDE, True)
    assert device.token(2) is None, "a token of the prompt"


def test_a_stop_string_at_the_end_of_the_text_retracts_nothing() -> None:
    device = session()
    skip(device, 1, 2)
    assert device.finish_at(5) == []
    assert device.close() == Close(3, (1, 2))


# Closing


def test_the_close_carries_the_unread_tokens() -> None:
    device = session()
    skip(device, 1)
    fire(device, 2)
    device.send()
    device.apply(Verdict(0, 5, 3))
    skip(device, 4, 5)
    fire(device, 6)  # provisional when the text is cut: withdrawn, not audited
    device.finish_at(8)
    assert device.close() == Close(6, (4, 5))
    assert device.apply(Closed((7,), queue_us=1, compute_us=2)) == [Audited(6, 8, (7,))]
    assert device.closed
    assert (device.tally.audited_tokens, device.tally.deviations, device.tally.cloud_compute_us) == (3, 1, 2)


def test_answers_that_cross_the_close_are_counted_and_change_nothing() -> None:
    device = session()
    skip(device, 1, 2)
    device.send()
    device.close()
    text = list(device.text)
    for frame in (Opened(True, 100), Verdict(0, 5, 3, (4,)), Continuation(6, (1,), handed_back=True)):
        assert device.apply(frame) == []
    assert device.text == text
    assert device.apply(Closed((3,))) == [Audited(3, 5, (3, 4))]
    assert device.tally.deviations == 2
    assert device.state is State.DONE
    with pytest.raises(ProtocolViolation, match="Closed is not allowed"):
        device.apply(Closed())


def test_a_deviation_after_a_stop_string_does_not_count() -> None:
    device = with_two_questions()
    assert committed(device.apply(Verdict(0, 4, 2)))[-1] == (5, 3, Origin.DRAFT)
    device.finish_at(5)
    assert device.close() == Close(5, ())
    assert device.apply(Verdict(1, 6, 9, (5,))) == []
    device.apply(Closed())
    assert (device.tally.audited_tokens, device.tally.deviations) == (0, 0)


def test_a_share_of_the_texts_without_requests_is_audited() -> None:
    audited, passed = session(), session()
    for device in (audited, passed):
        skip(device, 1, 2)
    assert audited.close(audit_share=0.25) == Close(3, (1, 2))
    assert audited.apply(Closed((4,))) == [Audited(3, 5, (4,), weight=4.0)]
    assert passed.close(audit_share=0.0) == Close(3, ())
    assert passed.apply(Closed()) == []
    assert passed.tally.audited_tokens == 0


def test_nothing_is_sent_after_the_close() -> None:
    device = session()
    device.close()
    with pytest.raises(ProtocolViolation, match="Draft is not allowed"):
        device.send()


# Losing the cloud


def test_without_the_cloud_provisional_tokens_become_final_as_unverified() -> None:
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
        device.apply(failure)
    assert caught.value.retry_after_ms == failure.retry_after_ms
    assert device.state is State.FAILED
    assert device.finish_reason is None
    assert device.final_length == START
