"""A cloud that does not let the device in is no lost cloud: nothing is tried again, and nothing goes on without it."""

from __future__ import annotations

import pytest

from benchmarks.simulation import virtual_time
from chaperone_common.errors import ChaperoneError, PermissionDenied, Unauthenticated
from chaperone_common.frames import Failure
from chaperone_common.session import Unverified
from chaperone_common.types import Mode
from edge_client.events import Event
from edge_client.link.connection import POSSIBLE_LOSSES
from tests.support.device.engine import OPENED, TARGET, EngineHarness, failed, written
from tests.support.fakes.link import FakeLink, cloud_of

REFUSALS = [("UNAUTHENTICATED", Unauthenticated), ("PERMISSION_DENIED", PermissionDenied)]


def refused(*links: FakeLink, mode: Mode) -> tuple[list[Event], ChaperoneError]:
    async def play() -> list[Event]:
        harness = EngineHarness(
            *links,
            mode=mode,
            clock=virtual_time.LoopClock(),
            reconnect_timeout_ms=30_000.0,
            continue_without_cloud=mode.drafts,
        )
        return [event async for event in harness.engine.stream()]

    events = virtual_time.run(play())
    return events, failed(events).error


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED, Mode.CLOUD])
@pytest.mark.parametrize(("status", "kind"), REFUSALS)
def test_a_refusal_ends_the_generation_in_every_mode(status: str, kind: type[ChaperoneError], mode: Mode) -> None:
    first, second = FakeLink(), FakeLink(cloud_of(TARGET))
    first.deliver(OPENED, Failure(status, "authorization: the token was revoked"))
    events, error = refused(first, second, mode=mode)
    assert (type(error), error.message) == (kind, "authorization: the token was revoked")
    assert not second.opened.is_set()
    assert not [event for event in events if isinstance(event, Unverified)]


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED, Mode.CLOUD])
def test_a_refusal_after_a_loss_ends_the_search(mode: Mode) -> None:
    first, second, third = FakeLink(cloud_of(TARGET), lasts=3), FakeLink(), FakeLink(cloud_of(TARGET))
    second.deliver(Failure("UNAUTHENTICATED", "authorization: the token has expired"))
    events, error = refused(first, second, third, mode=mode)
    assert (type(error), error.message) == (Unauthenticated, "authorization: the token has expired")
    assert not third.opened.is_set()
    assert written(events), "what was final stays final"


def test_no_refusal_is_a_loss() -> None:
    assert not any(issubclass(kind, POSSIBLE_LOSSES) for _, kind in REFUSALS)
