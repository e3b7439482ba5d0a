"""The engine in `gated`: audits during and after the text, and the events of gate and risk model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from chaperone_common.frames import ClientFrame, Close, Draft, Failure, Open, ServerFrame, Verdict
from chaperone_common.session import Audited, Committed, Drafted, Finished, Retracted, SessionEvent
from chaperone_common.types import Mode, OnDeviation, Origin, Promises, Proposal, Signal
from edge_client.events import Event
from edge_client.gate import Budgeted, Control, Gate, HeldOutRisks, Never, Threshold
from edge_client.planner import DraftToken, Send
from tests.support.device.engine import OPENED, PROMPT, TARGET, EngineHarness, cloud_text, finished, origins, written
from tests.support.fakes.link import FakeLink, cloud_of
from tests.unit.engine.test_engine_trees import AT, FIRST, NEXT, OTHER, staged

TRUSTING = HeldOutRisks.of([number / 100 for number in range(1, 100)], [number > 90 for number in range(1, 100)])


def gated(gate: Gate, link: FakeLink, **settings: Any) -> EngineHarness:
    return EngineHarness(link, mode=Mode.GATED, gate=gate, span=1, in_flight=1, **settings)


def closes(link: FakeLink) -> list[Close]:
    return [frame for frame in link.sent if isinstance(frame, Close)]


def test_retracting_deviations_gives_the_cloud_only_text() -> None:
    harness = gated(Never(), FakeLink(cloud_of(TARGET)), on_deviation=OnDeviation.RETRACT)
    events = harness.run()
    assert written(events) == cloud_text(40)
    assert Origin.DRAFT not in origins(events)
    assert finished(events).stats.skipped_tokens == 0


def test_audits_after_the_text_are_learned_too() -> None:
    control = Control(Promises(0.2, 1.0), TRUSTING)
    link = FakeLink(cloud_of(TARGET))
    harness = gated(Budgeted(control), link)

    async def write() -> tuple[Event, float]:
        events = [event async for event in harness.engine.stream()]
        assert harness.engine.audit_pending
        before = control.totals.audited
        await harness.engine.audit()
        assert not harness.engine.audit_pending
        return events[-1], before

    ending, before = asyncio.run(write())
    assert isinstance(ending, Finished)
    assert before < control.totals.audited == ending.stats.skipped_tokens


def leaving(harness: EngineHarness, after: int | None) -> None:
    """Stop listening after this many final tokens; None: at `Finished`."""

    async def write() -> None:
        committed = 0
        async with aclosing(harness.engine.stream()) as events:
            async for event in events:
                committed += isinstance(event, Committed)
                if committed == after or isinstance(event, Finished):
                    break
        await harness.engine.audit()

    asyncio.run(write())


def test_leaving_a_stream_leaves_nothing_unaudited() -> None:
    control = Control(Promises(0.0, 1.0))
    link = FakeLink(cloud_of(TARGET))
    leaving(gated(Budgeted(control), link), 10)
    (close,) = closes(link)
    assert (close.start, len(close.token_ids)) == (len(PROMPT), 10)
    assert control.totals.audited == 10
    assert control.totals.deviations > 0
    assert not link.cancelled


def test_leaving_at_the_last_event_leaves_nothing_unaudited() -> None:
    control = Control(Promises(0.0, 1.0))
    link = FakeLink(cloud_of(TARGET))
    harness = gated(Budgeted(control), link)
    leaving(harness, None)
    assert control.totals.audited == harness.engine.session.tally.skipped_tokens > 0
    assert not link.cancelled


def test_leaving_without_skipped_tokens_cancels_at_once() -> None:
    link = FakeLink(cloud_of(TARGET))
    leaving(EngineHarness(link, span=4), 10)
    assert not closes(link)
    assert link.cancelled


@pytest.mark.parametrize("audited", [True, False])
def test_a_share_of_the_texts_without_any_request_is_audited(audited: bool) -> None:
    drawn = Random("s").random()
    share = (drawn + 1) / 2 if audited else drawn / 2
    link = FakeLink(cloud_of(TARGET))
    events = gated(Never(), link, closing_audit=True, audit_share=share).run()
    (close,) = closes(link)
    assert len(close.token_ids) == (40 if audited else 0)
    weights = [event.weight for event in events if isinstance(event, Audited)]
    assert weights == ([pytest.approx(1 / share)] if audited else [])
    assert finished(events).stats.audited_tokens == len(close.token_ids)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_the_gate_of_an_unaudited_text_is_closed(share: float) -> None:
    """Otherwise its tokens would count as waiting for an audit that never comes."""
    link = FakeLink(cloud_of(TARGET))
    gate = Skipping()
    gated(gate, link, audit_share=share).run()
    (close,) = closes(link)
    assert bool(close.token_ids) == bool(share)
    assert gate.times_closed == (0 if share else 1), "an audit is on its way, and the gate waits for it"


# The end of a gate


class Skipping(Gate):
    """A gate that skips every token, and checks that it receives nothing after its close."""

    def __init__(self) -> None:
        self.times_closed = 0
        self.events = 0

    def fires(self, signal: Signal) -> bool:
        return False

    def follow(self, event: SessionEvent) -> None:
        assert not self.times_closed
        self.events += 1

    def close(self) -> None:
        self.times_closed += 1


def silent_after(frames: int) -> Callable[[ClientFrame], Iterable[ServerFrame]]:
    """Return a cloud that answers `frames` frames, and none after them."""
    answer, left = cloud_of(TARGET), [frames]

    def cloud(frame: ClientFrame) -> Iterable[ServerFrame]:
        left[0] -= 1
        return answer(frame) if left[0] >= 0 else ()

    return cloud


def refusing(frame: ClientFrame) -> Iterable[ServerFrame]:
    return [Failure("UNAVAILABLE", "the cloud is down")]


async def _to_the_end(harness: EngineHarness) -> None:
    async for _ in harness.engine.stream():
        pass


async def _audited(harness: EngineHarness) -> None:
    await _to_the_end(harness)
    assert harness.engine.audit_pending
    await harness.engine.audit()


async def _left(harness: EngineHarness) -> None:
    async with aclosing(harness.engine.stream()) as events:
        async for event in events:
            if isinstance(event, Committed):
                break
    await harness.engine.audit()


async def _cancelled(harness: EngineHarness) -> None:
    async for event in harness.engine.stream():
        if isinstance(event, Committed):
            harness.engine.cancel()
    await harness.engine.audit()


async def _audit_cancelled(harness: EngineHarness) -> None:
    await _to_the_end(harness)
    audit = asyncio.create_task(harness.engine.audit())
    await asyncio.sleep(0)
    audit.cancel()
    with suppress(asyncio.CancelledError):
        await audit


ENDINGS: dict[str, tuple[Callable[[EngineHarness], Coroutine[Any, Any, None]], FakeLink, dict[str, Any]]] = {
    "audited with the text": (_to_the_end, FakeLink(cloud_of(TARGET)), {"closing_audit": True}),
    "audited after the text": (_audited, FakeLink(cloud_of(TARGET)), {}),
    "not audited": (_to_the_end, FakeLink(cloud_of(TARGET)), {"audit_share": 0.0}),
    "an audit that is cancelled": (_audit_cancelled, FakeLink(silent_after(1)), {"closing_audit": False}),
    "an audit that never comes": (_to_the_end, FakeLink(silent_after(1)), {"closing_audit": True}),
    "left early": (_left, FakeLink(cloud_of(TARGET)), {}),
    "cancelled": (_cancelled, FakeLink(cloud_of(TARGET)), {}),
    "failed": (_to_the_end, FakeLink(refusing), {}),
    "gone on alone": (_to_the_end, FakeLink(refusing), {"continue_without_cloud": True}),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_closes_the_gate_once(ending: str) -> None:
    run, link, settings = ENDINGS[ending]
    gate = Skipping()
    harness = gated(gate, link, **settings)
    asyncio.run(run(harness))
    assert gate.times_closed == 1


# Risks


class Replaying:
    """A `RiskModel` that follows the text by events alone, and finds every third token risky."""

    def __init__(self) -> None:
        self.text = [*PROMPT]
        self.texts: list[list[int]] = []

    def with_risk(self, proposal: Proposal) -> Proposal:
        self.texts.append(list(self.text))
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
def test_the_risk_model_is_in_step_with_the_text(stop_at: int | None) -> None:
    risk_model = Replaying()
    harness = gated(Threshold(0.5), FakeLink(cloud_of(TARGET)), risk_model=risk_model, stop_at=stop_at, branches=2)
    seen: list[int] = []

    async def write() -> list[Event]:
        events = []
        async for event in harness.engine.stream():
            events.append(event)
            seen.append(len(harness.engine.session.text))
        return events

    events = asyncio.run(write())
    assert risk_model.text == harness.engine.session.text
    risks = {event.position: event.signal.risk for event in events if isinstance(event, Drafted)}
    assert risks
    assert all(risk == (0.9 if position % 3 == 0 else 0.1) for position, risk in risks.items())
    fates = {event.position: event.origin for event in events if isinstance(event, Committed)}
    assert Origin.DRAFT not in {origin for position, origin in fates.items() if position % 3 == 0}


# Stop strings


class Once(Gate):
    """Fires at the first token alone."""

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

    drafting = (DraftToken(), DraftToken(True, (AT,)), DraftToken(True, (AT,)))
    harness = staged(FakeLink(cloud), *drafting, Send(), gate=Once(), stop_at=NEXT)
    events = harness.run()
    assert FIRST not in written(events)
    assert written(events) == [OTHER, NEXT], "and not the second token after the branch"
    assert harness.engine.session.text == [*PROMPT, OTHER, NEXT]
