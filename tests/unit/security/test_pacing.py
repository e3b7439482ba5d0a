"""The pace of refusals: at once for a few, then one by one."""

from __future__ import annotations

import asyncio

import pytest

from cloud_supervisor.security.pacing import BURST, PER_SECOND, RefusalPace
from tests.support.fakes.clock import ManualClock
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_a_burst_is_refused_at_once_and_the_rest_one_by_one(clock: ManualClock) -> None:
    pace = RefusalPace(5.0, clock)
    assert [pace.delay_s("a") for _ in range(BURST)] == [0.0] * BURST
    assert [pace.delay_s("a") for _ in range(3)] == pytest.approx([1 / PER_SECOND, 2 / PER_SECOND, 3 / PER_SECOND])


def test_no_refusal_is_held_longer_than_the_limit(clock: ManualClock) -> None:
    pace = RefusalPace(5.0, clock)
    delays = [pace.delay_s("a") for _ in range(1000)]
    assert delays == sorted(delays)
    assert delays[-1] == 5.0
    clock.seconds += 5.0 + BURST / PER_SECOND + 1 / PER_SECOND
    assert pace.delay_s("a") == 0.0, "a client that has waited begins again"


def test_a_client_does_not_wait_for_another(clock: ManualClock) -> None:
    pace = RefusalPace(5.0, clock)
    for _ in range(1000):
        pace.delay_s("a")
    assert pace.delay_s("b") == 0.0


def test_a_slow_client_never_waits(clock: ManualClock) -> None:
    pace = RefusalPace(5.0, clock)
    for _ in range(1000):
        assert pace.delay_s("a") == 0.0
        clock.seconds += 1 / PER_SECOND


def test_a_limit_of_zero_holds_nothing(clock: ManualClock) -> None:
    pace = RefusalPace(0.0, clock)
    assert {pace.delay_s("a") for _ in range(1000)} == {0.0}


def test_many_clients_do_not_fill_the_memory(clock: ManualClock) -> None:
    """The client that was refused last is the last to be forgotten."""
    pace = RefusalPace(5.0, clock)
    for _ in range(100):
        pace.delay_s("a")
    for number in range(4095):
        pace.delay_s(f"stranger {number}")
    assert pace.delay_s("a") == 5.0
    for number in range(4096):
        pace.delay_s(f"another {number}")
    assert pace.delay_s("a") == 0.0


def test_few_enough_are_held_at_once(clock: ManualClock) -> None:
    async def run() -> None:
        pace = RefusalPace(3600.0, clock)
        for _ in range(BURST):
            await pace.hold("a")
        held = [asyncio.create_task(pace.hold("a")) for _ in range(1024)]
        await asyncio.sleep(0)
        await pace.hold("a")
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        assert all(task.cancelled() for task in held)
        another = asyncio.create_task(pace.hold("a"))
        await asyncio.sleep(0)
        assert not another.done(), "places of those that left are free"
        another.cancel()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
