"""Best possible results of a run's strategies, by the run's own costs and recorded traces."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.kit.statistics import rounded
from benchmarks.measured.costs import NO_COSTS, RunCosts
from benchmarks.measured.summary import ALL, BASELINE, Row, ratios, speeds
from benchmarks.simulation.bounds import Costs, clairvoyant_ms, physical_floor_ms
from benchmarks.simulation.trace import Trace

_BOUNDS: dict[str, Callable[[Sequence[bool], Costs], float]] = {
    "clairvoyant": clairvoyant_ms,
    "physical_floor": lambda agrees, costs: physical_floor_ms(len(agrees), costs),
}


def summarise_bounds(rows: Sequence[Row], traces: Sequence[Trace], rtt_ms: float) -> dict[str, Any]:
    """Return, by category, median speeds of the bounds, their ratios to `cloud`, and each strategy's share of them.

    A trace counts if the run's `cloud` wrote its text, up to the length of the run.
    """
    measured = RunCosts.of(rows)
    if measured is None:
        return {"not_done": NO_COSTS}
    costs = measured.bounds(rtt_ms)
    agrees = _agreements(rows, traces)
    categories = dict.fromkeys([*(row["category"] for row in rows if row["id"] in agrees), ALL])
    return {
        "costs": measured.to_json() | {"rtt_ms": rtt_ms},
        "prompts": len(agrees),
        "categories": {category: _of_category(rows, category, agrees, costs) for category in categories},
    }


def _agreements(rows: Sequence[Row], traces: Sequence[Trace]) -> dict[str, tuple[bool, ...]]:
    """Return, by prompt, where the device's choice is the cloud's, for the tokens that the run wrote."""
    known = {trace.id: trace for trace in traces}
    found = {}
    for row in rows:
        trace = known.get(row["id"])
        written = tuple(row["token_ids"])
        if trace is not None and row["strategy"] == BASELINE and written == trace.token_ids[: len(written)]:
            found[row["id"]] = trace.matches[: len(written)]
    return {prompt: matches for prompt, matches in found.items() if matches}


def _of_category(
    rows: Sequence[Row], category: str, agrees: dict[str, tuple[bool, ...]], costs: Costs
) -> dict[str, Any]:
    mine = [row for row in rows if row["id"] in agrees and category in (row["category"], ALL)]
    base = speeds(mine, BASELINE)
    result: dict[str, Any] = {}
    for name, bound in _BOUNDS.items():
        best = {prompt: 1e3 * len(agrees[prompt]) / bound(agrees[prompt], costs) for prompt in base}
        result[name] = {
            "tokens_per_s": rounded(statistics.median(best.values())) if best else None,
            "over_cloud": rounded(statistics.median(ratios(best, base))) if best else None,
            "share_reached": {
                strategy: rounded(statistics.median(ratios(speeds(mine, strategy), best)))
                for strategy in dict.fromkeys(row["strategy"] for row in mine)
                if ratios(speeds(mine, strategy), best)
            },
        }
    return result
