"""The virtual loop: plain asyncio without real waits."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from benchmarks.simulation.virtual_time import Deadlock, LoopClock, RealWorld, run


def test_an_hour_of_sleep_is_an_hour_of_the_loops_clock() -> None:
    async def sleep() -> tuple[float, float]:
        clock = LoopClock()
        began = clock.now()
        await asyncio.sleep(3600)
        return began, clock.now()

    assert run(sleep()) == (0.0, 3600.0)


def test_timers_fire_in_the_order_of_their_times_and_at_them() -> None:
    async def scenario() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        fired: list[tuple[str, float]] = []

        async def note(name: str, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            fired.append((name, loop.time()))

        await asyncio.gather(note("third", 0.5), note("first", 0.0), note("second", 0.25))
        return fired

    assert run(scenario()) == [("first", 0.0), ("second", 0.25), ("third", 0.5)]


def test_ready_callbacks_run_before_time_passes() -> None:
    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        times: list[float] = []
        alarm = loop.call_later(1.0, times.append, -1.0)
        for _ in range(1000):
            await asyncio.sleep(0)
            times.append(loop.time())
        alarm.cancel()
        return times

    assert run(scenario()) == [0.0] * 1000


def test_a_timeout_ends_at_its_time() -> None:
    async def scenario() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(scenario()) == 2.5


def test_tasks_that_wait_for_each_other_are_named() -> None:
    async def wait_for_ever(event: asyncio.Event) -> None:
        await event.wait()

    async def scenario() -> None:
        await asyncio.sleep(1.5)
        await asyncio.create_task(wait_for_ever(asyncio.Event()), name="the stuck one")

    with pytest.raises(Deadlock, match=r"no timer is set at 1\.500000 s.*the stuck one .*wait_for_ever at .*\.py:\d+"):
        run(scenario())


def test_a_cancelled_timer_does_not_hide_a_deadlock() -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().call_later(5, print).cancel()
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="at 0.000000 s"):
        run(scenario())


def test_errors_propagate_and_running_tasks_are_cancelled() -> None:
    ended: list[str] = []

    async def left_running() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append("left running")

    async def scenario() -> None:
        task = asyncio.create_task(left_running())
        await asyncio.sleep(1)
        assert not task.done()
        raise LookupError("as the test says")

    with pytest.raises(LookupError, match="as the test says"):
        run(scenario())
    assert ended == ["left running"]


def test_sockets_and_threads_are_refused() -> None:
    async def read() -> None:
        left, right = socket.socketpair()
        with left, right:
            asyncio.get_running_loop().add_reader(left, print)

    async def compute() -> None:
        await asyncio.to_thread(threading.get_ident)

    for scenario in (read(), compute()):
        with pytest.raises(RealWorld):
            run(scenario)
