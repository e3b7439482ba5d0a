"""Many texts at once in virtual time, as one client would write them, by models that are asked in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.exploration.author import ExploringAuthor
from benchmarks.simulation import virtual_time
from benchmarks.simulation.simulate import Scenario, Simulation, Strategy, play
from common.planner import Estimates


def write_all(
    authors: Sequence[ExploringAuthor],
    scenario: Scenario,
    strategy: Strategy,
    *,
    estimates: Estimates | None = None,
    done: Callable[[int, Simulation], object] = lambda index, simulation: None,
) -> list[Simulation]:
    """Write all texts, in one virtual time; `done` is told of each, by its index, as it ends.

    Estimates, and what the strategy's gate learns, are shared by all, as those of one client are.
    """
    known = estimates or Estimates()

    async def write(index: int, author: ExploringAuthor) -> Simulation:
        simulation = await play(author, replace(scenario, seed=scenario.seed + index), strategy, known)
        done(index, simulation)
        return simulation

    async def write_them() -> list[Simulation]:
        return await asyncio.gather(*(write(index, author) for index, author in enumerate(authors)))

    return virtual_time.run(write_them())
