"""Branches next to a span, on the device: sending them, and the further tokens of a Verdict."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Close, Closed, Continuation, Draft, Verdict
from chaperone_common.session import CloudSession, Committed, DeviceSession, Retracted
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import FinishReason, Origin, Span
from tests.support.session.device import EOS, OPEN, PROMPT, START, committed, fire, lose, session, skip, snapshot

# Next to the chain 1 2 3 from position 3 on: a 5 in place of the 2, after it a 6 or a 7, and a 9 after the 3.
TREE = (BranchToken(3, 5), BranchToken(6, 6), BranchToken(6, 7), BranchToken(5, 9))


def sent(*, continuation_tokens: int = 0, limit: int = 23, branches: tuple[BranchToken, ...] = TREE) -> DeviceSession:
    """Return a device that has sent the chain 1 2 3 and branches next to it."""
    device = session(limit=limit)
    fire(device, 1, 2, 3)
    device.send(continuation_tokens=continuation_tokens, branches=branches)
    return device


# Sending


def test_branches_are_sent_with_the_span() -> None:
    device = session()
    fire(device, 1, 2)
    assert device.send(max_tokens=1, branches=TREE[:1]) == Draft(0, 3, (1,), (), 3, branches=TREE[:1])
    assert device.spans[0] == Span(0, 3, (1,), 3, 0, TREE[:1])
    assert device.send() == Draft(0, 4, (2,), (), 4)


def test_branches_are_left_out_where_nothing_is_judged() -> None:
    device = session()
    assert device.send(branches=[BranchToken(2, 5)]).branches == ()
    device = session()
    skip(device, 1, 2)
    fire(device, 3)
    assert device.send(max_tokens=2, branches=[BranchToken(4, 5)]).branches == ()
    assert device.send(branches=[BranchToken(4, 5)]).branches == (BranchToken(4, 5),)


# Further tokens


@pytest.mark.parametrize(
    ("verdict", "events"),
    [
        (Verdict(1, 4, 8), [(4, 8, Origin.OVERRIDE)]),
        (Verdict(1, 4, 5, further_token_ids=(8,)), [(4, 5, Origin.OVERRIDE), (5, 8, Origin.OVERRIDE)]),
        (
            Verdict(1, 4, 5, further_token_ids=(6, 8)),
            [(4, 5, Origin.OVERRIDE), (5, 6, Origin.VERIFIED), (6, 8, Origin.BONUS)],
        ),
        (
            Verdict(0, 6, 9, further_token_ids=(8,)),
            [(5, 3, Origin.VERIFIED), (6, 9, Origin.BONUS), (7, 8, Origin.BONUS)],
        ),
    ],
)
def test_further_tokens_are_final_with_their_origins(verdict: Verdict, events: list[tuple[int, int, Origin]]) -> None:
    device = sent()
    assert committed(device.apply(verdict))[-len(events) :] == events
    end = verdict.position + 1 + len(verdict.further_token_ids)
    assert device.text[-1] == events[-1][1]
    assert (len(device.text), device.final_length, device.sent_length, device.read_length) == (end, end, end, end)
    assert device.revision == verdict.revision
    tally = device.tally
    assert tally.verified_tokens + tally.overridden_tokens + tally.bonus_tokens == device.final_length - START
    fire(device, 4)
    assert device.send() == Draft(verdict.revision, end, (4,), (), end)


def test_an_override_of_any_length_retracts_once() -> None:
    device = sent()
    fire(device, 4)
    device.send()
    events = device.apply(Verdict(1, 4, 5, further_token_ids=(6, 8)))
    assert [event for event in events if isinstance(event, Retracted)] == [Retracted(4)]
    assert device.text == [7, 8, 9, 1, 5, 6, 8]
    assert (device.revision, len(device.spans), device.tally.retracted_tokens, device.tally.caught) == (1, 0, 3, 1)


def test_further_tokens_that_the_device_has_drafted_are_verified_in_place() -> None:
    device = sent()
    fire(device, 9, 8, 4)
    assert committed(device.apply(Verdict(0, 6, 9, further_token_ids=(8,))))[-2:] == [
        (6, 9, Origin.VERIFIED),
        (7, 8, Origin.VERIFIED),
    ]
    assert device.text[-1] == 4
    assert (device.final_length, device.sent_length, device.read_length, device.tally.retracted_tokens) == (8, 8, 8, 0)


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_further_token_that_contradicts_the_text_raises_the_revision_if_that_was_sent(is_sent: bool) -> None:
    device = sent()
    fire(device, 9, 4)
    if is_sent:
        device.send()
    events = device.apply(Verdict(0, 6, 9, further_token_ids=(8,)))
    assert events[-2:] == [Retracted(7), Committed(7, 8, Origin.OVERRIDE)]
    assert (device.revision, len(device.spans), device.tally.caught) == (int(is_sent), 0, 1)


def test_a_span_before_the_contradiction_is_answered_nevertheless() -> None:
    """Both ends: the first Verdict's tokens confirm the second span and contradict the third."""
    device, cloud = session(), CloudSession(OPEN, context_tokens=100, vocabulary_size=50)
    fire(device, 1, 9, 4)
    up = [device.send(max_tokens=1, branches=[BranchToken(3, 9)]), device.send(max_tokens=1), device.send()]
    down = []
    for frame in up:
        request = cloud.receive(frame)
        if request is not None:
            down.append(cloud.answer(request, [1, 9, 8][: request.num_choices + len(request.tree.branches)]))
    assert down == [Verdict(0, 4, 9, further_token_ids=(8,)), Verdict(0, 5, 8)]
    device.apply(down[0])
    assert [span.start for span in device.spans] == [4]
    fire(device, 6)
    up.append(device.send())
    assert device.apply(down[1]) == []
    assert [span.start for span in device.spans] == [6]
    assert (device.read_length, device.final_length) == (6, 6), "an answer without a change retracts nothing"
    assert device.text[:6] == cloud.text == [7, 8, 9, 1, 9, 8]
    assert device.revision == cloud.revision == up[-1].revision == 1


def test_committed_tokens_before_the_branch_are_audited_once() -> None:
    device = session()
    skip(device, 1, 2)
    fire(device, 3)
    device.send(branches=[BranchToken(4, 5), BranchToken(6, 6)])
    assert committed(device.apply(Verdict(1, 5, 5, (4,), further_token_ids=(6, 8)))) == [
        (5, 5, Origin.OVERRIDE),
        (6, 6, Origin.VERIFIED),
        (7, 8, Origin.BONUS),
    ]
    assert (device.tally.audited_tokens, device.tally.deviations) == (2, 1)
    device.finish_at(8)
    assert device.close() == Close(8, ())


@pytest.mark.parametrize(
    "verdict", [Verdict(1, 4, 5, further_token_ids=(6, 8)), Verdict(0, 6, 9, further_token_ids=(8,))]
)
def test_a_replayed_verdict_is_harmless(verdict: Verdict) -> None:
    device = sent()
    device.apply(verdict)
    fire(device, 4)
    device.send()
    before = snapshot(device)
    assert device.apply(verdict) == []
    assert len(device.spans) == 1
    assert snapshot(device) == before


# The end


def test_an_end_of_text_in_a_branch_ends_the_text() -> None:
    device = sent(branches=(BranchToken(3, 5), BranchToken(6, EOS)), continuation_tokens=4)
    assert committed(device.apply(Verdict(1, 4, 5, further_token_ids=(EOS,))))[-1] == (5, EOS, Origin.VERIFIED)
    assert device.finish_reason is FinishReason.STOP
    assert not device.following


def test_an_end_of_text_after_a_branch_ends_the_text() -> None:
    device = sent(continuation_tokens=4)
    assert committed(device.apply(Verdict(1, 4, 5, further_token_ids=(EOS,))))[-1] == (5, EOS, Origin.OVERRIDE)
    assert device.finish_reason is FinishReason.STOP
    assert not device.following


def test_the_limit_inside_a_branch_ends_the_text() -> None:
    device = sent(limit=6, continuation_tokens=4)
    assert committed(device.apply(Verdict(1, 4, 5, further_token_ids=(6,))))[-1] == (5, 6, Origin.VERIFIED)
    assert device.finish_reason is FinishReason.LENGTH
    assert not device.following
    assert device.close() == Close(6, ())


def test_a_stop_string_may_be_completed_by_a_further_token() -> None:
    device = sent()
    assert committed(device.apply(Verdict(1, 4, 5, further_token_ids=(6, 8))))[-2] == (5, 6, Origin.VERIFIED)
    assert device.finish_at(6) == [], "no token of the device remains after it"
    assert (device.tally.overridden_tokens, device.tally.verified_tokens, device.tally.bonus_tokens) == (1, 2, 0)
    assert device.text == [7, 8, 9, 1, 5, 6]
    assert device.close() == Close(6, ()), "the cloud has read the whole text"


def test_a_verdict_that_crosses_the_close_changes_nothing() -> None:
    device = sent()
    device.close()
    assert device.apply(Verdict(1, 4, 5, further_token_ids=(6, 8))) == []
    device.apply(Closed())
    assert (device.text, device.final_length) == ([7, 8, 9, 1, 2, 3], 3)


# Takeover, and a new stream


def test_a_takeover_begins_after_the_further_tokens() -> None:
    device = sent(continuation_tokens=2)
    device.apply(Verdict(1, 4, 5, further_token_ids=(6, 8)))
    assert device.following
    assert committed(device.apply(Continuation(7, (1,), handed_back=True))) == [(7, 1, Origin.TAKEOVER)]
    stands = sent(continuation_tokens=2)
    stands.apply(Verdict(0, 6, 9, further_token_ids=(8,)))
    assert not stands.following


def test_further_tokens_were_read_when_the_session_is_opened_again() -> None:
    device = sent()
    device.apply(Verdict(1, 4, 5, further_token_ids=(6, 8)))
    fire(device, 4)
    device.send(branches=[BranchToken(6, 2)])
    lose(device)
    assert device.reopen().committed_token_ids == (1, 5, 6, 8)
    assert device.send() == Draft(0, 7, (4,), (), 7), "branches are not kept"


# Refusals


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (Verdict(1, 4, 8, further_token_ids=(6,)), "further_token_ids: 6 follows 8, which is no branch token there"),
        (Verdict(1, 4, 5, further_token_ids=(8, 6)), "further_token_ids: 6 follows 8, which is no branch token there"),
        (
            Verdict(1, 4, 5, further_token_ids=(6, 8, 1)),
            "further_token_ids: 1 follows 8, which is no branch token",
        ),
        (Verdict(1, 3, 5, further_token_ids=(6,)), "further_token_ids: 6 follows 5, which is no branch token there"),
        (Verdict(0, 4, 5, further_token_ids=(6,)), "verdict of revision 0 answers a span of 0"),
        (Verdict(2, 4, 5, further_token_ids=(6, 8)), "verdict of revision 2 answers a span of 0"),
    ],
)
def test_further_tokens_that_follow_no_branch_are_refused(verdict: Verdict, message: str) -> None:
    device = sent()
    with pytest.raises(ProtocolViolation, match=re.escape(message)):
        device.apply(verdict)


def test_further_tokens_may_not_follow_final_tokens() -> None:
    device = session()
    fire(device, 1, 9, 8)
    device.send(max_tokens=1, branches=[BranchToken(3, 9)])
    device.send(max_tokens=1, branches=[BranchToken(4, 8)])
    device.apply(Verdict(0, 4, 9, further_token_ids=(8,)))
    with pytest.raises(ProtocolViolation, match="further_token_ids: they follow 5, which is final already"):
        device.apply(Verdict(0, 5, 8, further_token_ids=(2,)))


TOKENS = st.integers(0, 3)
VERDICTS = st.builds(
    Verdict,
    st.integers(0, 2),
    st.integers(2, 10),
    TOKENS,
    st.just(()),
    st.just(0),
    st.just(0),
    st.lists(TOKENS, max_size=3).map(tuple),
)


@settings(max_examples=300)
@given(moves=st.lists(st.sampled_from(["fire", "fire", "skip", "send"]) | VERDICTS, max_size=20), data=st.data())
def test_a_hostile_cloud_causes_only_documented_refusals(moves: list[str | Verdict], data: st.DataObject) -> None:
    """Final tokens never change, whatever the cloud sends."""
    device = session(limit=9)
    final: list[int] = [*PROMPT]
    for number, move in enumerate(moves):
        if device.finish_reason is not None:
            break
        try:
            if isinstance(move, Verdict):
                device.apply(move)
            elif move == "send":
                unsent = len(device.text) - device.sent_length
                ids = data.draw(st.lists(TOKENS, max_size=4))
                parents = [
                    data.draw(st.integers(0, unsent + index)) + device.sent_length - 1 for index in range(len(ids))
                ]
                device.send(branches=[BranchToken(*branch) for branch in zip(parents, ids, strict=True)])
            elif not device.exhausted:
                (fire if move == "fire" else skip)(device, number % 4)
        except ProtocolViolation:
            break
        assert device.text[: len(final)] == final
        assert START <= device.final_length <= len(device.text) <= device.limit
        assert device.sent_length <= len(device.text)
        final = device.text[: device.final_length]
