"""The engine under a ceiling on the cloud's share: the text is held there, or fails with its reason."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import CloudShareExceeded
from chaperone_common.frames import Arrived, ServerFrame
from chaperone_common.session import CloudShareReached, Committed
from chaperone_common.types import FinishReason, Mode, Origin, Promises, Signal
from edge_client.events import Event
from edge_client.gate import Always, Budgeted, CloudShareLimit, Control, Gate, Never, Threshold
from edge_client.gate.cloud_share import LEAST_TOKENS, RESUME_TOKENS
from edge_client.planner import (
    AdaptivePlanner,
    Decision,
    FixedPlanner,
    HandOver,
    Planner,
    Situation,
)
from tests.support.device.branching_planner import BranchingPlanner
from tests.support.device.engine import TARGET, EngineHarness, cloud_text, failed, finished, origins, written
from tests.support.fakes.link import Cloud, FakeLink, cloud_of

FOREIGN = 3.0  # a disturbance at which the two models agree on few tokens


def harness(share: float | None, *, fails: bool = False, resumed: int = 0, **given: Any) -> EngineHarness:
    limit = CloudShareLimit(share, fails=fails, resumed_cloud_tokens=resumed)
    options = {"mode": Mode.GATED, "gate": Always(), "disturbance": FOREIGN, "new_tokens": 120, "span": 1}
    return EngineHarness(FakeLink(cloud_of(TARGET)), cloud_share=limit, **{**options, **given})


class EachThird(Gate):
    """A gate that fires at each third token."""

    def __init__(self) -> None:
        self._asked = 0

    def fires(self, signal: Signal) -> bool:
        self._asked += 1
        return self._asked % 3 == 0


def reached(events: Sequence[Event]) -> list[CloudShareReached]:
    return [event for event in events if isinstance(event, CloudShareReached)]


def cloud_counts(events: Sequence[Event]) -> list[tuple[int, int]]:
    """Return (tokens of the cloud, tokens) after each final token."""
    counts, cloud = [], 0
    for number, event in enumerate((event for event in events if isinstance(event, Committed)), start=1):
        cloud += event.origin.of_cloud
        counts.append((cloud, number))
    return counts


def test_a_text_that_would_be_nearly_all_cloud_is_held_at_the_ceiling_with_its_reason() -> None:
    free = finished(harness(None).run()).stats
    assert free.cloud_share > 0.7
    assert (free.guard, free.promises_hold, free.max_cloud_share) == (None, True, None)

    events = harness(0.25).run()
    stats = finished(events).stats
    assert len(written(events)) == 120
    assert 0.2 < stats.cloud_share <= 0.25
    assert (stats.guard, stats.max_cloud_share, stats.promises_hold) == ("max_cloud_share", 0.25, False)
    assert stats.unverified_tokens > 60
    assert stats.fired == stats.verified_tokens + stats.caught, "an unasked token did not fire"
    assert origins(events) <= {Origin.OVERRIDE, Origin.BONUS, Origin.VERIFIED, Origin.UNVERIFIED}
    first = reached(events)[0]
    assert (first.cloud_tokens, first.tokens, first.limit, first.share) == (8, LEAST_TOKENS, 0.25, 0.25)
    assert first.reason == "max_cloud_share: the cloud chose 8 tokens, and 0.25 of 32 tokens allows no more"


def test_the_event_precedes_the_first_unasked_token() -> None:
    events = harness(0.25).run()
    unasked = [event.position for event in events if isinstance(event, Committed) and not event.origin.judged]
    assert reached(events)[0].position == unasked[0]


def test_the_gate_asks_again_once_the_ceiling_leaves_room() -> None:
    events = harness(0.25, new_tokens=400).run()
    crossings = reached(events)
    gained = [later.cloud_tokens - earlier.cloud_tokens for earlier, later in pairwise(crossings)]
    assert len(gained) > 5
    assert min(gained) >= RESUME_TOKENS, "otherwise it would alternate"


@pytest.mark.parametrize("share", [None, 1.0])
def test_without_a_ceiling_nothing_changes(share: float | None) -> None:
    events = harness(share).run()
    assert written(events) == cloud_text(120)
    assert not reached(events)
    assert finished(events).stats.max_cloud_share is None


def test_a_ceiling_that_is_not_reached_changes_nothing() -> None:
    events = harness(0.9, disturbance=0.1).run()
    assert written(events) == cloud_text(120)
    stats = finished(events).stats
    assert (stats.guard, stats.promises_hold, stats.max_cloud_share) == (None, True, 0.9)


GATES = st.one_of(
    st.builds(Always),
    st.builds(Threshold, st.floats(0, 0.5)),
    st.builds(lambda: Budgeted(Control(Promises()))),
)


class LateLink(FakeLink):
    """A link whose frames arrive after the engine has looked for them `late` times more."""

    def __init__(self, cloud: Cloud, late: int) -> None:
        super().__init__(cloud)
        self._late = late
        self._looks = 0
        self._travelling: deque[tuple[int, ServerFrame]] = deque()

    def deliver(self, *frames: ServerFrame) -> None:
        self._travelling.extend((self._looks + self._late, frame) for frame in frames)

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        self._looks += 1
        while self._travelling and self._travelling[0][0] < self._looks:
            super().deliver(self._travelling.popleft()[1])
        return super().ready()

    async def wait(self, timeout_ms: float) -> bool:
        if self._travelling:
            self._looks = self._travelling[0][0]
        return bool(self._travelling)


@dataclass(frozen=True, slots=True)
class Careless:
    """Decides as another planner, but hands the text to the cloud whenever all of it was sent and answered."""

    planner: FixedPlanner
    tokens: int

    @property
    def mode(self) -> Mode:
        return self.planner.mode

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        if session.spans or len(session.text) > session.sent_length:
            return self.planner.decide(situation)
        return Decision(HandOver(min(self.tokens, session.limit - len(session.text))), "the cloud may be faster")

    def alone(self) -> Self:
        return replace(self, planner=self.planner.alone())


@st.composite
def planners(draw: st.DrawFn) -> Planner:
    spans, in_flight, ahead = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 16))
    fixed = FixedPlanner(Mode.GATED, spans, in_flight, ahead, draw(st.integers(0, 12)))
    others: list[Planner] = [fixed, BranchingPlanner(fixed), Careless(fixed, ahead), AdaptivePlanner(Mode.GATED)]
    return draw(st.sampled_from(others))


@settings(max_examples=100, deadline=None)
@given(
    share=st.floats(0.01, 0.99),
    gate=GATES,
    planner=planners(),
    late=st.integers(0, 6),
    disturbance=st.sampled_from([0.1, 0.5, FOREIGN]),
    branches=st.integers(0, 2),
    resumed=st.integers(0, 3),
)
def test_the_cloud_never_chooses_more_than_the_ceiling_allows(
    share: float, gate: Gate, planner: Planner, late: int, disturbance: float, branches: int, resumed: int
) -> None:
    resumed = min(resumed, int(share * LEAST_TOKENS))
    engine = EngineHarness(
        LateLink(cloud_of(TARGET), late),
        mode=Mode.GATED,
        gate=gate,
        planner=planner,
        disturbance=disturbance,
        branches=branches,
        new_tokens=80,
        cloud_share=CloudShareLimit(share, resumed_cloud_tokens=resumed),
    )
    events = engine.run()
    assert all(resumed + cloud <= share * max(tokens, LEAST_TOKENS) for cloud, tokens in cloud_counts(events))
    assert len(written(events)) == 80
    stats = finished(events).stats
    assert (stats.guard is not None) == bool(reached(events))
    assert (stats.unverified_tokens == 0) == stats.promises_hold


def test_unasked_tokens_are_audited_and_count_for_no_promise() -> None:
    control = Control(Promises(1.0, 0.0))  # asks about every token
    events = harness(0.25, gate=Budgeted(control), closing_audit=True).run()
    stats = finished(events).stats
    assert stats.unverified_tokens > 60
    assert stats.skipped_tokens == 0
    assert stats.audited_tokens == stats.unverified_tokens
    assert stats.deviations > 30
    assert stats.deviation_bound == stats.deviations / 120
    assert stats.catch is not None
    assert stats.catch < 0.95, "the measured catch includes them"
    assert control.totals.deviations == 0
    assert control.totals.audited == 0
    assert control.totals.catch == 1.0


def test_an_unread_unasked_token_may_be_a_deviation() -> None:
    stats = finished(harness(0.25).run()).stats
    unread = stats.unverified_tokens - stats.audited_tokens
    assert unread > 0
    assert stats.deviation_bound == (stats.deviations + unread) / 120


def test_at_the_ceiling_end_of_text_is_not_asked_about() -> None:
    """The cloud may choose another token there, as at any other fire."""
    text = written(harness(0.25).run())
    eos = next(token for token in text[60:] if text.index(token) >= 60)
    events = harness(0.25, eos=(eos,)).run()
    ending = [event for event in events if isinstance(event, Committed)][-1]
    assert ending.token_id == eos
    assert finished(events).finish_reason is FinishReason.STOP


# The text ends at the ceiling


def test_a_text_may_fail_at_the_ceiling() -> None:
    events = harness(0.25, fails=True).run()
    error = failed(events).error
    assert isinstance(error, CloudShareExceeded)
    assert error.message == (
        "max_cloud_share: the cloud chose 8 tokens, and 0.25 of 32 tokens allows no more; resume with a higher value "
        "or in mode edge, or set gate.on_cloud_share to continue"
    )
    assert not reached(events)
    stats = failed(events).stats
    assert (stats.guard, stats.promises_hold, stats.unverified_tokens) == ("max_cloud_share", True, 0)
    assert written(events) == cloud_text(len(written(events))), "each token was judged"
    assert cloud_counts(events)[-1][0] == 8
    assert stats.completion_tokens == len(written(events))


def test_a_text_that_fails_at_the_ceiling_is_audited() -> None:
    engine = harness(0.1, fails=True, gate=EachThird()).engine

    async def write() -> None:
        async for _ in engine.stream():
            pass
        assert engine.audit_pending
        await engine.audit()

    asyncio.run(write())
    assert engine.session.tally.audited_tokens == engine.session.tally.skipped_tokens > 0


def test_final_tokens_of_the_answer_that_reaches_the_ceiling_are_kept() -> None:
    """An override may make a branch the text, whose tokens fire at once."""
    events = harness(0.25, fails=True, disturbance=0.5, branches=2, planner=AdaptivePlanner(Mode.GATED)).run()
    stats = failed(events).stats
    assert stats.completion_tokens == len(written(events))
    assert stats.cloud_share == cloud_counts(events)[-1][0] / len(written(events))


def test_never_asking_is_no_use_of_the_cloud() -> None:
    stats = finished(harness(0.25, gate=Never()).run()).stats
    assert (stats.cloud_share, stats.guard, stats.promises_hold) == (0.0, None, True)


def test_tokens_of_a_resumed_text_count() -> None:
    events = harness(0.25, resumed=8).run()
    assert not [event for event in events[:20] if isinstance(event, Committed) and event.origin.of_cloud]
    assert reached(events)[0].cloud_tokens == 8
