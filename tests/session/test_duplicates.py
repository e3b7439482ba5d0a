"""Frames that arrive twice: the text stays the same, and nothing is counted twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Close, Closed, Draft, Opened, Verdict
from chaperone_common.session import State
from chaperone_common.types import Mode, OnDeviation, Origin
from edge_client.planner import FixedPlanner
from tests.support.session.cloud import answer, draft, session
from tests.support.session.device import START, fire, skip, snapshot
from tests.support.session.device import session as device_session
from tests.support.session.pair import PROMPT, Models, Pair, RandomPlanner, cloud_text

TEXT_IS_WRITTEN = (State.DEVICE_WRITES, State.CLOUD_WRITES)


@dataclass
class RepeatingPair(Pair):
    """A pair on a wire that delivers Drafts and Verdicts again, at once or after later ones."""

    past_drafts: list[Draft] = field(default_factory=list)
    past_verdicts: list[Verdict] = field(default_factory=list)
    repeated_drafts: int = 0
    repeated_verdicts: int = 0

    def reset(self) -> None:
        self.past_drafts.clear()
        self.past_verdicts.clear()
        super().reset()

    def _cloud_reads(self) -> bool:
        frame = self.up[0] if self.up else None
        read = super()._cloud_reads()
        if isinstance(frame, Draft):
            self.past_drafts.append(frame)
        if self.past_drafts and self.cloud.state in TEXT_IS_WRITTEN and self.random.random() < 0.2:
            self.repeated_drafts += 1
            self.up.appendleft(self.random.choice(self.past_drafts[-3:]))
            self.wanted_ms.appendleft(self.cloud.deadline_ms)
            super()._cloud_reads()
        return read

    def _receive(self) -> bool:
        frame = self.down[0] if self.down else None
        received = super()._receive()
        if isinstance(frame, Verdict):
            self.past_verdicts.append(frame)
        if self.past_verdicts and self.device.state in TEXT_IS_WRITTEN and self.random.random() < 0.2:
            self.repeated_verdicts += 1
            before = snapshot(self.device)
            assert self.device.apply(self.random.choice(self.past_verdicts)) == []
            assert snapshot(self.device) == before
        return received


@st.composite
def repeating(draw: st.DrawFn, mode: Mode, on_deviation: OnDeviation = OnDeviation.KEEP) -> RepeatingPair:
    models = Models(draw(st.integers(0, 2**32)), draw(st.integers(0, 100)), draw(st.integers(5, 200)))
    random = Random(draw(st.integers(0, 2**32)))
    run_ahead_tokens = draw(st.integers(10, 40))
    fixed = FixedPlanner(
        mode,
        span_tokens=draw(st.integers(1, 9)),
        spans_in_flight=draw(st.integers(1, 4)),
        run_ahead_tokens=run_ahead_tokens,
    )
    planners: list[FixedPlanner | RandomPlanner] = [fixed, RandomPlanner(random, run_ahead_tokens)]
    return RepeatingPair(
        models,
        mode,
        draw(st.sampled_from(planners)),
        random,
        continuation_tokens=draw(st.integers(0, 9)),
        deadlines_ms=(100, 200),
        branch_tokens=draw(st.integers(0, 6)),
        resets=draw(st.integers(0, 3)),
        on_deviation=on_deviation,
    )


@settings(max_examples=300)
@given(pair=repeating(Mode.EXACT))
def test_exact_commits_the_cloud_only_text_although_frames_arrive_twice(pair: RepeatingPair) -> None:
    pair.run()
    assert [*PROMPT, *(event.token_id for event in pair.committed)] == cloud_text(pair.models, PROMPT, pair.limit)
    assert pair.device.tally.deviations == 0


@settings(max_examples=100)
@given(pair=repeating(Mode.GATED, OnDeviation.RETRACT))
def test_retracting_commits_the_cloud_only_text_although_frames_arrive_twice(pair: RepeatingPair) -> None:
    pair.run()
    assert [*PROMPT, *(event.token_id for event in pair.committed)] == cloud_text(pair.models, PROMPT, pair.limit)


@settings(max_examples=300)
@given(pair=repeating(Mode.GATED))
def test_gated_counts_every_deviation_once_although_frames_arrive_twice(pair: RepeatingPair) -> None:
    pair.run()
    text = [*PROMPT, *(event.token_id for event in pair.committed)]
    deviating = [event for event in pair.committed if pair.models.cloud(text[: event.position]) != event.token_id]
    assert pair.device.tally.deviations == len(deviating)
    assert pair.audits == Counter(event.position for event in pair.committed if event.origin is Origin.DRAFT)


def test_the_wire_repeats_every_kind_of_frame() -> None:
    drafts = verdicts = 0
    for seed in range(50):
        planner = FixedPlanner(Mode.GATED, span_tokens=2, spans_in_flight=3, run_ahead_tokens=30)
        pair = RepeatingPair(Models(seed), Mode.GATED, planner, Random(seed))
        pair.run()
        drafts += pair.repeated_drafts
        verdicts += pair.repeated_verdicts
    assert min(drafts, verdicts) >= 50


@pytest.mark.parametrize(
    ("frame", "choices"),
    [
        (draft(START, 1, 2), [1, 2, 3]),
        (draft(START, 1, 2, final_before=5), [4, 2, 3]),  # an audit, whose deviation is reported once
        (draft(START, 1, 2), [5, 2, 3]),  # an override
        (draft(START, 1, 2, branches=((4, 3), (5, 6))), [1, 2, 3, 6, 7]),
    ],
)
def test_a_copy_of_a_draft_is_ignored(frame: Draft, choices: list[int]) -> None:
    cloud = session()
    answer(cloud, frame, choices)
    text, revision = list(cloud.text), cloud.revision
    assert cloud.receive(frame) is None
    assert (cloud.text, cloud.revision, cloud.stale_frames) == (text, revision, 1)


@pytest.mark.parametrize(
    ("frame", "choices"),
    [(draft(START, continuation_tokens=3), [5]), (draft(START, 1, continuation_tokens=3), [5, 2])],
)
def test_a_copy_neither_ends_a_takeover_nor_begins_another(frame: Draft, choices: list[int]) -> None:
    cloud = session()
    answer(cloud, frame, choices)
    assert not cloud.hands_back(frame)
    assert cloud.receive(frame) is None
    assert (cloud.writes, cloud.takeovers, cloud.hand_backs) == (True, 1, 0)
    while cloud.writes:
        cloud.answer(cloud.writing(), [6])
    assert cloud.receive(frame) is None
    assert not cloud.writes


def test_a_copy_of_the_draft_before_a_contradicted_one_prevents_no_takeover() -> None:
    """The device expects the takeover as soon as it receives the Verdict."""
    cloud = session()
    first = draft(START, 1)
    answer(cloud, first, [1, 2])
    assert cloud.receive(first) is None
    assert cloud.receive(draft(4, 9, continuation_tokens=3)) is None
    assert cloud.writes


def test_a_copy_restores_no_earlier_deadline() -> None:
    cloud = session()
    first, second = replace(draft(START, 1), deadline_ms=100), replace(draft(4, 2), deadline_ms=200)
    answer(cloud, first, [1, 2])
    answer(cloud, second, [3])
    assert cloud.receive(first) is None
    assert cloud.deadline_ms == 200


def test_other_tokens_at_a_place_that_was_sent_are_refused() -> None:
    cloud = session()
    answer(cloud, draft(START, 1, 2), [1, 2, 3])
    with pytest.raises(ProtocolViolation, match="start: 4 is below 5, the end of the last Draft; send each token once"):
        cloud.receive(draft(4, 2, 3))


def test_a_draft_that_continues_the_last_one_is_no_copy() -> None:
    """Tokens after a request to write, and a request to write after tokens."""
    cloud = session()
    assert answer(cloud, draft(START), [5]) == Verdict(0, 3, 5)
    assert answer(cloud, draft(START, 5), [6]) == Verdict(0, 4, 6)
    assert answer(cloud, draft(5), [8]) == Verdict(0, 5, 8)


def test_a_repeated_close_is_refused_and_its_audit_counted_once() -> None:
    """The cloud has answered the first one by then, and ends the stream with that answer."""
    device, cloud = device_session(), session()
    skip(device, 1, 2)
    close = device.close()
    closed = answer(cloud, close, [1, 5])
    assert closed == Closed((4,))
    with pytest.raises(ProtocolViolation, match="Close is not allowed"):
        cloud.receive(close)
    device.apply(closed)
    before = snapshot(device)
    with pytest.raises(ProtocolViolation, match="Closed is not allowed"):
        device.apply(closed)
    assert snapshot(device) == before
    assert (device.tally.audited_tokens, device.tally.deviations) == (2, 1)


def test_a_repeated_open_is_a_session_with_the_same_answers() -> None:
    """On a stream of its own: a second Open on one stream is refused, and the newer stream ends the older one."""
    first, second = session(committed=(1,)), session(committed=(1,))
    for frame, choices in ((draft(4, 2, 3), [2, 5, 1]), (draft(6, 7, revision=1, final_before=7), [6, 3])):
        assert answer(first, frame, choices) == answer(second, frame, choices)
    assert first.text == second.text


def test_the_answers_to_an_audit_do_not_depend_on_how_often_it_was_asked_for() -> None:
    """An audit whose answer is lost is asked for again, on a stream of its own."""
    choices = [1, 9, 3]
    found = [answer(session(), Close(START, (1, 2, 3)), choices) for _ in range(2)]
    assert found == [Closed((4,))] * 2


def test_a_repeated_opened_changes_nothing() -> None:
    device = device_session()
    fire(device, 1)
    device.send()
    before = snapshot(device)
    assert device.apply(Opened(prefilled=True, context_tokens=100)) == []
    assert snapshot(device) == before
