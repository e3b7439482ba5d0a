"""Loss from not knowing the best strategy beforehand, in virtual time: `python -m benchmarks regret`.

A grid spans round trips (and link profiles), cloud speeds and device speeds. In each cell and for each kind of prompt,
the time of `exact` is compared with the best of many fixed strategies, cloud streaming among them, chosen in hindsight
for that cell and kind. The measure is best time / time of `exact`, over the same traces: 1 is as good as the best,
above 1 is better than all.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

from benchmarks.kit.processes import worker_pool
from benchmarks.kit.provenance import provenance
from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation
from benchmarks.simulation.trace import Trace, load_traces
from benchmarks.strategies.families import FAMILIES
from benchmarks.virtual.peers import TRACES, numbers
from benchmarks.virtual.replay import replay
from chaperone_common.session import Committed
from link_emulator.profile import Profile, load_profile, profile_names

RTTS_MS = (5, 10, 20, 50, 100, 200, 400)
CLOUDS_MS = (10, 20, 40, 80, 190, 310)
DRAFTS_MS = (5, 10, 20, 40)
FIXED = (
    *("cloud", "sync-2", "sync-4", "sync-8", "sync-16", "sync-24", "sync-32"),
    *("overlap-4", "overlap-8", "overlap-16", "overlap-32"),
    *(f"{family}-{tokens}" for family in FAMILIES if family not in ("sync", "overlap") for tokens in (8, 16)),
)
SETTLING_TOKENS = 16
_SLOWEST_ACCELERATOR_MS = 80
_LONGEST_SPAN = 64


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
class Times:
    """Times of all generations of one strategy in one cell, in milliseconds from the warm start."""

    whole_ms: float
    settled_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traces", type=Path, nargs="+", default=[TRACES / "reporting-T0.jsonl.gz"])
    parser.add_argument("--rtts-ms", type=numbers, default=RTTS_MS)
    parser.add_argument("--profiles", default="all", help="names separated by commas, `all` or `none`")
    parser.add_argument("--clouds-ms", type=numbers, default=CLOUDS_MS)
    parser.add_argument("--drafts-ms", type=numbers, default=DRAFTS_MS)
    parser.add_argument("--against", default=",".join(FIXED), help="fixed strategies")
    parser.add_argument("--prompts", type=int, default=3, help="of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of what the links do")
    parser.add_argument("--processes", type=int, default=os.cpu_count())


def run(args: argparse.Namespace) -> dict[str, Any]:
    measured = provenance()
    traces = list(_chosen([trace for path in args.traces for trace in load_traces(path).traces], args.prompts))
    links = [f"{rtt:g}" for rtt in args.rtts_ms] + _profiles(args.profiles)
    cells = [Cell(*values) for values in product(links, args.clouds_ms, args.drafts_ms)]
    names = args.against.split(",")
    with worker_pool(args.processes) as pool:
        jobs = [pool.submit(_measure, cell, traces, names, args.seed) for cell in cells]
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


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the worst cells, and the number of cells under 0.97."""
    summary: dict[str, Any] = {}
    for measure in ("settled", "whole"):
        ordered = sorted(rows, key=lambda row: float(row[measure]))
        values = [row[measure] for row in ordered]
        summary[measure] = {
            "cells": len(values),
            "under_0.97": sum(value < 0.97 for value in values),
            "least": values[0],
            "median": values[len(values) // 2],
            "geometric_mean": round(statistics.geometric_mean(values), 4),
            "worst": [
                {key: row[key] for key in ("link", "cloud_ms", "draft_ms", "category", "best", measure)}
                for row in ordered[:12]
            ],
        }
    return summary


def _measure(cell: Cell, traces: Sequence[Trace], names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return a row for each kind of prompt."""
    rows = []
    for category, group in groupby(traces, key=lambda trace: trace.category):
        kind = list(group)
        times = {name: _times(cell, kind, name, seed) for name in ("exact", *names)}
        row: dict[str, Any] = {**asdict(cell), "category": category}
        for measure in ("settled", "whole"):
            spent = {name: getattr(times[name], f"{measure}_ms") for name in times}
            best = min(names, key=lambda name: float(spent[name]))
            row[measure] = round(spent[best] / spent["exact"], 4)
            if measure == "settled":
                row["best"] = best
                row["over_cloud"] = round(spent["cloud"] / spent["exact"], 3) if "cloud" in spent else None
        rows.append(row)
    return rows


def _times(cell: Cell, traces: Sequence[Trace], name: str, seed: int) -> Times:
    simulations = replay(traces, cell.scenario(seed), name, warm_up=traces[-1])
    return Times(
        sum(simulation.stats.decode_ms or 0.0 for simulation in simulations),
        sum(map(_settled_ms, simulations)),
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


def _profiles(value: str) -> list[str]:
    if value == "none":
        return []
    return list(profile_names()) if value == "all" else value.split(",")
