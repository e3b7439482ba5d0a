"""`gated` with `on_deviation: retract` sends no more requests than `exact` over the same texts, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

import benchmarks
from benchmarks.simulation.strategy import Strategy, gated_strategy, strategy_for
from benchmarks.simulation.trace import Trace, load_traces
from benchmarks.strategies.gated import gate_for
from benchmarks.virtual.fresh import Client, counts, scenario_of
from benchmarks.virtual.replay import cut
from chaperone_common.types import Mode, OnDeviation
from edge_client.config import GateSettings
from edge_client.planner import Estimates

TUNING = Path(benchmarks.__path__[0]) / "traces" / "tuning-T0.jsonl.gz"
TOKENS = 64  # of each text, at most


@pytest.fixture(scope="module")
def texts() -> list[Trace]:
    """Return the beginnings of a few recorded texts, of both kinds."""
    return [cut(trace, min(TOKENS, len(trace.token_ids))) for trace in load_traces(TUNING).traces[::4]]


def written(texts: Sequence[Trace], strategy: Strategy, cloud: str) -> Counter[str]:
    """Write all texts with one client; return its counts over all of them."""
    client, scenario = Client(strategy, Estimates()), scenario_of(cloud, rtt_ms=100.0)
    total = Counter[str]()
    for trace in texts:
        simulation = client.write(trace, scenario)
        assert simulation.token_ids == trace.token_ids, "both modes promise the cloud's own text"
        total.update(counts(simulation))
    return total


@pytest.mark.parametrize("cloud", ["declared", "accelerator"])
def test_retraction_needs_no_more_requests_than_exact(texts: Sequence[Trace], cloud: str) -> None:
    """A single text may need more of them: the planner looks for speed, not for few requests."""
    settings = GateSettings(on_deviation=OnDeviation.RETRACT)
    retracting = written(texts, gated_strategy("retracting", settings, gate_for(texts[0])), cloud)
    exact = written(texts, strategy_for(Mode.EXACT), cloud)
    assert 0 < retracting["asked"] < retracting["drafted"], "some tokens are skipped, and some are not"
    assert 0 < retracting["requests"] <= exact["requests"]
