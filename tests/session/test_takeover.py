"""The cloud writes by itself, as seen by the device: the origin of each token, and the end."""

from __future__ import annotations

import pytest

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Continuation, Draft, Verdict
from chaperone_common.session import CloudSession, DeviceSession, Retracted
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import FinishReason, Origin
from tests.support.session.device import EOS, OPEN, committed, fire, session, skip


def test_a_takeover_lasts_until_the_hand_back() -> None:
    device = session()
    fire(device, 1)
    device.send(continuation_tokens=3)
    device.apply(Verdict(1, 3, 5))
    assert device.following
    assert committed(device.apply(Continuation(4, (6, 7), handed_back=False))) == [
        (4, 6, Origin.TAKEOVER),
        (5, 7, Origin.TAKEOVER),
    ]
    assert committed(device.apply(Continuation(6, (8,), handed_back=True))) == [(6, 8, Origin.TAKEOVER)]
    assert not device.following
    assert (device.sent_length, device.read_length, device.tally.takeover_tokens) == (7, 7, 3)


def test_tokens_skipped_during_a_takeover_are_final_after_the_hand_back() -> None:
    device = session()
    device.send(continuation_tokens=3)
    device.apply(Verdict(0, 3, 5))
    assert committed(skip(device, 6, 7, 8)) == []
    assert committed(device.apply(Continuation(4, (6,), handed_back=False))) == [(4, 6, Origin.TAKEOVER)]
    assert committed(device.apply(Continuation(5, (7,), handed_back=True))) == [
        (5, 7, Origin.TAKEOVER),
        (6, 8, Origin.DRAFT),
    ]


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
    device.apply(Verdict(0, 4, 5))
    assert not device.following


def test_no_takeover_begins_when_the_override_ends_the_text() -> None:
    device = session()
    fire(device, 1)
    device.send(continuation_tokens=3)
    device.apply(Verdict(1, 3, EOS))
    assert not device.following
    assert device.finish_reason is FinishReason.STOP


def test_a_takeover_ends_with_an_end_of_text() -> None:
    device = session()
    device.send(continuation_tokens=3)
    device.apply(Verdict(0, 3, 5))
    device.apply(Continuation(4, (EOS,), handed_back=True))
    assert device.finish_reason is FinishReason.STOP


def both_ends() -> tuple[DeviceSession, CloudSession]:
    return session(), CloudSession(OPEN, context_tokens=100, vocabulary_size=50)


def exchange(device: DeviceSession, cloud: CloudSession, frame: Draft, choices: list[int]) -> None:
    """Let the cloud judge a Draft, and the device apply the Verdict."""
    judging = cloud.receive(frame)
    assert judging is not None
    device.apply(cloud.answer(judging, choices))


@pytest.mark.parametrize("welcome", [0, 9])
def test_a_bonus_that_contradicts_the_next_span_overrides_it(welcome: int) -> None:
    device, cloud = both_ends()
    fire(device, 1)
    first = device.send()
    fire(device, 2)
    second = device.send(continuation_tokens=welcome)
    exchange(device, cloud, first, [1, 5])
    assert device.following == bool(welcome), "the device knows before the cloud has read the span"
    assert cloud.receive(second) is None
    assert cloud.writes == device.following
    assert device.revision == cloud.revision == 1
    if welcome:
        assert committed(device.apply(cloud.answer(cloud.writing(), [6]))) == [(5, 6, Origin.TAKEOVER)]
        assert device.text == cloud.text == [7, 8, 9, 1, 5, 6]


def test_further_tokens_may_contradict_the_next_span_in_the_same_way() -> None:
    device, cloud = both_ends()
    fire(device, 1)
    first = device.send(branches=[BranchToken(3, 5)])
    fire(device, 5, 2)
    second = device.send(continuation_tokens=9)
    exchange(device, cloud, first, [1, 5, 6])
    assert device.following
    assert cloud.receive(second) is None
    assert cloud.writes


def test_a_contradicted_span_after_one_that_stands_begins_no_takeover() -> None:
    device, cloud = both_ends()
    fire(device, 1)
    first = device.send(branches=[BranchToken(3, 5)])
    fire(device, 5)
    stands = device.send(continuation_tokens=9)
    fire(device, 2)
    contradicted = device.send(continuation_tokens=9)
    exchange(device, cloud, first, [1, 5, 6])
    assert not device.following
    exchange(device, cloud, stands, [])
    assert cloud.receive(contradicted) is None
    assert not device.following
    assert not cloud.writes
    assert device.revision == cloud.revision == 1


def test_an_end_of_text_that_contradicts_the_next_span_begins_no_takeover() -> None:
    device, cloud = both_ends()
    fire(device, 1)
    first = device.send()
    fire(device, 2)
    second = device.send(continuation_tokens=9)
    exchange(device, cloud, first, [1, EOS])
    assert cloud.receive(second) is None
    assert not device.following
    assert not cloud.writes


def test_a_draft_that_a_takeover_contradicts_begins_no_other_takeover() -> None:
    device, cloud = both_ends()
    exchange(device, cloud, device.send(continuation_tokens=1), [5])
    fire(device, 2)
    crossing = device.send(continuation_tokens=9)
    device.apply(cloud.answer(cloud.writing(), [6]))
    assert cloud.receive(crossing) is None
    assert not device.following
    assert not cloud.writes
    assert device.revision == cloud.revision == 1


def test_a_draft_takes_the_takeover_back_and_its_tokens_in_flight_stand() -> None:
    """Both ends: the device drafts while the cloud writes, guesses one token right and the next one wrong."""
    device, cloud = both_ends()
    judging = cloud.receive(device.send(continuation_tokens=9))
    assert judging is not None
    device.apply(cloud.answer(judging, [5]))
    in_flight = [cloud.answer(cloud.writing(), [6]), cloud.answer(cloud.writing(), [7])]
    fire(device, 6, 1)
    frame = device.send()
    assert (frame.start, frame.revision) == (4, 0)
    in_flight.append(cloud.hand_back())
    assert cloud.receive(frame) is None  # contradicts the 7, which is on its way to the device
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
    device.apply(Verdict(0, 3, 5))
    events = device.apply(Continuation(4, token_ids, handed_back=True))
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
    device.apply(Verdict(0, 3, 1))
    written = Continuation(4, (2, 5), handed_back=True)
    assert committed(device.apply(written)) == [(4, 2, Origin.TAKEOVER), (5, 5, Origin.TAKEOVER)]
    state = device.state
    assert device.apply(written) == []
    assert (device.state, device.text[-2:], device.tally.takeover_tokens) == (state, [2, 5], 2)


def test_a_continuation_must_follow_the_text() -> None:
    device = session()
    device.send(continuation_tokens=3)
    device.apply(Verdict(0, 3, 5))
    with pytest.raises(ProtocolViolation, match="continuation starts at 5, the final text ends at 4"):
        device.apply(Continuation(5, (6,), handed_back=False))


def test_a_continuation_without_a_takeover_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="Continuation is not allowed"):
        list(session().apply(Continuation(3, (6,), handed_back=False)))
