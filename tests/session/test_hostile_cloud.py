"""A cloud that sends any frames in any order can end a stream, and never change what is final on the device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ChaperoneError, ProtocolViolation
from chaperone_common.frames import Closed, Continuation, Failure, Opened, ServerFrame, Verdict
from chaperone_common.session import Audited, Committed, DeviceSession, Drafted, Retracted, SessionEvent
from chaperone_common.session.transitions import State
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import OnDeviation
from tests.support.session.device import PROMPT, START, VOCABULARY, fire, session, skip, unasked

TOKEN = st.sampled_from([0, 1, 1, 1, 2, 2, 3, 3]) | st.sampled_from([0, 1, 1, 2, VOCABULARY, 2**32 - 1])
STATUSES = ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNKNOWN", "ABORTED"]
LIMIT = START + 12


class Reader:
    """The text as an application rebuilds it from events, and the rules of events."""

    def __init__(self) -> None:
        self.text = [*PROMPT]
        self.final = len(PROMPT)
        self.audited: set[int] = set()

    def follow(self, events: Sequence[SessionEvent]) -> None:
        for event in events:
            match event:
                case Drafted(position, token_id):
                    assert position == len(self.text)
                    self.text.append(token_id)
                case Retracted(position):
                    assert position >= self.final, "final tokens are never taken back"
                    del self.text[position:]
                case Committed(position, token_id):
                    assert position == self.final, "each token is final once, in order"
                    self.text[position:] = self.text[position:] or [token_id]
                    assert self.text[position] == token_id, "a token becomes final as it was shown"
                    self.final += 1
                case Audited(start, end, deviations):
                    assert START <= start < end <= self.final, "only final tokens are audited"
                    assert self.audited.isdisjoint(range(start, end)), "each of them once"
                    assert [*deviations] == sorted(set(deviations))
                    assert all(start <= position < end for position in deviations)
                    self.audited.update(range(start, end))


def positions(device: DeviceSession) -> st.SearchStrategy[int]:
    near = [device.final_length, device.sent_length, len(device.text), *(span.end for span in device.spans)]
    return st.sampled_from([max(0, place + by) for place in near for by in (-1, 0, 0, 1)]) | st.sampled_from(
        [0, LIMIT, 2**32 - 1]
    )


@st.composite
def frames(draw: st.DrawFn, device: DeviceSession) -> ServerFrame:
    """Draw a frame that answers the device, or nearly does, or does not."""
    places = positions(device)
    deviations = st.lists(places, max_size=3).map(tuple)
    kind = draw(st.sampled_from(["verdict"] * 4 + ["stands"] * 3 + ["continuation"] * 3 + ["opened", "closed", "fail"]))
    if kind == "stands" and device.spans:
        span = device.spans[0]
        noise = draw(st.sampled_from([(), (), draw(deviations)]))
        return Verdict(span.revision, span.end, draw(TOKEN), noise)
    if kind in ("verdict", "stands"):
        revision = max(0, device.revision + draw(st.sampled_from([0, 0, 1, 1, -1, 2**31])))
        further = tuple(draw(st.lists(TOKEN, max_size=3)))
        return Verdict(revision, draw(places), draw(TOKEN), draw(deviations), 0, 0, further)
    if kind == "continuation":
        start = draw(st.sampled_from([device.final_length, device.final_length, draw(places)]))
        known = device.text[start : start + draw(st.integers(0, 2))]
        return Continuation(start, (*known, *draw(st.lists(TOKEN, max_size=3))), draw(st.booleans()))
    if kind == "opened":
        return Opened(draw(st.booleans()), 100, max_span_tokens=draw(st.sampled_from([0, 1, 2**32 - 1])))
    if kind == "closed":
        return Closed(draw(deviations))
    return Failure(draw(st.sampled_from(STATUSES)), "", draw(st.sampled_from([None, 0, 2**32 - 1])))


def device_moves(device: DeviceSession, move: str, data: st.DataObject) -> list[SessionEvent]:
    """Let the device do what its engine does in this state, if it may."""
    if device.state not in (State.DEVICE_WRITES, State.CLOUD_WRITES):
        return []
    if device.finish_reason is not None:
        device.close()
        return []
    if move == "send":
        unsent = len(device.text) - device.sent_length
        ids = data.draw(st.lists(TOKEN, max_size=3))
        branches = [
            BranchToken(device.sent_length - 1 + data.draw(st.integers(0, unsent + index)), token_id)
            for index, token_id in enumerate(ids)
        ]
        device.send(continuation_tokens=data.draw(st.sampled_from([0, 0, 3, 100])), branches=branches)
        return []
    if move == "close":
        device.close(audit_share=data.draw(st.sampled_from([1.0, 1.0, 0.0])))
        return []
    if device.exhausted:
        return []
    return {"fire": fire, "skip": skip, "unasked": unasked}[move](device, data.draw(st.integers(0, 3)))


MOVES = st.sampled_from(["fire", "fire", "skip", "unasked", "send", "send", "close"] + ["cloud"] * 6)


@settings(max_examples=400)
@given(moves=st.lists(MOVES, max_size=30), on_deviation=st.sampled_from(OnDeviation), data=st.data())
def test_final_tokens_survive_any_frames(moves: list[str], on_deviation: OnDeviation, data: st.DataObject) -> None:
    device, reader = session(limit=LIMIT, on_deviation=on_deviation), Reader()
    for move in moves:
        final = device.text[: device.final_length]
        try:
            if move == "cloud":
                reader.follow(device.apply(data.draw(frames(device))))
            else:
                reader.follow(device_moves(device, move, data))
        except ChaperoneError:
            assert device.text[: len(final)] == final
            assert device.final_length == len(final), "a refused frame makes nothing final"
            if device.state is not State.FAILED or device.finish_reason is not None:
                break
            device.reopen()
            continue
        assert reader.final == device.final_length, "every final token was reported"
        assert reader.text == device.text
        assert device.text[: len(final)] == final
        assert START <= device.final_length <= len(device.text) <= LIMIT
        assert START <= device.read_length <= device.final_length or device.finish_reason is not None
        assert device.sent_length <= len(device.text)
        assert 0 <= device.tally.deviations <= device.tally.audited_tokens == len(reader.audited)
        assert all(token_id < VOCABULARY for token_id in device.text)


# By example


def asked(branches: Sequence[BranchToken] = ()) -> DeviceSession:
    """Return a device that has skipped 1 and 2, and has sent them with the fire 3."""
    device = session()
    skip(device, 1, 2)
    fire(device, 3)
    device.send(branches=branches)
    return device


@pytest.mark.parametrize(
    ("deviations", "named"), [((2,), "2"), ((5,), "5"), ((3, 2**32 - 1), "4294967295"), ((4, 4), "4"), ((4, 3), "3")]
)
def test_deviations_outside_the_audit_are_refused(deviations: tuple[int, ...], named: str) -> None:
    """They would count against the promises of the gate, or be shown at tokens that were never audited."""
    device = asked()
    with pytest.raises(
        ProtocolViolation, match=f"^deviations: {named} is not in the audit from 3 to 5, in rising order"
    ):
        device.apply(Verdict(0, 6, 9, deviations))
    assert (device.tally.audited_tokens, device.tally.deviations) == (0, 0)


@pytest.mark.parametrize("deviations", [(2,), (5,), (3, 3), (4, 3)])
def test_deviations_outside_the_closing_audit_are_refused(deviations: tuple[int, ...]) -> None:
    device = session()
    skip(device, 1, 2)
    device.close()
    with pytest.raises(ProtocolViolation, match="^deviations: [0-9]+ is not in the audit from 3 to 5, in rising order"):
        device.apply(Closed(deviations))
    assert (device.tally.audited_tokens, device.tally.deviations) == (0, 0)


def test_deviations_that_cross_the_close_count_only_in_its_audit() -> None:
    """A cloud may send any number of them, and a device keeps no more than it asked about."""
    device = asked()
    device.close()
    device.apply(Verdict(0, 6, 9, (2, 3, 3, 2**32 - 1)))
    assert device.apply(Closed((4,))) == [Audited(3, 5, (3, 4))]
    assert device.tally.deviations == 2


@pytest.mark.parametrize(
    "frame",
    [
        Verdict(0, 6, VOCABULARY),
        Verdict(1, 5, VOCABULARY),
        Verdict(1, 5, 2**32 - 1),
        Verdict(1, 5, 4, (), 0, 0, (VOCABULARY,)),  # after a branch
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(frame: Verdict) -> None:
    """No model can read them, and no text can show them."""
    device = asked(branches=[BranchToken(4, 4)])
    with pytest.raises(ProtocolViolation, match=f"^token_ids: [0-9]+ is not in a vocabulary of {VOCABULARY}"):
        device.apply(frame)
    assert device.text[START:] == [1, 2, 3]


def test_a_takeover_outside_the_vocabulary_is_refused_as_a_whole() -> None:
    device = session()
    device.send(continuation_tokens=5)
    device.apply(Verdict(0, 3, 1))
    with pytest.raises(ProtocolViolation, match=f"^token_ids: {VOCABULARY} is not in a vocabulary of {VOCABULARY}"):
        device.apply(Continuation(4, (1, VOCABULARY), False))
    assert device.text[START:] == [1]


def repeats(device: DeviceSession, frame: ServerFrame) -> int:
    """Apply a frame again and again, and return how often the device took it; the last refusal must be about that."""
    taken = 0
    with contextlib.suppress(ProtocolViolation):
        while taken < 1000:
            assert device.apply(frame) == []
            taken += 1
    with pytest.raises(ProtocolViolation, match="^cloud: [0-9]+ frames in a row that change nothing"):
        device.apply(frame)
    return taken


@pytest.mark.parametrize(
    ("state", "frame"),
    [
        ("reading", Opened(True, 100)),
        ("writing", Continuation(4, (), False)),
        ("writing", Continuation(3, (1,), False)),  # it repeats the final text
        ("writing", Verdict(0, 3, 1)),
        ("closing", Opened(True, 100)),
        ("closing", Verdict(0, 6, 9, (3,))),
        ("closing", Continuation(0, (1,), True)),
    ],
)
def test_a_cloud_that_makes_no_progress_is_left(state: str, frame: ServerFrame) -> None:
    """Each frame restarts the device's patience, so such a cloud could keep it waiting for ever."""
    device = session()
    if state == "writing":
        device.send(continuation_tokens=5)
        device.apply(Verdict(0, 3, 1))
        assert device.following
    elif state == "closing":
        skip(device, 1)
        device.close()
    text = list(device.text)
    assert 64 <= repeats(device, frame) <= 64 + device.limit
    assert device.text == text


def test_a_takeover_of_any_length_may_cross_the_close() -> None:
    device = session(limit=5000)
    device.send(continuation_tokens=4000)
    device.apply(Verdict(0, 3, 1))
    device.close()
    for position in range(4, 4000):
        device.apply(Continuation(position, (1,), False))
    assert device.apply(Closed()) == []
