"""The first generation of a fresh client compared with its tenth, in virtual time: `python -m benchmarks fresh`.

Each prompt of the reporting traces is written twice: as the first text of a new client, and as its tenth. A client
keeps its estimates, and what its gate has learned, from text to text. The nine texts before the tenth are tuning
traces, in the order of their file and from the beginning again after the last one:

    mixed:      the kinds take turns; the first and the last text are of the prompt's kind
    same_kind:  all nine are of the prompt's own kind
    other_kind: all nine are of the other kind

Speeds from a `warm` start count from the moment at which both ends hold the prompt's KV, those from a `cold` one from
the request. Links have a fixed round trip, so no result depends on a seed.

`exact` is the control: it has no gate, and learns the costs alone.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice, product
from pathlib import Path
from typing import Any, Self

from benchmarks.kit.processes import worker_pool
from benchmarks.kit.provenance import provenance
from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.simulation.strategy import Strategy
from benchmarks.simulation.trace import Trace, traces_of
from benchmarks.strategies.families import strategy_over
from benchmarks.strategies.gated import add_gate_option
from benchmarks.virtual.peers import TRACES
from benchmarks.virtual.regret import Cell
from chaperone_common.session import Committed
from edge_client.planner import Estimates
from link_emulator.profile import Profile

STRATEGIES = "gated,exact"
# Milliseconds of a token of the cloud, by name; `declared` is the default pair on one core (`simulation.costs`).
CLOUDS: Mapping[str, float | None] = {"declared": None, "accelerator": 60.0}
STARTS = ("warm", "cold")
HISTORIES = ("mixed", "same_kind", "other_kind")
EARLIER_TEXTS = 9
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Client:
    """A client in virtual time: the gates of its strategy share a control, and its estimates learn."""

    strategy: Strategy
    estimates: Estimates

    @classmethod
    def fresh(cls, trace: Trace, name: str, gate: str) -> Self:
        """Return a client that has written nothing; see `strategy_over` for the gate and the errors."""
        return cls(strategy_over(trace, name, gate), Estimates())

    def copy(self) -> Self:
        """Return a client that has learned the same. Both have one gate model, which learns nothing."""
        model = self.strategy.gate_model
        return copy.deepcopy(self, {id(model): model})

    def write(self, trace: Trace, scenario: Scenario) -> Simulation:
        """Write a text; raise the error of a generation that failed."""
        simulation = simulate(trace, scenario, self.strategy, self.estimates)
        if simulation.error is not None:
            raise simulation.error
        return simulation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traces", type=Path, default=TRACES / "reporting-T0.jsonl.gz", help="the reported prompts")
    parser.add_argument("--earlier", type=Path, default=TRACES / "tuning-T0.jsonl.gz", help="the nine texts before")
    parser.add_argument("--strategies", default=STRATEGIES)
    parser.add_argument("--clouds", default=",".join(CLOUDS))
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--rtt-ms", type=float, default=100.0)
    add_gate_option(parser)
    parser.add_argument("--processes", type=int, default=os.cpu_count())


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write all texts; return a row for each prompt, strategy, cloud and start."""
    measured = provenance()
    traces, earlier = traces_of("--traces", args.traces), traces_of("--earlier", args.earlier)
    names = (value.split(",") for value in (args.strategies, args.clouds, args.starts))
    with worker_pool(args.processes) as pool:
        jobs = [
            pool.submit(rows_of, traces, earlier, strategy, cloud, start, args.rtt_ms, args.gate)
            for strategy, cloud, start in product(*names)
        ]
        rows = []
        for done, job in enumerate(jobs, 1):
            rows += job.result()
            print(f"{done} of {len(jobs)} settings", end="\r", flush=True)
    summary = summarise(rows)
    print(as_text(summary))
    return {
        "benchmark": "fresh",
        **measured,
        "settings": {
            "traces": args.traces.name,
            "earlier": args.earlier.name,
            "earlier_texts": EARLIER_TEXTS,
            "rtt_ms": args.rtt_ms,
            "gate": args.gate,
        },
        "rows": rows,
        "summary": summary,
    }


def rows_of(
    traces: Sequence[Trace], earlier: Sequence[Trace], strategy: str, cloud: str, start: str, rtt_ms: float, gate: str
) -> list[dict[str, Any]]:
    """Return a row for each prompt: its text as the first one of a client, and as the tenth after each history."""
    scenario = replace(scenario_of(cloud, rtt_ms), warm_start=start == "warm")
    fresh = Client.fresh(traces[0], strategy, gate)
    experienced: dict[tuple[str, ...], Client] = {}
    rows = []
    for trace in traces:
        row: dict[str, Any] = {
            "strategy": strategy,
            "cloud": cloud,
            "start": start,
            "id": trace.id,
            "category": trace.category,
            "first": counts(fresh.copy().write(trace, scenario)),
        }
        for history in HISTORIES:
            texts = texts_before(history, trace, earlier)
            key = tuple(text.id for text in texts)
            if key not in experienced:
                experienced[key] = fresh.copy()
                for text in texts:
                    experienced[key].write(text, scenario)
            row[history] = counts(experienced[key].copy().write(trace, scenario))
        rows.append(row)
    return rows


def scenario_of(cloud: str, rtt_ms: float) -> Scenario:
    """Return the scenario of one of `CLOUDS`."""
    token_ms = CLOUDS[cloud]
    if token_ms is None:
        return Scenario(Profile.fixed(rtt_ms))
    return Cell(f"{rtt_ms:g}", token_ms, Scenario().draft.step_ms).scenario(seed=0)


def texts_before(history: str, trace: Trace, earlier: Sequence[Trace]) -> list[Trace]:
    """Return the nine texts of one of `HISTORIES`, without the trace itself."""
    others = [text for text in earlier if text.id != trace.id]
    own = [text for text in others if text.category == trace.category]
    different = [text for text in others if text.category != trace.category]
    turns: Iterator[Trace]
    match history:
        case "mixed":
            turns = chain.from_iterable(zip(cycle(own), cycle(different)))
        case "same_kind":
            turns = cycle(own)
        case _:
            turns = cycle(different)
    return list(islice(turns, EARLIER_TEXTS))


def counts(simulation: Simulation) -> dict[str, Any]:
    """Return the figures of one generation."""
    stats = simulation.stats
    final = [moment.event for moment in simulation.timeline if isinstance(moment.event, Committed)]
    drafted = [event for event in final if event.proposal is not None]
    return {
        "tokens": stats.completion_tokens,
        "tokens_per_s": round(simulation.decode_tokens_per_s, _DIGITS),
        "requests": stats.round_trips + stats.hidden_round_trips,
        # Of the final tokens that the device drafted, or that replaced a drafted one.
        "drafted": len(drafted),
        "asked": sum(event.fired for event in drafted),
        "retracted": stats.retracted_tokens,
        "caught": stats.caught,
        "deviations": stats.deviations,
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return an entry for each strategy, cloud and start; ratios are those of the first text to the tenth."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["strategy"], row["cloud"], row["start"]), []).append(row)
    return [
        {"strategy": strategy, "cloud": cloud, "start": start, "first": totals([row["first"] for row in mine])}
        | {history: dict(_compared(mine, history)) for history in HISTORIES}
        for (strategy, cloud, start), mine in groups.items()
    ]


def totals(texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return counts over all texts."""
    sums = {key: sum(text[key] for text in texts) for key in ("tokens", "requests", "drafted", "asked", "retracted")}
    caught, missed = (sum(text[key] for text in texts) for key in ("caught", "deviations"))
    return {
        "requests_per_100_tokens": round(100 * sums["requests"] / sums["tokens"], 2),
        "retracted_per_100_tokens": round(100 * sums["retracted"] / sums["tokens"], 2),
        "asked_share": _share(sums["asked"], sums["drafted"]),
        "caught": caught,
        "deviations": missed,
        "catch": _share(caught, caught + missed),
        "deviation_rate": round(missed / sums["tokens"], _DIGITS),
    }


def _share(part: int, total: int) -> float | None:
    return round(part / total, _DIGITS) if total else None


def _compared(rows: Sequence[Mapping[str, Any]], history: str) -> Iterator[tuple[str, Any]]:
    speeds = [row["first"]["tokens_per_s"] / row[history]["tokens_per_s"] for row in rows]
    requests = [row["first"]["requests"] / max(row[history]["requests"], 1) for row in rows]
    yield "speed", round(statistics.median(speeds), _DIGITS)
    yield "least_speed", round(min(speeds), _DIGITS)
    yield "requests", round(statistics.median(requests), _DIGITS)
    yield from totals([row[history] for row in rows]).items()


def as_text(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the summary as a table: the ratios of speed and requests, and the shares asked."""
    lines = [
        f"{'strategy':10}{'cloud':12}{'start':6}{'before':11}{'speed':>7}{'least':>7}{'requests':>9}"
        f"{'asked 1st':>10}{'10th':>7}{'catch 1st':>10}{'10th':>7}"
    ]
    for entry in summary:
        for history in HISTORIES:
            tenth, first = entry[history], entry["first"]
            lines.append(
                f"{entry['strategy']:10}{entry['cloud']:12}{entry['start']:6}{history:11}"
                f"{tenth['speed']:7.3f}{tenth['least_speed']:7.3f}{tenth['requests']:9.2f}"
                f"{_cell(first['asked_share']):>10}{_cell(tenth['asked_share']):>7}"
                f"{_cell(first['catch']):>10}{_cell(tenth['catch']):>7}"
            )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
