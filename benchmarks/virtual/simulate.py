"""Strategies on recorded traces, on a virtual clock: `python -m benchmarks simulate`.

Engine, session, gate, planner and supervisor are the real ones. The models play traces (`python -m benchmarks record`),
and options set the time of a forward. The defaults are those of the default pair, on one core each.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.provenance import provenance
from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.simulation.strategy import Strategy
from benchmarks.simulation.trace import Trace, traces_of
from benchmarks.strategies.families import strategy_over
from benchmarks.strategies.gated import add_gate_option
from benchmarks.virtual.replay import deviations
from chaperone_common.types import Mode
from link_emulator.profile import Profile, load_profile

BASELINE = str(Mode.CLOUD)
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    draft, cloud = DraftCosts(), CloudCosts()
    parser.add_argument("--traces", type=Path, nargs="+", required=True, help="files of `python -m benchmarks record`")
    parser.add_argument("--strategies", default="exact,gated,cloud", help="modes and peers (sync-8), comma-separated")
    add_gate_option(parser)
    link = parser.add_mutually_exclusive_group()
    link.add_argument("--rtt-ms", type=float, default=100.0, help="a link with this round trip and nothing else")
    link.add_argument("--profile", help="a link by the name of its profile, or by the path of one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the link and of other devices")
    parser.add_argument("--draft-ms", type=float, default=draft.step_ms, help="a token of the device's model")
    parser.add_argument(
        "--cloud-ms", type=curve, default=cloud.read_ms, help="a forward of the cloud's: TOKENS:MS,TOKENS:MS,... or MS"
    )
    parser.add_argument("--prefill-ms", type=float, default=cloud.prefill_ms, help="a token of the prompt, cloud")
    parser.add_argument(
        "--load", type=float, default=cloud.load, help="share of the cloud's time that other devices take, in [0, 1)"
    )
    parser.add_argument("--cold", action="store_true", help="start without the prompt's KV, and time the whole request")


def run(args: argparse.Namespace) -> dict[str, Any]:
    scenario = Scenario(
        load_profile(args.profile) if args.profile else Profile.fixed(args.rtt_ms),
        CloudCosts(read_ms=args.cloud_ms, prefill_ms=args.prefill_ms, load=args.load, seed=args.seed),
        DraftCosts(step_ms=args.draft_ms),
        seed=args.seed,
        warm_start=not args.cold,
    )
    traces = traces_of("--traces", *args.traces)
    strategies = [strategy_over(traces[0], name, args.gate) for name in args.strategies.split(",")]
    generations = [
        describe(trace, strategy, simulate(trace, scenario, strategy)) for trace in traces for strategy in strategies
    ]
    table = summarise(generations)
    print(as_text(table))
    return {
        "benchmark": "simulate",
        **provenance(),
        "settings": {
            "traces": [path.name for path in args.traces],
            "profile": scenario.profile.model_dump(mode="json"),
            "cloud_ms": scenario.cloud.read_ms.points,
            "prefill_ms": args.prefill_ms,
            "draft_ms": args.draft_ms,
            "load": args.load,
            "seed": args.seed,
            "warm_start": scenario.warm_start,
        },
        "generations": generations,
        "table": table,
    }


def curve(text: str) -> Curve:
    """Read `TOKENS:MS,TOKENS:MS,...`, or one number for any number of tokens."""
    try:
        if ":" not in text:
            return Curve.of((1.0, float(text)))
        points = [part.split(":") for part in text.split(",")]
        return Curve(tuple((float(x), float(y)) for x, y in points))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither MS nor TOKENS:MS,TOKENS:MS,...") from None


def describe(trace: Trace, strategy: Strategy, simulation: Simulation) -> dict[str, Any]:
    """Return one generation as a row of the result."""
    return {
        "id": trace.id,
        "category": trace.category,
        "temperature": trace.sampling.temperature,
        "strategy": strategy.name,
        "tokens_per_s": round(simulation.decode_tokens_per_s, 4),
        "equals_cloud": simulation.token_ids == trace.token_ids,
        "deviations": deviations(simulation, trace),
        "error": simulation.error.message if simulation.error else None,
        "link_bytes_up": simulation.link_bytes_up,
        "link_bytes_down": simulation.link_bytes_down,
        "stats": simulation.stats.to_json(),
    }


def summarise(generations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, by category and strategy, medians of the speed and of its ratio to streaming, and counts per token."""
    streaming = {_key(row): row["tokens_per_s"] for row in generations if row["strategy"] == BASELINE}
    categories = dict.fromkeys([row["category"] for row in generations] + [ALL])
    strategies = dict.fromkeys(row["strategy"] for row in generations)
    table = []
    for category in categories:
        for strategy in strategies:
            rows = [row for row in generations if row["strategy"] == strategy and category in (row["category"], ALL)]
            ratios = [row["tokens_per_s"] / streaming[_key(row)] for row in rows if streaming.get(_key(row))]
            stats = [row["stats"] for row in rows]
            tokens = sum(row["completion_tokens"] for row in stats) or 1
            table.append(
                {
                    "category": category,
                    "strategy": strategy,
                    "generations": len(rows),
                    "tokens_per_s": round(statistics.median(row["tokens_per_s"] for row in rows), 3),
                    "over_cloud": round(statistics.median(ratios), 3) if ratios else None,
                    "round_trips_per_100_tokens": round(100 * sum(row["round_trips"] for row in stats) / tokens, 2),
                    "cloud_ms_per_token": round(
                        sum(row["cloud_compute_ms"] - row["prefill_ms"] for row in stats) / tokens, 2
                    ),
                    "deviations_per_100_tokens": round(100 * sum(row["deviations"] for row in rows) / tokens, 2),
                    "equal_cloud": sum(row["equals_cloud"] for row in rows),
                    "failed": sum(row["error"] is not None for row in rows),
                }
            )
    return table


def as_text(table: Sequence[dict[str, Any]]) -> str:
    """Return the table in columns of equal width."""
    names = list(table[0]) if table else []
    lines = [names, *([("-" if value is None else str(value)) for value in row.values()] for row in table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _key(row: dict[str, Any]) -> tuple[str, float]:
    return row["id"], row["temperature"]
