"""The best span length of each published strategy by round trip, in virtual time: `python -m benchmarks peers`.

No rival should be compared with a bad setting. So each family of `benchmarks.strategies.families` gets, for each
temperature, round trip and kind of prompt, the N that is fastest on the tuning traces of that kind. The measure is the
geometric mean of tokens per second over prompts: each prompt counts alike, however long or slow.

The costs are the declared ones of the default pair (`benchmarks.simulation.costs`), for `virtual`. With `--costs` they
are those that a run measured, for other runs on that machine. Both commands look up N for names such as `sync-best`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

from benchmarks.kit.processes import worker_pool
from benchmarks.kit.provenance import provenance
from benchmarks.measured.costs import RunCosts
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.trace import Trace, traces_of
from benchmarks.strategies.families import FAMILIES
from benchmarks.virtual.replay import replay
from link_emulator.profile import Profile

RTTS_MS = (0.0, 20.0, 50.0, 100.0, 200.0, 400.0)
SPANS = (2, 4, 8, 16, 24, 32)
TRACES = Path(__file__).parents[1] / "traces"

Row = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tuning = [TRACES / "tuning-T0.jsonl.gz", TRACES / "tuning-T0.7.jsonl.gz"]
    parser.add_argument(
        "--traces", type=Path, nargs="+", default=tuning, help="traces for tuning, never the reported ones"
    )
    parser.add_argument("--rtts-ms", type=numbers, default=RTTS_MS)
    parser.add_argument("--costs", type=Path, help="a result of `python -m benchmarks run`; without: the declared ones")
    parser.add_argument("--spans", type=numbers, default=SPANS, help="the N to try")
    parser.add_argument("--processes", type=int, default=os.cpu_count())


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Try every N; return a row for each temperature, round trip, family and kind of prompt."""
    measured = provenance()
    by_temperature = {
        file[0].sampling.temperature: file for file in (traces_of("--traces", path) for path in args.traces)
    }
    spans = [int(tokens) for tokens in args.spans]
    costs = RunCosts.load(args.costs) if args.costs else None
    settings = list(product(by_temperature, args.rtts_ms, FAMILIES, spans))
    with worker_pool(args.processes) as pool:
        jobs = [
            pool.submit(speed, by_temperature[temperature], rtt_ms, f"{family}-{tokens}", costs)
            for temperature, rtt_ms, family, tokens in settings
        ]
        speeds = {}
        for done, ((temperature, rtt_ms, family, tokens), job) in enumerate(zip(settings, jobs, strict=True), 1):
            for category, value in job.result().items():
                speeds[temperature, rtt_ms, family, category, tokens] = value
            print(f"{done} of {len(jobs)} settings", end="\r", flush=True)
    rows = list(best_spans(speeds))
    print(as_text(rows))
    settings_used = {
        "traces": [path.name for path in args.traces],
        "spans": spans,
        "costs": {"run": args.costs.name} | costs.to_json() if costs else "declared",
    }
    return {"benchmark": "peers", **measured, "settings": settings_used, "rows": rows}


def speed(traces: Sequence[Trace], rtt_ms: float, strategy: str, costs: RunCosts | None = None) -> dict[str, float]:
    """Return, by kind, the geometric mean of tokens per second over its traces, from a warm start.

    Without `costs` the declared ones count. One client writes all texts.
    """
    profile = Profile.fixed(rtt_ms)
    simulations = replay(traces, costs.scenario(profile) if costs else Scenario(profile), strategy, warm_up=traces[-1])
    speeds: dict[str, list[float]] = {}
    for trace, simulation in zip(traces, simulations, strict=True):
        speeds.setdefault(trace.category, []).append(simulation.decode_tokens_per_s)
    return {category: statistics.geometric_mean(values) for category, values in speeds.items()}


def best_spans(speeds: Mapping[tuple[float, float, str, str, int], float]) -> Iterator[dict[str, Any]]:
    """Yield the result's rows from speeds by (temperature, round trip, family, kind, N); of equal N the shorter."""
    for (temperature, rtt_ms, family, category), group in groupby(sorted(speeds), key=lambda setting: setting[:4]):
        tried = {setting[4]: speeds[setting] for setting in group}
        yield {
            "temperature": temperature,
            "rtt_ms": rtt_ms,
            "family": family,
            "category": category,
            "best": max(sorted(tried), key=lambda tokens: tried[tokens]),
            "tokens_per_s": {str(tokens): round(tried[tokens], 3) for tokens in sorted(tried)},
        }


def as_text(rows: Sequence[Row]) -> str:
    """Return a table of the best N: a line for each temperature, kind and family, a column for each round trip."""
    rtts = sorted({row["rtt_ms"] for row in rows})
    lines = [f"{'best N at a round trip of':37}" + "".join(f"{rtt:>8g}" for rtt in rtts) + " ms"]
    best: dict[tuple[float, str, str], dict[float, int]] = {}
    for row in rows:
        best.setdefault((row["temperature"], row["category"], row["family"]), {})[row["rtt_ms"]] = row["best"]
    for (temperature, category, family), tokens in best.items():
        cells = "".join(f"{tokens.get(rtt, '-'):>8}" for rtt in rtts)
        lines.append(f"{family:10} {category:10} temperature {temperature:<3g}" + cells)
    return "\n".join(lines)


def numbers(text: str) -> tuple[float, ...]:
    """Return numbers from a text, separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers, separated by commas") from None
