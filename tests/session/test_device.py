"""The device's end by example: final tokens, retracted tokens, and sent frames."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import (
    ProtocolViolation,
)
from chaperone_common.frames import Continuation, Draft, Opened, Verdict
from chaperone_common.session import Audited, CloudSession, Committed, Drafted, Retracted
from chaperone_common.types import Origin, Span
from tests.support.session.device import (
    OPEN,
    PROMPT,
    START,
    committed,
    fire,
    session,
    skip,
    snapshot,
    with_two_questions,
)

# Drafting and sending


def test_a_fired_token_and_all_after_it_are_provisional() -> None:
    device = session()
    assert committed(skip(device, 1)) == [(3, 1, Origin.DRAFT)]
    assert committed(fire(device, 2)) == []
    assert committed(skip(device, 3)) == []
    assert (device.final_length, device.unsent_fires, device.tally.fired) == (4, 1, 1)
    assert device.has_question
    device.send()
    assert not device.has_question


@pytest.mark.parametrize(("continuation_tokens", "asks"), [(0, False), (4, True)])
def test_a_fire_right_after_a_span_needs_no_request_of_its_own(continuation_tokens: int, asks: bool) -> None:
    """A request is needed if the cloud may take over, which needs the token to be read."""
    device = session()
    fire(device, 1)
    device.send(continuation_tokens=continuation_tokens)
    fire(device, 2)
    assert device.has_question is asks


def test_tokens_skipped_after_a_sent_fire_are_final_once_it_stands() -> None:
    device = with_two_questions()
    assert device.spans[1] == Span(0, 4, (2, 3, 4), final_before=6, continuation_tokens=0)
    assert device.final_length == 3, "the fire is not judged yet"
    expected = [(3, 1, Origin.VERIFIED), (4, 2, Origin.VERIFIED), (5, 3, Origin.DRAFT)]
    assert committed(device.apply(Verdict(0, 4, 2))) == expected, "the bonus confirms the first, the second is skipped"
    events = device.apply(Verdict(0, 7, 8, (5,)))
    assert events[0] == Audited(5, 6, (5,))
    assert committed(events) == [(6, 4, Origin.VERIFIED), (7, 8, Origin.BONUS)]
    assert (device.tally.skipped_tokens, device.tally.audited_tokens, device.tally.deviations) == (1, 1, 1)


def test_a_bonus_replaces_tokens_skipped_after_a_sent_fire() -> None:
    device = with_two_questions()
    assert committed(device.apply(Verdict(0, 4, 9)))[-1] == (4, 9, Origin.OVERRIDE)
    assert (device.revision, device.text[3:], len(device.spans)) == (1, [1, 9], 0)
    assert (device.tally.caught, device.tally.skipped_tokens) == (1, 0)


def test_a_draft_says_which_tokens_are_final() -> None:
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
        (3, (1, 2), 6),
        (5, (3, 4), 7),
        (7, (5,), 7),
    ]


def test_chunks_are_audited_once_each_and_only_the_last_is_judged() -> None:
    """Both ends together, with a cloud whose own text is 1 2 8 4 6."""
    device = session()
    cloud = CloudSession(OPEN, context_tokens=100, vocabulary_size=50)
    skip(device, 1, 2, 3, 4)
    fire(device, 5)
    choices = [1, 2, 8, 4, 6, 7]
    answers = []
    for frame in [device.send(max_tokens=2) for _ in range(3)]:
        request = cloud.receive(frame)
        if request is not None:
            first = request.start - START
            answers.append(cloud.answer(request, choices[first : first + request.num_choices]))
    assert answers == [Verdict(0, 5, 8), Verdict(0, 7, 6, (5,))]  # the bonus after the second chunk overrides the 5
    events = [event for answer in answers for event in device.apply(answer)]
    assert events == [Audited(3, 5), Audited(5, 7, (5,)), Retracted(7), Committed(7, 6, Origin.OVERRIDE)]
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
    assert (device.final_length, device.sent_length, device.read_length) == (6, 6, 6)


def test_an_override_retracts_the_tokens_after_it() -> None:
    device = session()
    fire(device, 1, 2, 3)
    device.send()
    fire(device, 4)
    device.send()
    events = device.apply(Verdict(1, 4, 8))
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
        assert device.apply(Verdict(0, 4, 6))[1:] == [Retracted(4), Committed(4, 6, Origin.OVERRIDE)]
        assert device.revision == int(sent)
        assert not device.spans


def test_tokens_skipped_after_a_fire_become_final_with_it() -> None:
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
    device.apply(verdict)
    before = snapshot(device)
    assert device.apply(verdict) == []
    assert snapshot(device) == before


def test_a_replayed_verdict_does_not_answer_the_next_span() -> None:
    device = session()
    fire(device, 1)
    device.send()
    fire(device, 2, 3)
    device.send()
    device.apply(Verdict(0, 4, 2))
    assert device.apply(Verdict(0, 4, 2)) == []
    assert len(device.spans) == 1
    assert committed(device.apply(Verdict(0, 6, 4))) == [(5, 3, Origin.VERIFIED), (6, 4, Origin.BONUS)]


def test_a_replayed_audit_is_not_counted_twice() -> None:
    device = session()
    skip(device, 1, 2, 3)
    device.send(max_tokens=2)
    device.send()
    audit = Verdict(0, 5, 9, deviations=(4,))  # the bonus contradicts a final token, which the next verdict reports
    assert device.apply(audit) == [Audited(3, 5, (4,))]
    assert device.apply(audit) == []
    assert device.apply(Verdict(0, 6, 4, deviations=(5,))) == [Audited(5, 6, (5,)), Committed(6, 4, Origin.BONUS)]
    assert (device.tally.deviations, device.tally.audited_tokens) == (2, 3)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (Verdict(0, 6, 1), "verdict at position 6 answers a span from 3 to 5"),
        (Verdict(0, 3, 6), "verdict of revision 0 answers a span of 0"),  # an override without a new revision
        (Verdict(1, 5, 6), "verdict of revision 1 answers a span of 0"),  # a bonus overrides nothing
        (Verdict(2, 3, 6), "verdict of revision 2 answers a span of 0"),
    ],
)
def test_a_verdict_that_fits_no_span_is_refused(verdict: Verdict, message: str) -> None:
    device = session()
    fire(device, 1, 2)
    device.send()
    with pytest.raises(ProtocolViolation, match=re.escape(message)):
        device.apply(verdict)


def test_a_verdict_may_not_change_final_tokens() -> None:
    device = session()
    skip(device, 1, 2)
    fire(device, 3)
    device.send()
    with pytest.raises(ProtocolViolation, match="verdict at position 4 answers a span from 5 to 6"):
        device.apply(Verdict(1, 4, 6))


def test_a_verdict_without_a_span_is_refused() -> None:
    device = session()
    fire(device, 1)
    with pytest.raises(ProtocolViolation, match="verdict at position 3 answers no span"):
        device.apply(Verdict(0, 3, 1))


def test_times_of_the_cloud_add_up() -> None:
    device = session()
    device.apply(Opened(prefilled=True, context_tokens=100, queue_us=1, compute_us=10))
    fire(device, 1)
    device.send()
    device.apply(Verdict(0, 4, 2, (), 100, 1000))
    assert (device.tally.cloud_queue_us, device.tally.cloud_compute_us, device.prefill_us) == (101, 1010, 10)


# Resuming


def test_a_resumed_session_starts_after_the_committed_tokens() -> None:
    device = session(committed=(1, 2))
    assert (device.final_length, device.sent_length, device.read_length, device.first_new) == (5, 5, 5, 5)
    events = fire(device, 3)
    assert isinstance(events[0], Drafted)
    assert events[0].position == 5
    assert device.send().start == 5


# Hostile clouds


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
def test_a_hostile_cloud_causes_only_documented_refusals(moves: list[str | Opened | Verdict | Continuation]) -> None:
    """Final tokens never change, whatever the cloud sends."""
    device = session(limit=9)
    final: list[int] = [*PROMPT]
    for number, move in enumerate(moves):
        if device.finish_reason is not None:
            break
        try:
            if move in ("fire", "skip"):
                if not device.exhausted and not device.following:
                    (fire if move == "fire" else skip)(device, number % 4)
            elif isinstance(move, str):
                device.send(continuation_tokens=2 if move == "hand over" else 0)
            else:
                device.apply(move)
        except ProtocolViolation:
            break
        assert device.text[: len(final)] == final
        assert START <= device.final_length <= len(device.text) <= device.limit
        assert device.sent_length <= len(device.text)
        final = device.text[: device.final_length]
