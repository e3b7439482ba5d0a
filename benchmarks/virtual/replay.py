"""Many traces one after the other, as one client would generate them, on a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.simulation.trace import Trace
from benchmarks.strategies.families import strategy_named
from edge_client.planner import Estimates

WARM_UP_TOKENS = 32


def replay(traces: Sequence[Trace], scenario: Scenario, strategy: str, warm_up: Trace) -> list[Simulation]:
    """Generate each in turn; what the client learns it keeps, as in a run.

    The beginning of `warm_up` comes first and is thrown away. Each generation has a seed of its own, the next of the
    scenario's, for what the link does. Raises what a generation failed with.
    """
    named, estimates = strategy_named(strategy), Estimates()
    simulate(cut(warm_up, min(WARM_UP_TOKENS, len(warm_up.token_ids))), scenario, named, estimates)
    simulations = [
        simulate(trace, replace(scenario, seed=seed), named, estimates)
        for seed, trace in enumerate(traces, start=scenario.seed + 1)
    ]
    for simulation in simulations:
        if simulation.error is not None:
            raise simulation.error
    return simulations


def cut(trace: Trace, tokens: int) -> Trace:
    """The trace of a shorter generation."""
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
