"""The first text of a client asks about about as many tokens as a later one, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

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


@cache
def asked(level: float) -> tuple[int, int]:
    """Return the tokens asked about in six first texts, and in the same texts after six others."""
    random = np.random.default_rng(1)
    gate = gate_of(RISK, drawn(random, 2000, HELD_OUT))
    texts = [text_of(drawn(random, TOKENS, level), number) for number in range(12)]
    fresh, scenario = Client(strategy_named("gated", gate), Estimates()), scenario_of("declared", 20.0)
    experienced = fresh.copy()
    for text in texts[6:]:
        experienced.write(text, scenario)
    first, later = (
        sum(counts(client.copy().write(text, scenario))["asked"] for text in texts[:6])
        for client in (fresh, experienced)
    )
    return first, later


@pytest.mark.parametrize("level", [HELD_OUT, 0.3])
def test_a_first_text_asks_about_as_many_tokens_as_a_later_one(level: float) -> None:
    """The texts are like the held-out tokens, or six times as hard."""
    first, later = asked(level)
    assert 0 < later < 6 * TOKENS, "some tokens are skipped, and some are not"
    assert first == pytest.approx(later, rel=0.25)
