"""Alarms ring in order and never early, with and without a timer of the kernel."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest

from link_emulator.alarm import Alarm
from tests.support.links.emulated import run


@pytest.mark.parametrize("precise", [True, False])
def test_alarms_ring_in_order_and_never_early(precise: bool) -> None:
    async def test() -> None:
        alarm, began_s = Alarm(precise=precise), time.monotonic()
        assert alarm.precise is precise
        rung: list[tuple[int, bool]] = []
        done = asyncio.Event()

        def ring(number: int, when_s: float) -> None:
            rung.append((number, time.monotonic() >= when_s))

        for number in (3, 1, 2, 0):
            when_s = began_s + number * 0.002
            alarm.at(when_s, partial(ring, number, when_s))
        alarm.at(began_s + 0.008, done.set)
        await done.wait()
        assert rung == [(number, True) for number in range(4)]
        alarm.at(began_s + 0.009, done.clear)
        alarm.close()

    run(test())
