"""The planner's fixed constants of risk, fitted again on the tuning traces: `python -m benchmarks risk`.

The model is P(override) = scale x doubt ^ power, within [1e-4, 0.98] (`edge_client/model/uncertainty.py`). The planner
corrects it by a factor that it learns from each client's texts. Both constants are fitted by maximum likelihood over
all tokens that the cloud judged, on a grid, with 95% bootstrap intervals over traces. The third constant is the share
of overrides that are the draft's runner-up.

The result also has the constants in use, and the reliability of each set: tokens in bins of the predicted chance, and
the share of them that were overridden.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import Indices, interval
from benchmarks.simulation.trace import Trace, load_traces
from benchmarks.virtual.peers import TRACES
from edge_client.model.uncertainty import RISK_POWER, RISK_SCALE, doubt
from edge_client.planner import Estimates

POWERS = np.round(np.arange(0.2, 1.51, 0.02), 2)
SCALES = np.round(np.geomspace(0.25, 6.0, 160), 4)
LEAST, MOST = 1e-4, 0.98
BINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
_DRAWS = 500

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """The chance of an override as a power of the doubt."""

    power: float
    scale: float

    def chance(self, doubts: Floats) -> Floats:
        """Return the chances of tokens with these doubts."""
        return np.clip(self.scale * doubts**self.power, LEAST, MOST)


@dataclass(frozen=True, slots=True)
class Judged:
    """The cloud's judgement of one trace: doubts, overrides, and overrides by the runner-up; all [tokens]."""

    group: str
    doubts: Floats
    overridden: NDArray[np.bool_]
    by_runner_up: NDArray[np.bool_]

    @classmethod
    def of(cls, trace: Trace) -> Judged:
        signals = [proposal.signal for proposal in trace.proposals]
        overridden = ~np.array(trace.matches, dtype=bool)
        runners_up = np.array([proposal.runner_up for proposal in trace.proposals])
        return cls(
            f"{trace.category}, temperature {trace.sampling.temperature:g}",
            np.array([doubt(signal.entropy_nats, signal.coupled_margin) for signal in signals]),
            overridden,
            overridden & (runners_up == np.array(trace.token_ids)),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tuning = [TRACES / "tuning-T0.jsonl.gz", TRACES / "tuning-T0.7.jsonl.gz"]
    parser.add_argument(
        "--traces", type=Path, nargs="+", default=tuning, help="traces for tuning, never the reported ones"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit, compare, and print the tables."""
    measured = provenance()
    judged = [Judged.of(trace) for path in args.traces for trace in load_traces(path).traces]
    used, fitted = in_use(), fit(judged)
    groups = {name: [one for one in judged if one.group == name] for name in dict.fromkeys(one.group for one in judged)}
    summary = {
        "in_use": {"power": round(used.power, 3), "scale": round(used.scale, 3), "runner_up": Estimates().hit},
        "fitted": {"power": fitted.power, "scale": fitted.scale, "runner_up": runner_up_share(judged)},
        "fitted_95": intervals(judged),
        "log_loss": {"in_use": log_loss(judged, used), "fitted": log_loss(judged, fitted)},
        "groups": {
            name: {
                "tokens": sum(len(one.doubts) for one in group),
                "overrides": int(sum(one.overridden.sum() for one in group)),
                "runner_up": runner_up_share(group),
                "scale_at_power_in_use": fit(group, powers=np.array([used.power])).scale,
                "scale_at_fitted_power": fit(group, powers=np.array([fitted.power])).scale,
                **{f"fitted_{name}": value for name, value in _constants(fit(group)).items()},
            }
            for name, group in groups.items()
        },
    }
    tables = {"in_use": list(reliability(judged, used)), "fitted": list(reliability(judged, fitted))}
    for name, table in tables.items():
        print(f"{name.replace('_', ' ')}:\n{as_text(table)}")
    traces = [path.name for path in args.traces]
    return {
        "benchmark": "risk",
        **measured,
        "settings": {"traces": traces, "tokens": sum(len(one.doubts) for one in judged)},
        "reliability": tables,
        "summary": summary,
    }


def in_use() -> Curve:
    """Return the curve of a device that has learned nothing yet."""
    return Curve(RISK_POWER, RISK_SCALE)


def fit(judged: Sequence[Judged], *, powers: Floats = POWERS, scales: Floats = SCALES) -> Curve:
    """Return the likeliest curve of the grid."""
    return _likeliest(losses(judged, powers, scales).sum(axis=-1), powers, scales)


def losses(judged: Sequence[Judged], powers: Floats, scales: Floats) -> Floats:
    """Return minus the log-likelihood of each trace at each point of the grid: [powers, scales, traces]."""
    table = np.empty((len(powers), len(scales), len(judged)))
    for place, one in enumerate(judged):
        for row, power in enumerate(powers):
            chances = np.clip(scales[:, None] * one.doubts**power, LEAST, MOST)  # [scales, tokens]
            table[row, :, place] = -np.log(np.where(one.overridden, chances, 1 - chances)).sum(axis=-1)
    return table


def intervals(judged: Sequence[Judged], draws: int = _DRAWS) -> dict[str, list[float] | None]:
    """Return the 95% intervals of power, scale and the runner-up's share, over traces."""
    table = losses(judged, POWERS, SCALES)

    def likeliest(drawn: Indices) -> Curve:
        times = np.bincount(drawn, minlength=len(judged)).astype(np.float64)
        return _likeliest(table @ times, POWERS, SCALES)

    statistics: dict[str, Callable[[Indices], float | None]] = {
        "power": lambda drawn: likeliest(drawn).power,
        "scale": lambda drawn: likeliest(drawn).scale,
        "runner_up": lambda drawn: runner_up_share([judged[index] for index in drawn]),
    }
    return {name: interval(len(judged), statistic, draws=draws) for name, statistic in statistics.items()}


def runner_up_share(judged: Sequence[Judged]) -> float | None:
    """Return the share of overrides that were the draft's second choice; None without an override."""
    overrides = sum(int(one.overridden.sum()) for one in judged)
    return round(sum(int(one.by_runner_up.sum()) for one in judged) / overrides, 4) if overrides else None


def log_loss(judged: Sequence[Judged], curve: Curve) -> float:
    """Return nats per token."""
    table = losses(judged, np.array([curve.power]), np.array([curve.scale]))
    return round(float(table.sum()) / sum(len(one.doubts) for one in judged), 5)


def reliability(judged: Sequence[Judged], curve: Curve) -> Iterator[dict[str, Any]]:
    """Yield the tokens by predicted chance, with the share that was overridden."""
    doubts = np.concatenate([one.doubts for one in judged])
    overridden = np.concatenate([one.overridden for one in judged])
    chances = curve.chance(doubts)
    places = np.clip(np.digitize(chances, BINS) - 1, 0, len(BINS) - 2)
    for place, (low, high) in enumerate(itertools.pairwise(BINS)):
        mine = places == place
        if mine.any():
            yield {
                "from": low,
                "to": high,
                "tokens": int(mine.sum()),
                "predicted": round(float(chances[mine].mean()), 4),
                "observed": round(float(overridden[mine].mean()), 4),
            }


def as_text(table: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each bin."""
    lines = [f"{'predicted chance':>18} {'tokens':>7} {'mean':>7} {'overridden':>11}"]
    for row in table:
        bounds = f"{row['from']:g} to {row['to']:g}"
        lines.append(f"{bounds:>18} {row['tokens']:7} {row['predicted']:7.3f} {row['observed']:11.3f}")
    return "\n".join(lines)


def _likeliest(table: Floats, powers: Floats, scales: Floats) -> Curve:
    row, column = np.unravel_index(int(table.argmin()), table.shape)
    return Curve(float(powers[row]), float(scales[column]))


def _constants(curve: Curve) -> dict[str, float | None]:
    return {"power": curve.power, "scale": curve.scale}
