"""A device's end alone, with short functions for the actions of a draft model and a gate."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from chaperone_common.errors import CloudUnavailable
from chaperone_common.frames import Failure, Open, Opened
from chaperone_common.session import Committed, DeviceSession, SessionEvent
from chaperone_common.types import OnDeviation, Origin, Proposal, SamplingParams, SessionId, Signal

EOS = 0
PROMPT = (7, 8, 9)
START = len(PROMPT)
VOCABULARY = 50
RUNNER_UP = 99
OPEN = Open(SessionId("s"), "", SamplingParams(), 20, (EOS,), PROMPT)


def session(
    *, limit: int = 23, committed: tuple[int, ...] = (), on_deviation: OnDeviation = OnDeviation.KEEP
) -> DeviceSession:
    opening = Open(SessionId("s"), "", SamplingParams(), 20, (EOS,), PROMPT, committed)
    device = DeviceSession(opening, limit=limit, on_deviation=on_deviation, vocabulary_size=VOCABULARY)
    assert device.apply(Opened(prefilled=True, context_tokens=100)) == []
    return device


def fire(device: DeviceSession, *token_ids: int, risk: float = 0.5) -> list[SessionEvent]:
    return _draft(device, token_ids, Signal(1.0, 0.5, 0.1, 1.0, risk), fires=True)


def skip(device: DeviceSession, *token_ids: int) -> list[SessionEvent]:
    return _draft(device, token_ids, Signal(0.0, 1.0, 1.0, 9.0, 0.0), fires=False)


def unasked(device: DeviceSession, *token_ids: int) -> list[SessionEvent]:
    return _draft(device, token_ids, Signal(1.0, 0.5, 0.1, 1.0, 0.5), fires=False, unasked=True)


def _draft(
    device: DeviceSession, token_ids: Iterable[int], signal: Signal, *, fires: bool, unasked: bool = False
) -> list[SessionEvent]:
    proposals = [Proposal(token_id, signal, RUNNER_UP) for token_id in token_ids]
    return [event for proposal in proposals for event in device.draft(proposal, fires=fires, unasked=unasked)]


def with_two_questions() -> DeviceSession:
    """Return a device with the fires 1 and 4 on their way, in a span each; 2 and 3 were skipped."""
    device = session()
    fire(device, 1)
    device.send()
    skip(device, 2, 3)
    fire(device, 4)
    device.send()
    return device


def lose(device: DeviceSession) -> None:
    with pytest.raises(CloudUnavailable):
        device.apply(Failure("UNAVAILABLE", "gone"))


def committed(events: Iterable[SessionEvent]) -> list[tuple[int, int, Origin]]:
    return [(event.position, event.token_id, event.origin) for event in events if isinstance(event, Committed)]


def snapshot(device: DeviceSession) -> tuple[object, ...]:
    lengths = (device.final_length, device.sent_length, device.read_length)
    return (list(device.text), lengths, device.revision, repr(device.tally))
