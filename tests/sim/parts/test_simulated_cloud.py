"""The cloud's model in virtual time: the costs and the order of forwards."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.simulation.cloud import SimulatedQueue
from benchmarks.simulation.costs import CloudCosts, Curve
from benchmarks.simulation.script import PROMPT_TOKEN, Script
from benchmarks.simulation.virtual_time import run
from chaperone_common.errors import CloudTimeout
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import ForwardQueue
from tests.support.benchmarks.traces import trace_of

COSTS = CloudCosts(read_ms=Curve.of((1, 50), (2, 60)), prefill_ms=10)
TEXT = (PROMPT_TOKEN,) * 4 + (100, 101, 102)


def worker(costs: CloudCosts = COSTS) -> ForwardQueue:
    return SimulatedQueue({name: Script(trace_of("++++++")) for name in ("a", "b")}, costs)


def test_only_uncached_tokens_cost_time() -> None:
    async def scenario() -> list[int]:
        reader = worker()
        readings = [(TEXT[:3], 0), (TEXT[:5], 1), (TEXT[:5], 1), (TEXT[:5], 2), (TEXT[:6], 1)]
        return [
            (await reader.forward("a", TokenTree(text), count, SamplingParams())).compute_us for text, count in readings
        ]

    assert run(scenario()) == [30_000, 60_000, 50_000, 60_000, 50_000]


def test_a_session_that_was_freed_is_read_again() -> None:
    async def scenario() -> int:
        reader = worker()
        await reader.forward("a", TokenTree(TEXT[:3]), 0, SamplingParams())
        reader.free("a")
        reader.free("never seen")
        return (await reader.forward("a", TokenTree(TEXT[:3]), 0, SamplingParams())).compute_us

    assert run(scenario()) == 30_000


def test_forwards_run_one_after_the_other() -> None:
    async def scenario() -> list[tuple[int, int, list[int]]]:
        reader = worker()
        results = await asyncio.gather(
            *(reader.forward(name, TokenTree(TEXT), 1, SamplingParams()) for name in ("a", "b"))
        )
        assert asyncio.get_running_loop().time() == pytest.approx(0.22)
        return [(row.queue_us, row.compute_us, [choice.token_id for choice in row.choices]) for row in results]

    assert run(scenario()) == [(0, 110_000, [103]), (110_000, 110_000, [103])]


def test_a_deadline_in_the_queue_fails_when_it_passes() -> None:
    async def scenario() -> float:
        reader = worker()
        first = asyncio.create_task(reader.forward("a", TokenTree(TEXT), 1, SamplingParams()))
        await asyncio.sleep(0)
        with pytest.raises(CloudTimeout, match="waited 20 ms"):
            await reader.forward("b", TokenTree(TEXT), 1, SamplingParams(), deadline_ms=20)
        when = asyncio.get_running_loop().time()
        await first
        return when

    assert run(scenario()) == pytest.approx(0.02)


def test_others_take_their_share_of_the_time() -> None:
    costs = CloudCosts(read_ms=Curve.of((1, 50)), load=0.5, other_ms=100, seed=3)

    async def waited_ms(load: CloudCosts) -> float:
        reader, total = worker(load), 0.0
        for _ in range(2000):
            await asyncio.sleep(1)
            total += (await reader.forward("a", TokenTree(TEXT), 1, SamplingParams())).queue_us / 1e3
        return total / 2000

    assert run(waited_ms(COSTS)) == 0
    # Pollaczek and Khinchine: load * service / (2 * (1 - load)) for a queue of equal services. The mean of 2000 visits
    # is within a tenth of it.
    assert run(waited_ms(costs)) == pytest.approx(50, rel=0.1)


def test_a_queue_that_others_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="load: 1"):
        worker(CloudCosts(load=1.0))
