"""Loss from not knowing the best strategy beforehand, in virtual time: `python -m benchmarks regret`.

A grid spans round trips (and link profiles), cloud speeds and device speeds. In each cell and for each kind of prompt,
the time of `exact` is compared with the best of many fixed strategies, cloud streaming among them, chosen in hindsight
for that cell and kind. The measure is best time / time of `exact`, over the same traces: 1 is as good as the best,
above 1 is better than all.

`gated` is compared with `exact` itself, at its default promises. `gated_over_exact` is the time of `exact` over that of
`gated`. `gated_requests` is the number of requests of `gated` over that of `exact`, hidden ones included. A takeover is
one request, so the ratio is high where `exact` mostly streams. `gated_cloud_work` is the same ratio of cloud compute.
Strategies of `--inexact` are compared with `exact` in the same way. They promise less, so they are not among the fixed
strategies. `--against none --inexact none` runs `exact` and `gated` alone, for a quick grid.

A cell is one client. Its estimates start empty, the beginning of one generation of the kind is discarded, and the
client keeps its estimates from one generation to the next. Each generation has another draw of the link, the same for
all strategies. `settled` leaves out the first 16 tokens of every generation, `whole` does not.

Assumptions: a cloud of 190 ms per token or more is a CPU, where each further token of a forward costs 4.6% of the first
(measured on the default pair). A faster one is an accelerator, where it costs 0.2%. A second row of the device's
forward costs a quarter, as measured on the default pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product, starmap
from pathlib import Path
from typing import Any

from benchmarks.kit.processes import worker_pool
from benchmarks.kit.provenance import provenance
from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation
from benchmarks.simulation.trace import Trace, load_traces
from benchmarks.strategies.families import FAMILIES
from benchmarks.strategies.gated import add_gate_option
from benchmarks.virtual.peers import TRACES, numbers
from benchmarks.virtual.replay import deviations, replay
from chaperone_common.session import Committed
from link_emulator.profile import Profile, load_profile, profile_names

RTTS_MS = (5, 10, 20, 50, 100, 200, 400)
CLOUDS_MS = (5, 10, 20, 40, 80, 190, 310)
DRAFTS_MS = (5, 10, 20, 40)
FIXED = (
    *("cloud", "sync-2", "sync-4", "sync-8", "sync-16", "sync-24", "sync-32"),
    *("overlap-4", "overlap-8", "overlap-16", "overlap-32"),
    *(f"{family}-{tokens}" for family in FAMILIES if family not in ("sync", "overlap") for tokens in (8, 16)),
)
RIVALS = ("uhlm-0.1", "bild-0.6-2")  # they do not promise the cloud's text
EXACT, GATED = "exact", "gated"
MEASURES = ("settled", "whole")
LIMIT, GATED_LIMIT = 0.97, 0.98  # the summary counts cells under these
SETTLING_TOKENS = 16
_SLOWEST_ACCELERATOR_MS = 80
_LONGEST_SPAN = 64
_DIGITS = 4

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """A point of the grid: a round trip in milliseconds or the name of a profile, and two speeds."""

    link: str
    cloud_ms: float
    draft_ms: float

    def scenario(self, seed: int) -> Scenario:
        """Return the scenario of the cell's generations."""
        numeric = self.link.replace(".", "", 1).isdigit()
        profile = Profile.fixed(float(self.link)) if numeric else load_profile(self.link)
        further = 0.002 if self.cloud_ms <= _SLOWEST_ACCELERATOR_MS else 0.046
        longest_ms = self.cloud_ms * (1 + further * (_LONGEST_SPAN - 1))
        read_ms = Curve.of((1, self.cloud_ms), (_LONGEST_SPAN, longest_ms))
        cloud = CloudCosts(read_ms=read_ms, prefill_ms=self.cloud_ms / 10)
        return Scenario(profile, cloud, DraftCosts(step_ms=self.draft_ms), seed=seed)


@dataclass(frozen=True, slots=True)
class Contest:
    """The strategies of a grid, by name, and the gate of `gated`; see `benchmarks.strategies.gated.gate_for`."""

    fixed: tuple[str, ...]
    inexact: tuple[str, ...]
    gate: str
    seed: int  # of the links

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all strategies, each once."""
        return tuple(dict.fromkeys((EXACT, GATED, *self.fixed, *self.inexact)))


@dataclass(frozen=True, slots=True)
class Spent:
    """The costs of all generations of one strategy in one cell; times are in milliseconds from the warm start."""

    whole_ms: float
    settled_ms: float
    requests: int  # hidden ones included; a takeover of any length is one
    cloud_ms: float  # cloud compute after the prompt
    tokens: int
    deviations: int  # tokens that differ from the cloud's text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traces", type=Path, nargs="+", default=[TRACES / "reporting-T0.jsonl.gz"])
    parser.add_argument("--rtts-ms", type=numbers, default=RTTS_MS)
    parser.add_argument("--profiles", default="all", help="names separated by commas, `all` or `none`")
    parser.add_argument("--clouds-ms", type=numbers, default=CLOUDS_MS)
    parser.add_argument("--drafts-ms", type=numbers, default=DRAFTS_MS)
    parser.add_argument("--against", default=",".join(FIXED), help="fixed strategies, or `none`")
    parser.add_argument("--inexact", default=",".join(RIVALS), help="strategies that promise less, or `none`")
    add_gate_option(parser)
    parser.add_argument("--prompts", type=int, default=3, help="of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of what the links do")
    parser.add_argument("--processes", type=int, default=os.cpu_count())


def run(args: argparse.Namespace) -> dict[str, Any]:
    measured = provenance()
    traces = list(_chosen([trace for path in args.traces for trace in load_traces(path).traces], args.prompts))
    links = [f"{rtt:g}" for rtt in args.rtts_ms] + _profiles(args.profiles)
    cells = [Cell(*values) for values in product(links, args.clouds_ms, args.drafts_ms)]
    contest = Contest(_names(args.against), _names(args.inexact), args.gate, args.seed)
    with worker_pool(args.processes) as pool:
        jobs = [pool.submit(_measure, cell, traces, contest) for cell in cells]
        rows = []
        for done, job in enumerate(jobs, 1):
            rows += job.result()
            print(f"{done} of {len(jobs)} cells", end="\r", flush=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "processes")}
    settings["traces"] = [path.name for path in args.traces]
    return {
        "benchmark": "regret",
        **measured,
        "settings": json.loads(json.dumps(settings, default=str)),
        "rows": rows,
        "summary": summarise(rows),
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the worst cells and the number of cells under the limits, for the ratios that the rows have."""
    summary: dict[str, Any] = {
        measure: _spread(rows, [row[measure] for row in rows], measure, LIMIT)
        for measure in MEASURES
        if measure in rows[0]
    }
    if "gated_over_exact" in rows[0]:
        over_exact = {
            measure: _spread(rows, [row["gated_over_exact"][measure] for row in rows], measure, GATED_LIMIT)
            for measure in MEASURES
        }
        shares = {name: [row[f"gated_{name}"] for row in rows] for name in ("requests", "cloud_work")}
        summary[GATED] = over_exact | {
            name: {"geometric_mean": _mean(ratios), "most": max(ratios)} for name, ratios in shares.items()
        }
        summary["inexact"] = {name: _of_rival([row["inexact"][name] for row in rows]) for name in rows[0]["inexact"]}
    return summary


def _spread(rows: Sequence[Row], ratios: Sequence[float], measure: str, limit: float) -> dict[str, Any]:
    """Return figures of one ratio over all cells, and its worst cells."""
    ordered = sorted(zip(ratios, rows, strict=True), key=lambda pair: pair[0])
    values = sorted(ratios)
    return {
        "cells": len(values),
        f"under_{limit:g}": sum(value < limit for value in values),
        "least": values[0],
        "median": values[len(values) // 2],
        "geometric_mean": _mean(values),
        "worst": [
            {key: row[key] for key in ("link", "cloud_ms", "draft_ms", "category", "best") if key in row}
            | {measure: ratio}
            for ratio, row in ordered[:12]
        ],
    }


def _of_rival(cells: Sequence[Row]) -> dict[str, float]:
    """Return the geometric means of a rival's ratios over all cells."""
    return {key: _mean([cell[key] for cell in cells]) for key in cells[0]}


def _mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean; a ratio of 0, such as that of no requests, counts as the least one that is written."""
    return round(statistics.geometric_mean(max(ratio, 10**-_DIGITS) for ratio in ratios), _DIGITS)


def _measure(cell: Cell, traces: Sequence[Trace], contest: Contest) -> list[dict[str, Any]]:
    """Return a row for each kind of prompt."""
    rows = []
    for category, group in groupby(traces, key=lambda trace: trace.category):
        kind = list(group)
        spent = {name: _spent(cell, kind, name, contest) for name in contest.names}
        row: dict[str, Any] = {**asdict(cell), "category": category, **_against_fixed(spent, contest.fixed)}
        gated, per_token = _over_exact(spent, GATED), spent[GATED].deviations / spent[GATED].tokens
        row["gated_over_exact"] = {measure: gated[measure] for measure in MEASURES}
        row["gated_requests"] = gated["requests"]
        row["gated_cloud_work"] = gated["cloud_work"]
        row["gated_deviations_per_100_tokens"] = round(100 * per_token, 2)
        row["inexact"] = {name: _over_exact(spent, name) for name in contest.inexact}
        rows.append(row)
    return rows


def _against_fixed(spent: Mapping[str, Spent], fixed: Sequence[str]) -> dict[str, Any]:
    """Return the time of the best fixed strategy over that of `exact`; empty without fixed strategies."""
    entry: dict[str, Any] = {}
    for measure in MEASURES if fixed else ():
        times = {name: _time(spent[name], measure) for name in spent}
        best = min(fixed, key=lambda name: times[name])
        entry[measure] = round(times[best] / times[EXACT], _DIGITS)
        if measure == "settled":
            entry["best"] = best
            entry["over_cloud"] = round(times["cloud"] / times[EXACT], 3) if "cloud" in times else None
    return entry


def _over_exact(spent: Mapping[str, Spent], name: str) -> dict[str, float]:
    """Return the times of `exact` over those of a strategy, and its requests and cloud work over those of `exact`."""
    exact, other = spent[EXACT], spent[name]
    ratios = {measure: _time(exact, measure) / _time(other, measure) for measure in MEASURES}
    ratios["requests"] = other.requests / max(exact.requests, 1)
    ratios["cloud_work"] = other.cloud_ms / exact.cloud_ms
    return {key: round(value, _DIGITS) for key, value in ratios.items()}


def _time(spent: Spent, measure: str) -> float:
    return spent.settled_ms if measure == "settled" else spent.whole_ms


def _spent(cell: Cell, traces: Sequence[Trace], name: str, contest: Contest) -> Spent:
    simulations = replay(traces, cell.scenario(contest.seed), name, warm_up=traces[-1], gate=contest.gate)
    stats = [simulation.stats for simulation in simulations]
    return Spent(
        sum(one.decode_ms or 0.0 for one in stats),
        sum(map(_settled_ms, simulations)),
        sum(one.round_trips + one.hidden_round_trips for one in stats),
        sum(one.cloud_compute_ms - one.prefill_ms for one in stats),
        sum(one.completion_tokens for one in stats),
        sum(starmap(deviations, zip(simulations, traces, strict=True))),
    )


def _settled_ms(simulation: Simulation) -> float:
    """Return the time from the commit of the last settling token to that of the last token."""
    commits = [moment.at_ms for moment in simulation.timeline if isinstance(moment.event, Committed)]
    return commits[-1] - commits[min(SETTLING_TOKENS, len(commits)) - 1]


def _chosen(traces: Iterable[Trace], count: int) -> Iterator[Trace]:
    """Return the first traces of each kind, kind by kind."""
    by_category = sorted(traces, key=lambda trace: trace.category)
    for _, group in groupby(by_category, key=lambda trace: trace.category):
        yield from list(group)[:count]


def _names(value: str) -> tuple[str, ...]:
    return () if value in ("", "none") else tuple(value.split(","))


def _profiles(value: str) -> list[str]:
    if value == "none":
        return []
    return list(profile_names()) if value == "all" else value.split(",")
