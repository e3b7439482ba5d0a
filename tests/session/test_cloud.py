"""The cloud's end by example: its forwards, answers and refusals."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ChaperoneError, InvalidRequest, PromptTooLong, ProtocolViolation
from chaperone_common.frames import Close, Closed, Continuation, Draft, Open, Verdict
from chaperone_common.session import CloudSession, State
from tests.support.session.cloud import answer, draft, opening, session
from tests.support.session.device import EOS, PROMPT, START

# Opening


def test_the_cloud_reads_prompt_and_resumed_tokens() -> None:
    cloud = session(committed=(1, 2))
    assert cloud.text == [7, 8, 9, 1, 2]
    request = cloud.receive(draft(5, 3))
    assert request is not None
    assert request.tree.token_ids == (7, 8, 9, 1, 2, 3)
    assert (request.num_choices, request.start, request.judged) == (2, 5, (3,))


def test_resumed_tokens_count_towards_the_limit() -> None:
    cloud = session(max_new_tokens=3, committed=(1, 2))
    assert not cloud.ended
    assert answer(cloud, draft(5, 3), [4]) == Verdict(1, 5, 4)
    assert cloud.ended


def test_a_resumed_text_that_has_ended_stays_ended() -> None:
    cloud = session(committed=(1, EOS))
    assert cloud.ended
    with pytest.raises(ProtocolViolation, match="start: 5 is not where the cloud can write on"):
        cloud.receive(draft(5))


def test_an_end_of_text_id_in_the_prompt_ends_nothing() -> None:
    cloud = CloudSession(opening(prompt=(7, EOS)), context_tokens=100, vocabulary_size=50)
    assert not cloud.ended


def test_the_context_bounds_the_text() -> None:
    assert session(max_new_tokens=20, context_tokens=10).limit == 10
    assert session(max_new_tokens=5, context_tokens=10).limit == 8


@pytest.mark.parametrize(
    ("frame", "context_tokens", "error", "message"),
    [
        (opening(prompt=()), 100, InvalidRequest, "prompt_token_ids: empty; give at least one token"),
        (opening(max_new_tokens=0), 100, InvalidRequest, "max_new_tokens: 0 is outside [1, 4294967295]"),
        (opening(), 3, PromptTooLong, "prompt: 3 tokens leave no room in a context of 3; shorten it"),
        (opening(committed=(1,) * 97), 100, PromptTooLong, "prompt: 100 tokens leave no room"),
        (
            opening(max_new_tokens=2, committed=(1, 2, 3)),
            100,
            InvalidRequest,
            "committed_token_ids: 3 tokens, more than max_new_tokens, 2; raise it",
        ),
        (opening(prompt=(7, 50)), 100, ChaperoneError, "50 is not in a vocabulary of 50"),
        (opening(committed=(4_000_000_000,)), 100, ChaperoneError, "4000000000 is not in a vocabulary of 50"),
    ],
)
def test_a_bad_opening_is_refused(frame: Open, context_tokens: int, error: type[ChaperoneError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        CloudSession(frame, context_tokens=context_tokens, vocabulary_size=50)


# VerificationRequest


def test_a_span_that_stands_whole_gets_a_bonus() -> None:
    cloud = session()
    assert answer(cloud, draft(START, 1, 2), [1, 2, 3]) == Verdict(0, 5, 3)
    assert cloud.text == [7, 8, 9, 1, 2, 3]


def test_the_first_difference_is_overridden_and_raises_the_revision() -> None:
    cloud = session()
    assert answer(cloud, draft(START, 1, 2, 3), [1, 5, 3, 4]) == Verdict(1, 4, 5)
    assert cloud.text == [7, 8, 9, 1, 5]


def test_committed_tokens_are_audited_not_overridden() -> None:
    cloud = session()
    frame = draft(START, 1, 2, 3, final_before=START + 2)
    assert answer(cloud, frame, [4, 2, 3, 6]) == Verdict(0, 6, 6, deviations=(3,))
    assert cloud.text == [7, 8, 9, 1, 2, 3, 6]


def test_audit_only_spans_come_in_chunks() -> None:
    cloud = session()
    assert answer(cloud, draft(3, 1, 2, final_before=6), [1, 9, 3]) == Verdict(0, 5, 3, (4,))
    # The cloud's 3 at position 5 turns out to be a deviation only when the device's own token is read.
    assert answer(cloud, draft(5, 4, 5, final_before=8), [3, 5, 6]) == Verdict(0, 7, 6, (5,))
    assert cloud.text == [7, 8, 9, 1, 2, 4, 5, 6]
    # A token that the cloud has chosen already is not computed again, and is no deviation.
    assert answer(cloud, draft(7, 6, 1, final_before=10), [2, 3]) == Verdict(0, 9, 3, (8,))


def test_a_bonus_wins_over_tokens_skipped_before_its_arrival() -> None:
    cloud = session()
    answer(cloud, draft(3, 1), [1, 2])
    assert cloud.receive(draft(4, 5, 6, final_before=5)) is None
    assert (cloud.revision, cloud.stale_frames, cloud.text) == (1, 1, [7, 8, 9, 1, 2])


def test_a_span_that_the_cloud_has_written_requests_the_token_after_it() -> None:
    cloud = session()
    answer(cloud, draft(3, 1), [1, 2])
    assert answer(cloud, draft(4, 2), [3]) == Verdict(0, 5, 3)
    assert cloud.receive(draft(5, 6, 7, final_before=6)) is None, "sent before the 3 arrived, and void"
    assert (cloud.text, cloud.revision) == ([7, 8, 9, 1, 2, 3], 1)


def test_a_request_may_hold_final_tokens_alone() -> None:
    """The cloud chooses the token at 5, although it has not seen the device's."""
    cloud = session()
    assert answer(cloud, draft(3, 1, 2, final_before=5), [1, 2, 3]) == Verdict(0, 5, 3)
    assert answer(cloud, draft(5, 3, 4, final_before=7), [4, 6]) == Verdict(0, 7, 6), "skipped after it: the 3 stands"
    assert cloud.receive(draft(7, 5, 5, final_before=9)) is None, "the 5 contradicts the 6, which holds"
    assert (cloud.text, cloud.revision) == ([7, 8, 9, 1, 2, 3, 4, 6], 1)


def test_choices_and_times_are_passed_on() -> None:
    cloud = session()
    request = cloud.receive(draft(START, 1))
    assert request is not None
    assert cloud.answer(request, [1, 2], queue_us=5, compute_us=7) == Verdict(0, 4, 2, (), 5, 7)


def test_a_bonus_that_the_device_guessed_is_not_computed_again() -> None:
    cloud = session()
    answer(cloud, draft(3, 1), [1, 2])
    request = cloud.receive(draft(4, 2, 3))
    assert request is not None
    assert (request.tree.token_ids, request.num_choices, request.judged) == ((7, 8, 9, 1, 2, 3), 2, (3,))


# Stale drafts


def test_even_invalid_drafts_of_an_older_revision_are_ignored() -> None:
    cloud = session()
    answer(cloud, draft(START, 1), [5, 2])
    text = list(cloud.text)
    for stale in (draft(4, 2), draft(40, 2), draft(4, 99), draft(4, 1, final_before=2)):
        assert cloud.receive(stale) is None
    assert cloud.stale_frames == 4
    assert cloud.text == text
    assert answer(cloud, draft(4, 6, revision=1), [6, 7]) == Verdict(1, 5, 7)


def test_a_draft_that_contradicts_the_bonus_is_stale_and_raises_the_revision() -> None:
    cloud = session()
    answer(cloud, draft(3, 1), [1, 2])
    assert cloud.receive(draft(4, 5, 6)) is None
    assert cloud.revision == 1
    assert cloud.text == [7, 8, 9, 1, 2]


def test_a_committed_token_that_contradicts_the_bonus_wins_and_is_audited() -> None:
    cloud = session()
    answer(cloud, draft(3, 1, final_before=5), [1, 2])
    assert answer(cloud, draft(4, 5, 6, final_before=6), [2, 6, 8]) == Verdict(0, 6, 8, (4,))
    assert cloud.text == [7, 8, 9, 1, 5, 6, 8]


# End of text and the limit


def test_an_end_of_text_of_both_is_the_clouds_own_token() -> None:
    cloud = session()
    assert answer(cloud, draft(START, 1, EOS), [1, EOS, 4]) == Verdict(0, 4, EOS)
    assert cloud.ended


def test_an_end_of_text_of_the_draft_alone_is_overridden() -> None:
    cloud = session()
    assert answer(cloud, draft(START, EOS), [4, 5]) == Verdict(1, 3, 4)
    assert not cloud.ended


def test_drafts_after_the_end_are_stale() -> None:
    cloud = session()
    answer(cloud, draft(START, 1), [1, EOS])
    assert cloud.receive(draft(4, EOS)) is None  # repeats the end
    assert cloud.receive(draft(4, 6)) is None  # contradicts it
    assert cloud.text[-1] == EOS


def test_no_choice_is_made_beyond_the_limit() -> None:
    cloud = session(max_new_tokens=2)
    request = cloud.receive(draft(START, 1, 2))
    assert request is not None
    assert (request.tree.token_ids, request.num_choices) == ((7, 8, 9, 1), 2)
    assert cloud.answer(request, [1, 2]) == Verdict(0, 4, 2)
    assert cloud.ended


def test_the_last_token_before_the_limit_is_judged_and_audited_too() -> None:
    overridden = session(max_new_tokens=2)
    assert answer(overridden, draft(START, 1, 2), [1, 6]) == Verdict(1, 4, 6)
    audited = session(max_new_tokens=2)
    assert answer(audited, draft(START, 1, 2, final_before=5), [1, 6]) == Verdict(0, 4, 6, (4,))


# Takeover


def test_a_takeover_follows_an_override_and_hands_back_when_done() -> None:
    cloud = session()
    answer(cloud, draft(START, 1, continuation_tokens=2), [5, 2])
    assert cloud.writes
    assert cloud.writing().tree.token_ids == (7, 8, 9, 5)
    assert cloud.answer(cloud.writing(), [6], 1, 2) == Continuation(4, (6,), False, queue_us=1, compute_us=2)
    assert cloud.answer(cloud.writing(), [7]) == Continuation(5, (7,), handed_back=True)
    assert cloud.state is State.DEVICE_WRITES
    assert answer(cloud, draft(6, 8, revision=1), [8, 9]) == Verdict(1, 7, 9)


def test_an_empty_draft_asks_the_cloud_to_write() -> None:
    cloud = session()
    assert answer(cloud, draft(START, continuation_tokens=1), [5]) == Verdict(0, 3, 5)
    assert cloud.answer(cloud.writing(), [6]) == Continuation(4, (6,), handed_back=True)


def test_no_takeover_without_an_override_or_without_an_invitation() -> None:
    stands, uninvited, alone = draft(START, 1, continuation_tokens=9), draft(START, 1), draft(START)
    for frame, choices in ((stands, [1, 2]), (uninvited, [5, 2]), (alone, [5])):
        cloud = session()
        answer(cloud, frame, choices)
        assert not cloud.writes


def test_a_takeover_ends_with_the_text() -> None:
    at_once = session()
    answer(at_once, draft(START, 1, continuation_tokens=9), [EOS, 2])
    assert not at_once.writes
    ends = session()
    answer(ends, draft(START, continuation_tokens=9), [5])
    assert ends.answer(ends.writing(), [EOS]) == Continuation(4, (EOS,), handed_back=True)
    fills = session(max_new_tokens=2)
    answer(fills, draft(START, continuation_tokens=9), [5])
    assert fills.answer(fills.writing(), [6]) == Continuation(4, (6,), handed_back=True)


def test_a_draft_takes_back_a_takeover() -> None:
    cloud = session()
    answer(cloud, draft(START, continuation_tokens=9), [5])
    cloud.answer(cloud.writing(), [6])
    assert cloud.hand_back() == Continuation(5, (), handed_back=True)
    assert not cloud.writes
    # The device had received only the 5; its own next token equals the one already written.
    assert answer(cloud, draft(4, 6, 1), [1, 2]) == Verdict(0, 6, 2)


def test_no_hand_back_without_a_takeover() -> None:
    with pytest.raises(ProtocolViolation, match="hands back is not allowed"):
        session().hand_back()


# Closing


def test_the_closing_audit_reads_the_unread_tokens() -> None:
    cloud = session()
    assert answer(cloud, Close(START, (1, 2, 3)), [1, 5, 3]) == Closed((4,))
    assert cloud.state is State.DONE


def test_the_closing_audit_reads_nothing_twice() -> None:
    cloud = session()
    answer(cloud, draft(START, 1, 2, final_before=5), [4, 2, 3])
    request = cloud.receive(Close(START, (1, 2, 3, 6)))
    assert request is not None
    assert (request.start, request.judged) == (6, (6,))
    assert cloud.answer(request, [8], 3, 4) == Closed((6,), 3, 4)


@pytest.mark.parametrize("close", [Close(START, ()), Close(START, (1, 2)), Close(START + 2, ())])
def test_without_an_unread_tail_nothing_is_read(close: Close) -> None:
    cloud = session()
    answer(cloud, draft(START, 1), [1, 2])
    assert answer(cloud, close, []) == Closed()


def test_a_close_ends_a_takeover() -> None:
    cloud = session()
    answer(cloud, draft(START, continuation_tokens=9), [5])
    assert answer(cloud, Close(4, ()), []) == Closed()
    assert not cloud.writes


def test_nothing_follows_a_close() -> None:
    cloud = session()
    cloud.receive(Close(START, ()))
    with pytest.raises(ProtocolViolation, match="Close is not allowed"):
        cloud.receive(Close(START, ()))
    with pytest.raises(ProtocolViolation, match="Draft is not allowed"):
        cloud.receive(draft(START, 1))


# Violations of the protocol


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (draft(4, 1), "start: 4 is outside [3, 3]"),  # a gap
        (draft(2, 1), "start: 2 is outside [3, 3]"),  # into the prompt
        (draft(3, 1, revision=1), "revision: 1 was never given, the latest is 0"),
        (draft(3, 1, 2, final_before=2), "final_before: 2 is outside the span from 3 to 5"),
        (draft(3, 1, 2, final_before=7), "final_before: 7 is outside the span from 3 to 5, and the token after it"),
        (draft(3, 1, 50), "token_ids: 50 is not in a vocabulary of 50"),
        (draft(3, 2**32 - 1), "token_ids: 4294967295 is not in a vocabulary of 50"),
        (draft(3, *[1] * 21), "token_ids: 21 tokens from 3 pass the limit of 23"),
        (Close(4, (1,)), "start: 4 is outside [3, 3]"),
        (Close(3, (50,)), "token_ids: 50 is not in a vocabulary of 50"),
        (Close(3, (1,) * 21), "token_ids: 21 tokens from 3 pass the limit of 23"),
    ],
)
def test_a_bad_frame_is_refused_with_the_value(frame: Draft | Close, message: str) -> None:
    cloud = session()
    with pytest.raises(ProtocolViolation, match=re.escape(message)):
        cloud.receive(frame)
    assert cloud.text == [*PROMPT]


def test_an_empty_draft_must_stand_at_the_end_of_the_text() -> None:
    cloud = session()
    answer(cloud, draft(3, 1, 2), [1, 2, 3])
    with pytest.raises(ProtocolViolation, match="start: 5 is not where the cloud can write on, 6 is"):
        cloud.receive(draft(5))


# Hostile devices


FRAMES = st.one_of(
    st.builds(
        Draft,
        revision=st.integers(0, 2),
        start=st.integers(2, 9),
        token_ids=st.lists(st.integers(0, 3), max_size=4).map(tuple),
        risks=st.just(()),
        final_before=st.integers(2, 9),
        continuation_tokens=st.sampled_from([0, 0, 2]),
    ),
    st.builds(Close, start=st.integers(2, 9), token_ids=st.lists(st.integers(0, 3), max_size=4).map(tuple)),
    st.none(),  # the cloud continues its takeover, if there is one
)


@settings(max_examples=300)
@given(frames=st.lists(FRAMES, max_size=12), seed=st.integers(0, 99))
def test_a_hostile_device_causes_only_documented_refusals(frames: list[Draft | Close | None], seed: int) -> None:
    cloud = session(max_new_tokens=6)
    for number, frame in enumerate(frames):
        try:
            if frame is None:
                request = cloud.writing() if cloud.writes else None
            else:
                if cloud.writes and isinstance(frame, Draft) and frame.revision == cloud.revision:
                    cloud.hand_back()
                request = cloud.receive(frame)
        except ProtocolViolation:
            break  # the stream ends here
        if request is not None:
            assert len(request.tree.token_ids) < cloud.limit
            cloud.answer(request, [(seed + number * position) % 4 for position in range(request.num_choices)])
        assert tuple(cloud.text[:START]) == PROMPT
        assert len(cloud.text) <= cloud.limit
