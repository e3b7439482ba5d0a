"""Concurrent lines: their outcomes arrive in order, and no finished one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chaperone_common.errors import OutputLost
from edge_client.apps.batch.lines import Line
from edge_client.apps.batch.run import Outcome, in_order


async def numbered(count: int) -> AsyncIterator[Line]:
    for number in range(count):
        yield Line(number, number, {})


class Work:
    """Lines whose end the test controls."""

    def __init__(self) -> None:
        self.gates: dict[int, asyncio.Event] = {}
        self.most = 0

    async def __call__(self, line: Line) -> Outcome:
        gate = self.gates[line.number] = asyncio.Event()
        self.most = max(self.most, sum(not gate.is_set() for gate in self.gates.values()))
        await gate.wait()
        return Outcome(line, {})


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_outcomes_come_in_order_and_no_more_than_allowed_run() -> None:
    async def scenario() -> None:
        work, delivered = Work(), list[int]()
        run = asyncio.create_task(
            in_order(numbered(9), work, lambda outcome: delivered.append(outcome.line.number), limit=3)
        )
        await settle()
        assert sorted(work.gates) == [0, 1, 2]
        work.gates[2].set()
        work.gates[1].set()
        await settle()
        assert delivered == []
        assert sorted(work.gates) == [0, 1, 2, 3, 4], "the slots of finished lines are used"
        work.gates[0].set()
        await settle()
        assert delivered == [0, 1, 2]
        while not run.done():
            for gate in work.gates.values():
                gate.set()
            await settle()
        assert delivered == list(range(9))
        assert work.most == 3

    asyncio.run(scenario())


def test_a_slow_line_does_not_let_results_pile_up() -> None:
    async def scenario() -> None:
        work = Work()
        run = asyncio.create_task(in_order(numbered(1000), work, lambda outcome: None, limit=2))
        for _ in range(100):
            for number, gate in work.gates.items():
                if number > 0:
                    gate.set()
            await settle()
        assert len(work.gates) == 8
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)

    asyncio.run(scenario())


def test_a_cancelled_run_delivers_finished_lines() -> None:
    async def scenario() -> None:
        work, delivered = Work(), list[int]()
        run = asyncio.create_task(
            in_order(numbered(9), work, lambda outcome: delivered.append(outcome.line.number), limit=3)
        )
        await settle()
        work.gates[1].set()
        await settle()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert delivered == [1]
        assert len(asyncio.all_tasks()) == 1, "no line keeps running"

    asyncio.run(scenario())


def test_an_output_error_ends_the_run() -> None:
    async def scenario() -> None:
        work = Work()

        def deliver(outcome: Outcome) -> None:
            raise OutputLost(f"line {outcome.line.number}")

        run = asyncio.create_task(in_order(numbered(9), work, deliver, limit=3))
        await settle()
        for gate in work.gates.values():
            gate.set()
        with pytest.raises(OutputLost, match="line 0"):
            await run
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
