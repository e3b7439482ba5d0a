"""Virtual time compared with measured time: `python -m benchmarks validate`.

Every generation of runs of `python -m benchmarks run` is simulated again: with its recorded trace, cut where the run
cut it, its strategy, the run's link, and the strategy's own costs in that run. These are means of its client's
measurements of drafting, verifying and streaming. (The same forward takes longer while the other model computes, since
both share the machine's memory, and strategies differ in how often this happens.) As in the run, strategies keep their
estimates from prompt to prompt.

A setting is a link, a kind of prompts and a strategy. The simulator is as good as its medians of tokens per second are
near the measured ones. A prompt counts if the run wrote its recorded text. So for `gated` it counts if the run kept no
deviation. The simulated client writes the other prompts, too, since its estimates and its gate learn from them. If it
keeps a deviation, the trace continues as after the cloud's token.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.kit.provenance import provenance
from benchmarks.measured.costs import NO_COSTS, RunCosts
from benchmarks.measured.plan import FOREIGN
from benchmarks.measured.summary import BASELINE, Row
from benchmarks.simulation.scenario import Scenario, simulate
from benchmarks.simulation.trace import Trace, load_traces
from benchmarks.strategies.families import strategy_over
from benchmarks.strategies.gated import PACKAGED, add_gate_option
from benchmarks.strategies.other_pairs import has_traces
from benchmarks.virtual.replay import cut
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode
from edge_client.planner import Estimates
from link_emulator.profile import Profile

WITHIN = 0.10  # relative error of the speed that counts as a match


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="results of `python -m benchmarks run`")
    parser.add_argument("--traces", type=Path, nargs="+", required=True, help="of the same prompts and temperatures")
    add_gate_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    measured = provenance()
    traces = [trace for path in args.traces for trace in load_traces(path).traces]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in args.runs]
    settings = [row for result in results for row in compare(result, _of_the_same(result, traces), args.gate)]
    print(_table(settings))
    return {
        "benchmark": "validate",
        **measured,
        "settings": settings,
        "summary": {
            "settings": len(settings),
            "within_10_percent": sum(row["within_10_percent"] for row in settings),
            "largest_error": max((abs(row["error"]) for row in settings), default=None),
        },
    }


def _of_the_same(result: dict[str, Any], traces: Sequence[Trace]) -> dict[str, Trace]:
    """Return the traces of a run's temperature, by prompt."""
    temperature = result["settings"]["temperature"]
    return {trace.id: trace for trace in traces if trace.sampling.temperature == temperature}


def compare(result: dict[str, Any], traces: dict[str, Trace], gate: str = PACKAGED) -> Iterator[dict[str, Any]]:
    """Yield a row for each setting of a run; raise ConfigError if the run has no costs.

    `gate` is the calibrated gate of `gated`; see `benchmarks.strategies.gated.gate_for`.
    """
    profile = Profile.model_validate(result["settings"]["profile"])
    rows: list[Row] = [
        row
        for row in result["generations"]
        if not row["error"] and row["strategy"] not in FOREIGN and has_traces(row["strategy"])
    ]
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        mine = [row for row in rows if row["strategy"] == strategy and row["id"] in traces]
        simulated = _speeds(mine, traces, _met(strategy, rows).scenario(profile), gate)
        recorded = [pair for pair in zip(mine, simulated, strict=True) if _recorded(pair[0], traces)]
        for category in dict.fromkeys(row["category"] for row, _ in recorded):
            pairs = [(row, speed) for row, speed in recorded if row["category"] == category]
            measured = statistics.median(row["decode_tokens_per_s"] for row, _ in pairs)
            virtual = statistics.median(speed for _, speed in pairs)
            yield {
                "link": profile.description,
                "temperature": result["settings"]["temperature"],
                "category": category,
                "strategy": strategy,
                "prompts": len(pairs),
                "measured_tokens_per_s": round(measured, 3),
                "simulated_tokens_per_s": round(virtual, 3),
                "error": round(virtual / measured - 1, 4),
                "within_10_percent": abs(virtual / measured - 1) <= WITHIN,
            }


def _met(strategy: str, rows: Sequence[Row]) -> RunCosts:
    """Return the costs of one strategy, and those of the whole run for values that it did not measure."""
    whole = RunCosts.of(rows, statistics.fmean)
    if whole is None:
        raise ConfigError(f"runs: {NO_COSTS}")
    of_it = [row for row in rows if row["strategy"] == strategy]
    if strategy == Mode.EDGE:  # it drafts while no cloud verifies
        return replace(whole, draft_ms=statistics.fmean(row["costs"]["draft_ms"] for row in of_it))
    met = RunCosts.of([*of_it, *(row for row in rows if row["strategy"] == BASELINE)], statistics.fmean)
    return whole if met is None else replace(met, rows=whole.rows)


def _speeds(rows: Sequence[Row], traces: dict[str, Trace], scenario: Scenario, gate: str) -> list[float]:
    """Return the simulated speeds of one strategy's generations, as one client would make them."""
    if not rows:
        return []
    estimates, strategy = Estimates(), strategy_over(traces[rows[0]["id"]], rows[0]["strategy"], gate)
    whole = [traces[row["id"]] for row in rows]
    mine = [
        cut(trace, min(len(trace.token_ids), len(row["token_ids"]))) for trace, row in zip(whole, rows, strict=True)
    ]
    return [simulate(trace, scenario, strategy, estimates).decode_tokens_per_s for trace in mine]


def _recorded(row: Row, traces: dict[str, Trace]) -> bool:
    return tuple(row["token_ids"]) == traces[row["id"]].token_ids[: len(row["token_ids"])]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'link':27} {'category':10} {'strategy':10} {'measured':>9} {'simulated':>9} {'error':>7}"]
    for row in rows:
        lines.append(
            f"{row['link'][:27]:27} {row['category']:10} {row['strategy']:10} {row['measured_tokens_per_s']:9.2f} "
            f"{row['simulated_tokens_per_s']:9.2f} {row['error']:+7.1%}"
        )
    return "\n".join(lines)
