"""All strategies by round trip, in virtual time: `python -m benchmarks virtual`.

The strategies are `exact`, `cloud` and the published ones, each with its best span length (`python -m benchmarks
peers`), on the reporting traces, at the declared costs of the default pair. The result also has the clairvoyant bound
(`benchmarks.simulation.bounds`) and the share of it that `exact` reached. The bound is that of a chain without
branches, so a share may exceed 1. For each temperature, round trip and kind of prompt the result says if `exact` is
ahead of each strategy that promises the cloud's text.

`gated`, U-HLM and BiLD promise less than the cloud's text. The result has their speeds next to the others, with the
requests of every strategy and its deviations.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.kit.processes import worker_pool
from benchmarks.kit.provenance import provenance
from benchmarks.measured.summary import BASELINE
from benchmarks.simulation.bounds import Costs, clairvoyant_ms
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.trace import Trace, traces_of
from benchmarks.strategies.best_spans import BEST, PEERS, load_peers, with_best
from benchmarks.strategies.gated import add_gate_option
from benchmarks.virtual.peers import RTTS_MS, TRACES, numbers
from benchmarks.virtual.replay import deviations, replay
from link_emulator.profile import Profile

EXACT, BOUND = "exact", "bound"
INEXACT = {"gated": "gated", "uhlm": "uhlm-0.1", "bild": "bild-0.6-2"}  # by key; they do not promise the cloud's text

Speeds = Mapping[str, Sequence[float]]  # tokens per second of each strategy and of the bound, by trace


class Counts(NamedTuple):
    """The counts of one generation."""

    tokens: int
    requests: int  # hidden ones included
    deviations: int  # tokens that differ from the cloud's text


class Written(NamedTuple):
    """A strategy's generations over one link, trace by trace."""

    tokens_per_s: list[float]
    counts: list[Counts]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    reporting = [TRACES / "reporting-T0.jsonl.gz", TRACES / "reporting-T0.7.jsonl.gz"]
    parser.add_argument("--traces", type=Path, nargs="+", default=reporting)
    parser.add_argument("--warm-up", type=Path, default=TRACES / "tuning-T0.jsonl.gz", help="its last trace is it")
    parser.add_argument("--peers", type=Path, default=PEERS, help="a result of `python -m benchmarks peers`")
    parser.add_argument("--rtts-ms", type=numbers, default=RTTS_MS)
    add_gate_option(parser)
    parser.add_argument("--processes", type=int, default=os.cpu_count())


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Simulate all settings; return a row for each temperature, round trip and kind."""
    measured = provenance()
    warm_up = traces_of("--warm-up", args.warm_up)[-1]
    families = list(dict.fromkeys(row["family"] for row in load_peers(args.peers)))
    files = [traces_of("--traces", path) for path in args.traces]
    rows: list[dict[str, Any]] = []
    with worker_pool(args.processes) as pool:
        settings = []
        for traces, rtt_ms in product(files, args.rtts_ms):
            names = {
                category: _names(families, args.peers, rtt_ms, traces[0].sampling.temperature, category)
                for category in dict.fromkeys(trace.category for trace in traces)
            }
            wanted = dict.fromkeys(name for mine in names.values() for name in mine.values())
            jobs = {name: pool.submit(written_by, name, traces, rtt_ms, warm_up, args.gate) for name in wanted}
            settings.append((traces, rtt_ms, names, jobs))
        for done, (traces, rtt_ms, names, jobs) in enumerate(settings, 1):
            written = {name: job.result() for name, job in jobs.items()}
            speeds = {name: one.tokens_per_s for name, one in written.items()} | {BOUND: bounds_of(traces, rtt_ms)}
            counts = {name: one.counts for name, one in written.items()}
            rows += entries(traces, rtt_ms, names, speeds, counts)
            print(f"{done} of {len(settings)} settings", end="\r", flush=True)
    print(as_text(rows))
    return {
        "benchmark": "virtual",
        **measured,
        "settings": {"traces": [path.name for path in args.traces], "warm_up": warm_up.id},
        "rows": rows,
        "summary": summarise(rows),
    }


def _names(families: Sequence[str], peers: Path, rtt_ms: float, temperature: float, category: str) -> dict[str, str]:
    """Return the strategies by family, each peer with the span that is best for this kind of prompt."""
    best = with_best([f"{family}-{BEST}" for family in families], peers, rtt_ms, temperature, category)
    return {BASELINE: BASELINE, EXACT: EXACT, **dict(zip(families, best, strict=True)), **INEXACT}


def written_by(strategy: str, traces: Sequence[Trace], rtt_ms: float, warm_up: Trace, gate: str) -> Written:
    """Return the generations of one client from a warm start; `gate` is that of `replay`."""
    simulations = replay(traces, Scenario(Profile.fixed(rtt_ms)), strategy, warm_up, gate)
    counts = [
        Counts(stats.completion_tokens, stats.round_trips + stats.hidden_round_trips, deviations(simulation, trace))
        for simulation, trace in zip(simulations, traces, strict=True)
        for stats in (simulation.stats,)
    ]
    return Written([simulation.decode_tokens_per_s for simulation in simulations], counts)


def bounds_of(traces: Sequence[Trace], rtt_ms: float) -> list[float]:
    """Return the clairvoyant bound as tokens per second, at the costs of the simulation."""
    scenario = Scenario()
    read = scenario.cloud.read_ms
    costs = Costs(scenario.draft.step_ms, rtt_ms, read.at(1), {int(tokens): ms for tokens, ms in read.points})
    return [1e3 * len(trace.token_ids) / clairvoyant_ms(trace.matches, costs) for trace in traces]


def entries(
    traces: Sequence[Trace],
    rtt_ms: float,
    names: Mapping[str, Mapping[str, str]],
    speeds: Speeds,
    counts: Mapping[str, Sequence[Counts]],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of prompt; `names` are those of the strategies in `speeds`, by kind and family.

    Ratios are taken trace by trace. Speeds and ratios are medians over traces, counts are over all of their tokens.
    """
    for category in dict.fromkeys(trace.category for trace in traces):
        places = [place for place, trace in enumerate(traces) if trace.category == category]
        chosen = names[category]
        rivals = [key for key in chosen if key != EXACT and key not in INEXACT]
        mine = {key: [speeds[name][place] for place in places] for key, name in (*chosen.items(), (BOUND, BOUND))}
        yield {
            "temperature": traces[0].sampling.temperature,
            "rtt_ms": rtt_ms,
            "category": category,
            "strategies": {
                key: {
                    "strategy": name,
                    "tokens_per_s": _median(mine[key]),
                    "over_cloud": _ratio(mine[key], mine[BASELINE]),
                }
                for key, name in chosen.items()
            },
            "bound": {
                "tokens_per_s": _median(mine[BOUND]),
                "over_cloud": _ratio(mine[BOUND], mine[BASELINE]),
                "share_of_exact": _ratio(mine[EXACT], mine[BOUND]),
            },
            "exact_over": {key: _ratio(mine[EXACT], mine[key]) for key in rivals},
            "exact_ahead_of_all": all(_ratio(mine[EXACT], mine[key]) > 1 for key in rivals),
            "inexact_over_exact": {key: _ratio(mine[key], mine[EXACT]) for key in chosen if key in INEXACT},
            "requests_per_100_tokens": {
                key: _per_100([counts[name][place] for place in places], "requests") for key, name in chosen.items()
            },
            "deviations_per_100_tokens": {
                key: _per_100([counts[name][place] for place in places], "deviations")
                for key, name in chosen.items()
                if key in INEXACT
            },
        }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of settings where `exact` is ahead, and the others."""
    return {
        "settings": len(rows),
        "exact_ahead_of_all": sum(row["exact_ahead_of_all"] for row in rows),
        "not_ahead": [
            {key: row[key] for key in ("temperature", "rtt_ms", "category")}
            | {"strategy": row["strategies"][key]["strategy"], "exact_over": value}
            for row in rows
            for key, value in row["exact_over"].items()
            if value <= 1
        ],
        "least_share_of_bound": min(row["bound"]["share_of_exact"] for row in rows),
    }


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return speeds over cloud streaming, a line per row; an exclamation mark where `exact` is not ahead."""
    keys = [key for key in rows[0]["strategies"] if key != BASELINE] if rows else []
    heads = "".join(f"{key:>16}" for key in keys)
    lines = [f"{'T':>4}{'rtt':>5}  {'kind':10}{'cloud/s':>8}{heads}{'bound':>8}{'share':>7}  over cloud"]
    for row in rows:
        strategies, bound = row["strategies"], row["bound"]
        cells = "".join(f"{_cell(strategies[key], row['exact_over'].get(key)):>16}" for key in keys)
        lines.append(
            f"{row['temperature']:4g}{row['rtt_ms']:5g}  {row['category']:10}"
            f"{strategies[BASELINE]['tokens_per_s']:8.2f}{cells}{bound['over_cloud']:8.2f}{bound['share_of_exact']:7.2f}"
        )
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any], exact_over: float | None) -> str:
    name = entry["strategy"] if entry["strategy"] != EXACT else ""
    return f"{name} {entry['over_cloud']:.2f}{'!' if exact_over is not None and exact_over <= 1 else ''}"


def _per_100(counts: Sequence[Counts], field: Literal["requests", "deviations"]) -> float:
    total: int = sum(getattr(one, field) for one in counts)
    return round(100 * total / sum(one.tokens for one in counts), 2)


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def _ratio(values: Sequence[float], base: Sequence[float]) -> float:
    return round(statistics.median(mine / other for mine, other in zip(values, base, strict=True)), 4)
