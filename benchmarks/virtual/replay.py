"""Several traces in turn on a virtual clock, as one client would generate them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.simulation.trace import Trace
from benchmarks.strategies.families import strategy_over
from benchmarks.strategies.gated import PACKAGED
from edge_client.planner import Estimates

WARM_UP_TOKENS = 32


def replay(
    traces: Sequence[Trace], scenario: Scenario, strategy: str, warm_up: Trace, gate: str = PACKAGED
) -> list[Simulation]:
    """Generate each trace in turn; as in a run, the client keeps its estimates, and what its gate has learned.

    The beginning of `warm_up` comes first and is discarded. Each generation has its own seed for the link, counted on
    from the scenario's. `gate` is the calibrated gate of `benchmarks.strategies.gated.gate_for`, which needs its values
    in the traces.

    Raises the error of a generation that failed, and as `strategy_over` does.
    """
    named, estimates = strategy_over(warm_up, strategy, gate), Estimates()
    simulate(cut(warm_up, min(WARM_UP_TOKENS, len(warm_up.token_ids))), scenario, named, estimates)
    simulations = [
        simulate(trace, replace(scenario, seed=seed), named, estimates)
        for seed, trace in enumerate(traces, start=scenario.seed + 1)
    ]
    for simulation in simulations:
        if simulation.error is not None:
            raise simulation.error
    return simulations


def deviations(simulation: Simulation, trace: Trace) -> int:
    """Return the number of tokens that differ from the cloud's text at their position."""
    return sum(mine != its for mine, its in zip(simulation.token_ids, trace.token_ids, strict=False))


def cut(trace: Trace, tokens: int) -> Trace:
    """Return the trace of a shorter generation."""
    if tokens == len(trace.token_ids):
        return trace
    entropies = trace.cross_entropies
    return replace(
        trace,
        max_new_tokens=tokens,
        token_ids=trace.token_ids[:tokens],
        ended=False,
        proposals=trace.proposals[:tokens],
        ranks=trace.ranks[:tokens],
        astray={position: rows for position, rows in trace.astray.items() if position < tokens},
        cross_entropies=entropies and {position: nats for position, nats in entropies.items() if position < tokens},
    )
