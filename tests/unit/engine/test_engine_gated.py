"""The engine in `gated`: what is audited when, also after the text, and what gate and risk are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from chaperone_common.frames import ClientFrame, Close, Draft, Open, ServerFrame, Verdict
from chaperone_common.session import Audited, Committed, Drafted, Event, Finished, Retracted, SessionEvent
from chaperone_common.types import Mode, OnDeviation, Origin, Promises, Proposal, Signal
from edge_client.gate import Budgeted, Calibration, Control, Gate, Never, Threshold
from edge_client.planner import Draft as DraftOn
from edge_client.planner import Send
from tests.support.engine import OPENED, PROMPT, TARGET, Stage, cloud_text, finished, origins, written
from tests.support.fake_link import FakeLink, cloud_of
from tests.unit.engine.test_engine_trees import AT, BEHIND, FIRST, OTHER, staged

TRUSTING = Calibration.of([number / 100 for number in range(1, 100)], [number > 90 for number in range(1, 100)])


def gated(gate: Gate, link: FakeLink, **settings: Any) -> Stage:
    return Stage(link, mode=Mode.GATED, gate=gate, span=1, in_flight=1, **settings)


def closes(link: FakeLink) -> list[Close]:
    return [frame for frame in link.sent if isinstance(frame, Close)]


def test_with_deviations_retracted_the_text_is_the_cloud_s() -> None:
    stage = gated(Never(), FakeLink(cloud_of(TARGET)), on_deviation=OnDeviation.RETRACT)
    events = stage.run()
    assert written(events) == cloud_text(40)
    assert Origin.DRAFT not in origins(events)
    assert finished(events).stats.skipped_tokens == 0


def test_what_is_audited_after_the_text_is_learned_all_the_same() -> None:
    control = Control(Promises(0.2, 1.0), TRUSTING)
    link = FakeLink(cloud_of(TARGET))
    stage = gated(Budgeted(control), link)

    async def write() -> tuple[Event, float]:
        events = [event async for event in stage.engine.stream()]
        assert stage.engine.audit_pending
        before = control.totals.audited
        await stage.engine.audit()
        assert not stage.engine.audit_pending
        return events[-1], before

    ending, before = asyncio.run(write())
    assert isinstance(ending, Finished)
    assert before < control.totals.audited == ending.stats.skipped_tokens


def leaving(stage: Stage, after: int | None) -> None:
    """Stop listening after so many final tokens; None: at `Finished`."""

    async def write() -> None:
        committed = 0
        async with aclosing(stage.engine.stream()) as events:
            async for event in events:
                committed += isinstance(event, Committed)
                if committed == after or isinstance(event, Finished):
                    break
        await stage.engine.audit()

    asyncio.run(write())


def test_a_user_who_leaves_leaves_nothing_unaudited() -> None:
    control = Control(Promises(0.0, 1.0))
    link = FakeLink(cloud_of(TARGET))
    leaving(gated(Budgeted(control), link), 10)
    (close,) = closes(link)
    assert (close.start, len(close.token_ids)) == (len(PROMPT), 10)
    assert control.totals.audited == 10
    assert control.totals.deviations > 0
    assert not link.cancelled


def test_a_user_who_stops_at_the_last_event_leaves_nothing_unaudited() -> None:
    control = Control(Promises(0.0, 1.0))
    link = FakeLink(cloud_of(TARGET))
    stage = gated(Budgeted(control), link)
    leaving(stage, None)
    assert control.totals.audited == stage.engine.session.tally.skipped_tokens > 0
    assert not link.cancelled


def test_where_nothing_was_skipped_leaving_cancels_at_once() -> None:
    link = FakeLink(cloud_of(TARGET))
    leaving(Stage(link, span=4), 10)
    assert not closes(link)
    assert link.cancelled


@pytest.mark.parametrize("audited", [True, False])
def test_a_share_of_the_texts_about_which_nothing_was_asked_is_audited(audited: bool) -> None:
    drawn = Random("s").random()
    share = (drawn + 1) / 2 if audited else drawn / 2
    link = FakeLink(cloud_of(TARGET))
    events = gated(Never(), link, closing_audit=True, audit_share=share).run()
    (close,) = closes(link)
    assert len(close.token_ids) == (40 if audited else 0)
    weights = [event.weight for event in events if isinstance(event, Audited)]
    assert weights == ([pytest.approx(1 / share)] if audited else [])
    assert finished(events).stats.audited_tokens == len(close.token_ids)


@pytest.mark.parametrize(("share", "held"), [(1.0, Budgeted), (0.0, Never)])
def test_a_text_that_is_not_audited_is_let_go_of(share: float, held: type[Gate]) -> None:
    """Else its tokens would count as waiting, for what nobody will read, as long as somebody holds the engine."""
    link = FakeLink(cloud_of(TARGET))
    stage = gated(Budgeted(Control(Promises(0.0, 1.0))), link, audit_share=share)
    stage.run()
    (close,) = closes(link)
    assert bool(close.token_ids) == bool(share)
    assert type(stage.engine.gate) is held


# Risks


class Replaying:
    """An `Assessor` that follows the text by events alone, and finds every third token risky."""

    def __init__(self) -> None:
        self.text = [*PROMPT]
        self.assessed: list[list[int]] = []

    def assess(self, proposal: Proposal) -> Proposal:
        self.assessed.append(list(self.text))
        risk = 0.9 if len(self.text) % 3 == 0 else 0.1
        return replace(proposal, signal=replace(proposal.signal, risk=risk))

    def follow(self, event: SessionEvent) -> None:
        match event:
            case Drafted(position, token_id):
                assert position == len(self.text)
                self.text.append(token_id)
            case Retracted(position):
                del self.text[position:]
            case Committed(position, token_id):
                if position == len(self.text):
                    self.text.append(token_id)
                assert self.text[position] == token_id
            case Audited():
                pass


@pytest.mark.parametrize("stop_at", [None, cloud_text(40)[25]])
def test_what_tells_risks_is_in_step_with_the_text(stop_at: int | None) -> None:
    assessor = Replaying()
    stage = gated(Threshold(0.5), FakeLink(cloud_of(TARGET)), stop_at=stop_at, branches=2)
    stage.engine.assessor = assessor
    seen: list[int] = []

    async def write() -> list[Event]:
        events = []
        async for event in stage.engine.stream():
            events.append(event)
            seen.append(len(stage.engine.session.text))
        return events

    events = asyncio.run(write())
    assert assessor.text == stage.engine.session.text
    risks = {event.position: event.signal.risk for event in events if isinstance(event, Drafted)}
    assert risks
    assert all(risk == (0.9 if position % 3 == 0 else 0.1) for position, risk in risks.items())
    fates = {event.position: event.origin for event in events if isinstance(event, Committed)}
    assert Origin.DRAFT not in {origin for position, origin in fates.items() if position % 3 == 0}


# Stop strings


class Once(Gate):
    """Asks about the first token, and about none after it."""

    def __init__(self) -> None:
        self._asked = False

    def fires(self, signal: Signal) -> bool:
        asked, self._asked = self._asked, True
        return not asked


def test_a_stop_string_in_a_foreseen_branch_ends_the_text() -> None:
    def cloud(frame: ClientFrame) -> Iterable[ServerFrame]:
        match frame:
            case Open():
                yield OPENED
            case Draft():
                yield Verdict(1, AT, OTHER)
            case _:
                pass

    drafting = (DraftOn(), DraftOn(True, (AT,)), DraftOn(True, (AT,)))
    stage = staged(FakeLink(cloud), *drafting, Send(), gate=Once(), stop_at=BEHIND)
    events = stage.run()
    assert FIRST not in written(events)
    assert written(events) == [OTHER, BEHIND], "and not the second token behind the branch"
    assert stage.engine.session.text == [*PROMPT, OTHER, BEHIND]
