"""The fixed planner decides from the session's state alone."""

from __future__ import annotations

import pytest

from chaperone_common.frames import Open, Verdict
from chaperone_common.session import DeviceSession
from chaperone_common.types import Mode, Proposal, SamplingParams, SessionId, Signal
from edge_client.planner import Action, CatchUp, DraftForest, DraftToken, FixedPlanner, HandOver, Send, Wait

EOS = 0
SIGNAL = Signal(1.0, 0.5, 0.1, 1.0, 0.5)


def session(limit: int = 30) -> DeviceSession:
    return DeviceSession(Open(SessionId("s"), "", SamplingParams(), 27, (EOS,), (7, 8, 9)), limit=limit)


def draft(device: DeviceSession, *token_ids: int, fires: bool = True) -> None:
    for token_id in token_ids:
        device.draft(Proposal(token_id, SIGNAL, 99), fires=fires)


def planner(
    mode: Mode = Mode.EXACT, *, span_tokens: int = 3, spans_in_flight: int = 2, run_ahead_tokens: int = 8
) -> FixedPlanner:
    return FixedPlanner(mode, span_tokens, spans_in_flight, run_ahead_tokens)


def run(plan: FixedPlanner, device: DeviceSession, *, steps: int) -> list[Action]:
    """Follow the plan while the cloud sends nothing."""
    actions = []
    for _ in range(steps):
        action = plan.next_action(device)
        actions.append(action)
        match action:
            case DraftToken():
                draft(device, 1)
            case Send():
                device.send()
            case HandOver(tokens):
                device.send(continuation_tokens=tokens - 1)
            case Wait() | CatchUp() | DraftForest():
                break
    return actions


def test_drafts_run_on_while_spans_are_in_flight() -> None:
    device = session()
    span: list[Action] = [DraftToken(), DraftToken(), DraftToken(), Send()]
    assert run(planner(), device, steps=99) == [*span, *span, DraftToken(), DraftToken(), Wait()]
    assert [len(sent.token_ids) for sent in device.spans] == [3, 3]


def test_one_span_in_flight_and_no_run_ahead_is_synchronous() -> None:
    plan = planner(spans_in_flight=1, run_ahead_tokens=3)
    assert run(plan, session(), steps=99) == [DraftToken(), DraftToken(), DraftToken(), Send(), Wait()]


def test_a_verdict_allows_the_next_span() -> None:
    device = session()
    plan = planner(spans_in_flight=1, run_ahead_tokens=3)
    run(plan, device, steps=99)
    device.apply(Verdict(0, 6, 5))
    assert plan.next_action(device) == DraftToken()


def test_the_rest_is_sent_when_nothing_can_be_drafted() -> None:
    ended = session()
    draft(ended, 1, EOS)
    assert planner(span_tokens=8).next_action(ended) == Send()
    full = session(limit=4)
    draft(full, 1)
    assert planner(span_tokens=8).next_action(full) == Send()
    ahead = session()
    draft(ahead, 1, 2)
    assert planner(span_tokens=8, run_ahead_tokens=2).next_action(ahead) == Send()


def test_the_planner_waits_when_nothing_can_be_sent_or_drafted() -> None:
    device = session()
    draft(device, 1, EOS)
    device.send()
    assert planner().next_action(device) == Wait()


@pytest.mark.parametrize("mode", [Mode.EDGE, Mode.GATED])
def test_skipped_tokens_alone_are_never_sent(mode: Mode) -> None:
    device = session()
    draft(device, *range(1, 20), fires=False)
    assert planner(mode).next_action(device) == DraftToken()


def test_one_fire_is_sent_at_once_with_a_span_of_one() -> None:
    device = session()
    draft(device, 1, 2, fires=False)
    draft(device, 3)
    assert planner(Mode.GATED, span_tokens=1).next_action(device) == Send()


def test_cloud_mode_hands_over_the_rest_once() -> None:
    device = session(limit=30)
    plan = planner(Mode.CLOUD)
    assert run(plan, device, steps=99) == [HandOver(27), Wait()]
    device.apply(Verdict(0, 3, 5))
    assert device.following
    assert plan.next_action(device) == Wait()


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED])
def test_while_the_cloud_writes_the_device_waits(mode: Mode) -> None:
    device = session()
    draft(device, 1)
    device.send(continuation_tokens=4)
    device.apply(Verdict(1, 3, 5))
    assert planner(mode).next_action(device) == Wait()
