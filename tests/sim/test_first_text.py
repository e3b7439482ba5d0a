"""The first text of a client asks about nearly as many tokens as a later one, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.simulation.trace import Trace
from benchmarks.strategies.families import strategy_named
from benchmarks.virtual.fresh import Client, counts, scenario_of
from edge_client.planner import Estimates
from tests.support.benchmarks.gate import gate_of
from tests.support.benchmarks.traces import SURE, measured_trace, trace_of

TOKENS = 96
RISK = "margin"  # the feature that is the risk of these texts
HELD_OUT = 0.05  # mean risk of the held-out tokens


def drawn(random: np.random.Generator, tokens: int, level: float) -> list[tuple[float, bool]]:
    """Return risks whose mean is `level`, each with True if the cloud overrides its token."""
    risks = np.minimum(random.gamma(0.25, level / 0.25, tokens), 0.95)
    overridden = random.random(tokens) < risks
    return list(zip(risks.tolist(), overridden.tolist(), strict=True))


def text_of(tokens: Sequence[tuple[float, bool]], number: int) -> Trace:
    """Return a trace of these risks and overrides."""
    trace = trace_of("".join("-" if overridden else "+" for _, overridden in tokens))
    proposals = [
        replace(proposal, signal=replace(SURE, margin=risk))
        for proposal, (risk, _) in zip(trace.proposals, tokens, strict=True)
    ]
    return measured_trace(replace(trace, id=f"text/{number}", proposals=tuple(proposals)))


def test_a_first_text_asks_about_as_many_tokens_as_a_later_one() -> None:
    """The texts are six times as hard as the held-out tokens, and few, so chance may be a third."""
    scenario = scenario_of("declared", 20.0)
    first, later = Counter[str](), Counter[str]()
    for seed in range(6):
        random = np.random.default_rng(seed)
        gate = gate_of(RISK, drawn(random, 2000, HELD_OUT))
        *earlier, last = [text_of(drawn(random, TOKENS, 6 * HELD_OUT), number) for number in range(7)]
        client = Client(strategy_named("gated", gate), Estimates())
        first.update(counts(client.copy().write(last, scenario)))
        for text in earlier:
            client.write(text, scenario)
        later.update(counts(client.write(last, scenario)))
    assert 0 < later["asked"] < later["drafted"], "some tokens are skipped, and some are not"
    assert first["asked"] / first["drafted"] == pytest.approx(later["asked"] / later["drafted"], rel=1 / 3)
