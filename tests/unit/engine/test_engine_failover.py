"""An engine whose cloud has several addresses, in virtual time; no gRPC, no files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.simulation import virtual_time
from chaperone_common.errors import ChaperoneError, CloudTimeout, CloudUnavailable, Overloaded, Unauthenticated
from chaperone_common.frames import Failure, Open, ServerFrame
from chaperone_common.session import Unverified
from chaperone_common.types import Mode, Origin
from edge_client.events import Event
from edge_client.gate import Always
from edge_client.link.connection import Route
from tests.support.device.engine import OPENED, TARGET, EngineHarness, cloud_text, failed, finished, origins, written
from tests.support.fakes.link import FakeLink, cloud_of


class Server:
    """The streams of one address: those given, and then more like `later`."""

    def __init__(self, *links: FakeLink, lasts: int | None = None) -> None:
        self._links: Iterator[FakeLink] = iter(links)
        self._lasts = lasts
        self.opened: list[FakeLink] = []
        self.losses: list[ChaperoneError] = []

    @property
    def route(self) -> Route:
        return Route(self._link, self.losses.append)

    @property
    def times(self) -> list[float]:
        return [link.opened_at for link in self.opened if link.opened_at is not None]

    def _link(self) -> FakeLink:
        self.opened.append(next(self._links, None) or FakeLink(cloud_of(TARGET), lasts=self._lasts))
        return self.opened[-1]


def refusing(*frames: ServerFrame) -> FakeLink:
    link = FakeLink()
    link.deliver(*frames)
    return link


def gone() -> Server:
    return Server(lasts=0)


def going_on(*servers: Server, **settings: Any) -> tuple[list[Event], float]:
    async def play() -> tuple[list[Event], float]:
        clock = virtual_time.LoopClock()
        routes = [server.route for server in servers]
        harness = EngineHarness(routes=routes, **{"reconnect_timeout_ms": 30_000.0, "clock": clock, **settings})
        return [event async for event in harness.engine.stream()], clock.now()

    return virtual_time.run(play())


@pytest.mark.parametrize("lasts", [0, 1, 2, 3, 7])
@pytest.mark.parametrize(("mode", "takeover"), [(Mode.EXACT, 0), (Mode.EXACT, 5), (Mode.CLOUD, 0)])
def test_a_text_continues_at_the_next_address_at_once(lasts: int, mode: Mode, takeover: int) -> None:
    first, second = Server(lasts=lasts), Server()
    events, seconds = going_on(first, second, mode=mode, takeover_tokens=takeover)
    assert written(events) == cloud_text(40)
    assert seconds == 0.0, "no pause"
    assert (len(first.opened), len(second.opened)) == (1, 1)
    assert [type(error) for error in first.losses] == [CloudUnavailable]
    assert second.losses == []
    opened, reopened = first.opened[0].sent[0], second.opened[0].sent[0]
    assert isinstance(opened, Open)
    assert isinstance(reopened, Open)
    assert (reopened.session_id, reopened.prompt_token_ids) == (opened.session_id, opened.prompt_token_ids)


def test_all_addresses_are_tried_before_any_pause_and_none_twice() -> None:
    servers = [Server(lasts=3), gone(), gone(), Server()]
    events, seconds = going_on(*servers)
    assert written(events) == cloud_text(40)
    assert seconds == 0.0
    assert [len(server.opened) for server in servers] == [1, 1, 1, 1]


def test_after_a_round_the_addresses_are_tried_with_growing_pauses() -> None:
    first, second = Server(FakeLink(cloud_of(TARGET), lasts=3), *[FakeLink(lasts=0) for _ in range(4)]), gone()
    events, seconds = going_on(first, second)
    assert written(events) == cloud_text(40)
    assert len(first.opened) == 6
    assert 3 <= len(second.opened) <= 12
    assert second.times[0] == 0.0
    pauses = [after - before for before, after in pairwise(second.times)]
    assert all(0 < pause < 0.1 * 2.0**number for number, pause in enumerate(pauses))
    assert seconds < 5.0


def test_a_later_loss_goes_on_with_the_address_after_the_current_one() -> None:
    servers = [Server(lasts=3), Server(lasts=3), Server(lasts=3)]
    events, seconds = going_on(*servers)
    assert written(events) == cloud_text(40)
    assert seconds == 0.0
    counts = [len(server.opened) for server in servers]
    assert max(counts) - min(counts) <= 1, "in a circle"


@pytest.mark.parametrize(
    "failure",
    [
        Failure("RESOURCE_EXHAUSTED", "full", 9_000),
        Failure("RESOURCE_EXHAUSTED", "quota: streams per minute", 20_000),
        Failure("UNAVAILABLE", "the cloud is shutting down; open the stream again, on another server", 100),
        Failure("DEADLINE_EXCEEDED", "it waited too long"),
    ],
)
def test_a_refusal_for_now_leads_to_the_next_address_at_once(failure: Failure) -> None:
    first, second = Server(refusing(OPENED, failure)), Server()
    events, seconds = going_on(first, second)
    assert written(events) == cloud_text(40)
    assert seconds == 0.0
    assert first.losses[0].retry_after_ms == failure.retry_after_ms


def test_a_server_that_asks_for_time_is_not_asked_before() -> None:
    busy = Server(refusing(Failure("RESOURCE_EXHAUSTED", "full", 9_000)))
    other = gone()
    events, _ = going_on(busy, other)
    assert written(events) == cloud_text(40)
    assert busy.times[1] >= 9.0
    assert len(other.opened) > 3, "the other one is asked during that time"


@pytest.mark.parametrize(
    "failure",
    [
        Failure("UNAUTHENTICATED", "authorization: the token was revoked"),
        Failure("PERMISSION_DENIED", "tenant: it may not"),
        Failure("INVALID_ARGUMENT", "temperature: -1"),
        Failure("FAILED_PRECONDITION", "model_digest: another"),
        Failure("CANCELLED", "generation: it was cancelled on this device"),
        Failure("ABORTED", "superseded"),
    ],
)
def test_a_refusal_that_all_addresses_would_repeat_ends_the_text(failure: Failure) -> None:
    first, second = Server(refusing(failure)), Server()
    events, _ = going_on(first, second)
    assert failed(events).error.message == failure.message
    assert second.opened == []
    assert first.losses == []


def test_a_refusal_of_the_next_address_ends_the_search() -> None:
    servers = [Server(lasts=3), Server(refusing(Failure("UNAUTHENTICATED", "no token"))), Server()]
    events, _ = going_on(*servers)
    assert isinstance(failed(events).error, Unauthenticated)
    assert servers[2].opened == []


def test_a_silent_address_takes_only_its_share_of_the_time() -> None:
    first, silent, third = Server(lasts=3), Server(FakeLink()), Server()
    events, seconds = going_on(first, silent, third)
    assert written(events) == cloud_text(40)
    assert seconds == pytest.approx(15.0), "half of the time, since two addresses are left"
    assert isinstance(silent.losses[0], CloudTimeout)
    assert silent.opened[0].cancelled


def test_an_answer_to_an_attempt_has_its_time_after_the_pause() -> None:
    """The server asks for most of the time. What is left then is for its answer."""
    slow = FakeLink()
    busy = Server(refusing(Failure("RESOURCE_EXHAUSTED", "full", 27_000)), slow)
    also = Server(*[refusing(Failure("RESOURCE_EXHAUSTED", "full", 29_990)) for _ in range(9)])

    async def play() -> list[Event]:
        clock = virtual_time.LoopClock()
        harness = EngineHarness(routes=[busy.route, also.route], clock=clock, reconnect_timeout_ms=30_000.0)
        serve = cloud_of(TARGET)

        def answer_late() -> None:
            opened = slow.sent[0]
            slow.deliver(*serve(opened))
            slow._cloud = serve
            for frame in slow.sent[1:]:
                slow.deliver(*serve(frame))

        asyncio.get_running_loop().call_later(28.5, answer_late)
        return [event async for event in harness.engine.stream()]

    assert written(virtual_time.run(play())) == cloud_text(40)


def all_lost(count: int, **settings: Any) -> tuple[list[Event], float]:
    return going_on(
        *[Server(FakeLink(cloud_of(TARGET), lasts=3), lasts=0), *[gone() for _ in range(count - 1)]], **settings
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_with_all_addresses_down_exact_fails_as_with_one(count: int) -> None:
    events, seconds = all_lost(count)
    error = failed(events).error
    assert isinstance(error, CloudUnavailable)
    assert (
        "attempts to reconnect within 30000 ms (cloud.reconnect_timeout_ms) failed, the last one with" in error.message
    )
    assert 25.0 < seconds <= 30.0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_with_all_addresses_down_gated_continues_alone(count: int) -> None:
    gated = {"mode": Mode.GATED, "gate": Always(), "continue_without_cloud": True, "span": 1, "run_ahead": 8}
    events, seconds = all_lost(count, **gated)
    assert len(written(events)) == 40
    assert Origin.UNVERIFIED in origins(events)
    assert len([event for event in events if isinstance(event, Unverified)]) == 1
    assert finished(events).stats.reconnects == 0
    assert seconds <= 30.0


def test_nothing_is_tried_without_time_for_it() -> None:
    second = Server()
    events, _ = going_on(Server(lasts=3), second, reconnect_timeout_ms=0.0)
    assert isinstance(failed(events).error, CloudUnavailable)
    assert second.opened == []


def test_overload_of_all_addresses_is_reported_as_such() -> None:
    full = Failure("RESOURCE_EXHAUSTED", "full", 60_000)
    servers: Sequence[Server] = [Server(refusing(full)), Server(refusing(full))]
    events, seconds = going_on(*servers)
    assert isinstance(failed(events).error, Overloaded)
    assert [len(server.opened) for server in servers] == [1, 1]
    assert seconds == 0.0
