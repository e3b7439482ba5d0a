"""Several texts at once in virtual time, as one client would write them, with models that answer in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.quality.exploration.explored_models import ExploredModels
from benchmarks.simulation import virtual_time
from benchmarks.simulation.scenario import Scenario, Simulation, play
from benchmarks.simulation.strategy import Strategy
from edge_client.planner import Estimates
from edge_client.ports import RiskModel


def write_all(
    all_models: Sequence[ExploredModels],
    scenario: Scenario,
    strategy: Strategy,
    *,
    estimates: Estimates | None = None,
    risk_model: Callable[[int], RiskModel] | None = None,
    apart_s: float = 0.0,
) -> list[Simulation]:
    """Write all texts in one virtual time; each begins `apart_s` after the one before.

    All share the estimates and the learning of the strategy's gate, as the generations of one client do. `risk_model`
    makes the risk model of one text from the length of its prompt.
    """
    known = estimates or Estimates()

    async def write(index: int, models: ExploredModels) -> Simulation:
        await asyncio.sleep(index * apart_s)
        return await play(models, replace(scenario, seed=scenario.seed + index), strategy, known, risk_model)

    async def write_them() -> list[Simulation]:
        return await asyncio.gather(*(write(index, models) for index, models in enumerate(all_models)))

    return virtual_time.run(write_them())
