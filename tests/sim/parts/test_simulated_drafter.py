"""The device's model in virtual time keeps the contract of the `Drafter` port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import accumulate

import pytest

from benchmarks.simulation.costs import DraftCosts
from benchmarks.simulation.drafter import SimulatedDrafter
from benchmarks.simulation.script import PROMPT_TOKEN, Script
from benchmarks.simulation.virtual_time import run
from edge_client.ports import TEXT_ROW, Drafter
from tests.support.benchmarks.traces import trace_of

PROMPT = [PROMPT_TOKEN] * 4
TRACE = trace_of("+-+-++")


def drafter() -> Drafter:
    return SimulatedDrafter(Script(TRACE), DraftCosts(step_ms=10, branches=2))


def test_a_step_takes_its_time_and_proposes_the_next_token() -> None:
    async def scenario() -> tuple[list[tuple[int, int]], list[float]]:
        model, loop = drafter(), asyncio.get_running_loop()
        seen: list[tuple[int, int]] = []
        times: list[float] = []
        for fed in (PROMPT, [100], [101, 102]):
            proposal = await model.step(fed)
            seen.append((proposal.token_id, model.length))
            times.append(loop.time())
        return seen, times

    costs = DraftCosts(step_ms=10)
    seen, times = run(scenario())
    assert seen == [(100, 4), (201, 5), (203, 7)]
    assert times == pytest.approx(list(accumulate(costs.chunk_ms(tokens) / 1e3 for tokens in (4, 1, 2))))


def test_a_rewind_leaves_no_trace() -> None:
    async def scenario() -> int:
        model = drafter()
        await model.step([*PROMPT, 100, 201, 300])
        model.rewind(5)
        assert model.length == 5
        return (await model.step([101])).token_id

    assert run(scenario()) == 102


def test_a_branch_follows_its_own_tokens_and_becomes_the_text_when_adopted() -> None:
    async def scenario() -> None:
        model, loop = drafter(), asyncio.get_running_loop()
        assert model.branches == 2
        assert (await model.step([*PROMPT, 100])).token_id == 201
        model.fork(1, 5)
        began = loop.time()
        proposals = await model.step_rows({TEXT_ROW: 201, 1: 101})
        assert loop.time() - began == pytest.approx(0.0125), "two rows cost less than two steps"
        assert {row: proposal.token_id for row, proposal in proposals.items()} == {TEXT_ROW: 300, 1: 102}
        model.adopt(1)
        assert model.length == 6
        assert (await model.step([102])).token_id == 203

    run(scenario())


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (lambda model: model.rewind(6), ValueError),
        (lambda model: model.rewind(-1), ValueError),
        (lambda model: model.fork(0, 2), ValueError),
        (lambda model: model.fork(3, 2), ValueError),
        (lambda model: model.fork(1, 6), ValueError),
        (lambda model: model.adopt(1), ValueError),
        (lambda model: model.adopt(TEXT_ROW), ValueError),
    ],
)
def test_unknown_rows_are_refused(break_it: Callable[[Drafter], None], error: type[Exception]) -> None:
    async def scenario() -> None:
        model = drafter()
        await model.step([*PROMPT, 100])
        with pytest.raises(error):
            break_it(model)
        with pytest.raises(ValueError, match="were not forked"):
            await model.step_rows({2: 5})
        with pytest.raises(ValueError, match="no tokens"):
            await model.step([])
        assert model.length == 5

    run(scenario())


def test_steps_are_exclusive_cancellable_and_end_with_closing() -> None:
    async def scenario() -> None:
        model = drafter()
        await model.step(PROMPT)
        task = asyncio.create_task(model.step([100]))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another step"):
            await model.step([100])
        with pytest.raises(RuntimeError, match="another step"):
            model.rewind(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.length == 4
        assert (await model.step([100])).token_id == 201
        model.close()
        model.close()
        with pytest.raises(RuntimeError, match="closed"):
            await model.step([101])

    run(scenario())
