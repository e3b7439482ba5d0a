"""Figures of gates: `python -m benchmarks gate-figures --gates G.json ... --quality Q.json ... --out FOLDER`.

- `catch.png`: overrides that signals and gates catch, compared with the oracle.
- `rescues.png`: the same for overrides that an answer depends on (of `gates --rollouts`).
- `reliability.png`: risks against the observed share of overrides.
- `quality.png`: right answers against the share of tokens that the cloud decided.
- `caught.png`: caught overrides against the same share.
- `caught_by_round_trips.png`: caught overrides against the number of requests.
- `promises.png`: promised values against kept ones.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.figures import COLOURS, INK, MARKERS, tidy
from benchmarks.report.report import png
from chaperone_common.errors import ConfigError

# all other policies are single signals
LEADING = ("oracle", "trees_fitted_here", "fitted_here", "gate", "pattern", "hidden_fitted_here")
_PROMISE = re.compile(r"(gated|deviation)-([0-9.]+)", re.ASCII)

Result = Mapping[str, Any]


class Measure(NamedTuple):
    """The gain of a strategy: a field of its summary."""

    name: str
    label: str


class Cost(NamedTuple):
    """The cost of a strategy to the cloud, out of its summary."""

    of: Callable[[Mapping[str, Any]], float]
    label: str


def _decided_percent(entry: Mapping[str, Any]) -> float:
    """Return the share of tokens that the cloud decided before they were final; takeovers are in both shares."""
    return 100 * float(entry["verified_share"] + entry["cloud_wrote_share"] - entry["takeover_share"])


CAUGHT = Measure("catch", "share of overrides caught")
PASSED = Measure("pass_at_1", "pass@1")
DECIDED = Cost(_decided_percent, "tokens that the cloud decided on [%]")
ROUND_TRIPS = Cost(lambda entry: float(entry["round_trips_per_100_tokens"]), "round trips per 100 tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gates", type=Path, nargs="+", default=[], help="results of `python -m benchmarks gates`")
    parser.add_argument("--quality", type=Path, nargs="+", default=[], help="results of `python -m benchmarks quality`")


def run(args: argparse.Namespace) -> None:
    """Write the figures into the folder of --out."""
    if args.out is None:
        raise ConfigError("--out: missing; name the folder for the figures")
    gates = [_loaded(path, "gates") for path in args.gates]
    quality = [_loaded(path, "quality") for path in args.quality]
    figures = {}
    if gates:
        curves = [(result, result["summary"]["catch"]) for result in gates]
        figures["catch"] = budget_figure(curves, "share of overrides caught")
    rescues = [(result, caught) for result in gates if (caught := result["summary"].get("rescues", {}).get("caught"))]
    if rescues:
        figures["rescues"] = budget_figure(rescues, "share of overrides caught that an answer depends on")
    if quality:
        figures |= {
            "reliability": reliability_figure(quality),
            "promises": promises_figure(quality),
            "caught": reached_figure(quality, CAUGHT, DECIDED),
            "caught_by_round_trips": reached_figure(quality, CAUGHT, ROUND_TRIPS),
        }
    scored = [result for result in quality if "pass_at_1" in result["summary"]["cloud"]]
    if scored:
        figures["quality"] = reached_figure(scored, PASSED, DECIDED)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        (args.out / f"{name}.png").write_bytes(png(figure))
        print(args.out / f"{name}.png")


def _loaded(path: Path, benchmark: str) -> Result:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        known = result["benchmark"] == benchmark and bool(result["summary"])
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ConfigError(f"{path}: not a result of `python -m benchmarks {benchmark}`; make it first")
    missing = {"edge", "cloud"} - result["summary"].keys() if benchmark == "quality" else set()
    if missing:
        raise ConfigError(f"{path}: without {', '.join(sorted(missing))}; make it again with these strategies")
    return dict(result)


def budget_figure(results: Sequence[tuple[Result, Mapping[str, Sequence[float]]]], label: str) -> Figure:
    """Return a panel for each suite: the gain of each policy with a share of the tokens, [budgets]."""
    figure, panels = _panels(len(results))
    for axes, (result, curves) in zip(panels, results, strict=True):
        summary = result["summary"]
        budgets = [100 * budget for budget in summary["budgets"]]
        singles = [name for name in curves if name not in LEADING]
        for index, name in enumerate(singles):
            axes.plot(
                budgets,
                curves[name],
                color="#999999",
                linewidth=0.8,
                marker=MARKERS[index],
                markersize=3,
                label=name.replace("_", " "),
            )
        for name, colour, line in zip(LEADING, COLOURS, ("-", "-.", ":", "-", "--", (0, (3, 1, 1, 1))), strict=False):
            if name in curves:
                known_as = name.replace("_", " ")
                axes.plot(budgets, curves[name], linestyle=line, color=colour, linewidth=2, label=known_as)
        axes.set_title(
            f"{result['settings']['suite']}, {summary['override_rate']:.1%} overridden", fontsize=9, color=INK
        )
        axes.set_xlabel("tokens that the cloud decides [%]")
        tidy(axes)
    panels[0].set_ylabel(label)
    max(panels, key=lambda axes: len(axes.lines)).legend(fontsize=7, frameon=False)
    return figure


def reliability_figure(results: Sequence[Result]) -> Figure:
    """Return a panel for each suite: mean risk against the share of overrides, in bins of equally many tokens."""
    figure, panels = _panels(len(results))
    looks = _looks(name for result in results for name, _ in _promising(result))
    for axes, result in zip(panels, results, strict=True):
        axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8)
        for name, entry in _promising(result):
            (colour, marker), bins = looks[name], entry.get("reliability", [])
            axes.plot(
                [one[0] for one in bins],
                [one[1] for one in bins],
                color=colour,
                marker=marker,
                markersize=3,
                linewidth=1,
                label=name,
            )
        axes.set_xscale("symlog", linthresh=0.001)
        axes.set_yscale("symlog", linthresh=0.001)
        axes.set_title(result["settings"]["suite"], fontsize=9, color=INK)
        axes.set_xlabel("mean risk")
        tidy(axes)
    panels[0].set_ylabel("share overridden")
    _legend(panels)
    return figure


def reached_figure(results: Sequence[Result], reached: Measure, spent: Cost) -> Figure:
    """Return a panel for each suite: the gain of each strategy against its cost, if both are measured."""
    measure = reached.name
    figure, panels = _panels(len(results))
    looks = _looks(_family(name) for result in results for name in result["summary"])
    for axes, result in zip(panels, results, strict=True):
        summary = result["summary"]
        for name in ("edge", "cloud"):
            if summary[name].get(measure) is not None:
                axes.axhline(summary[name][measure], color="#BBBBBB", linewidth=0.8)
                place = (0.01, summary[name][measure])
                axes.annotate(name, place, xycoords=axes.get_yaxis_transform(), fontsize=7, color=INK)
        families: dict[str, list[Mapping[str, Any]]] = {}
        for name, entry in summary.items():
            if name not in ("edge", "cloud", "exact") and entry.get(measure) is not None:
                families.setdefault(_family(name), []).append(entry)
        for family, some in families.items():
            (colour, marker), some = looks[family], sorted(some, key=spent.of)
            axes.errorbar(
                [spent.of(entry) for entry in some],
                [entry[measure] for entry in some],
                yerr=_reaches(some, measure),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1,
                capsize=2,
                label=family,
            )
        axes.set_title(f"{result['settings']['suite']}, {result['settings']['tasks']} tasks", fontsize=9, color=INK)
        axes.set_xlabel(spent.label)
        tidy(axes)
    panels[0].set_ylabel(reached.label)
    _legend(panels)
    return figure


def _family(name: str) -> str:
    return name.split("-")[0]


def promises_figure(results: Sequence[Result]) -> Figure:
    """Return promised against kept values, with intervals: `catch` on the left, `max_deviation` on the right."""
    figure, panels = _panels(2, share_y=False)
    looks = _looks(result["settings"]["suite"] for result in results)
    for axes, kind, measure in zip(panels, ("gated", "deviation"), ("catch", "deviation_rate"), strict=True):
        promises: set[float] = set()
        for result in results:
            colour, marker = looks[result["settings"]["suite"]]
            kept = [
                (float(name.split("-")[1]), entry)
                for name, entry in _promising(result, kind)
                if entry[measure] is not None
            ]
            x = [promised for promised, _ in kept]
            y = [entry[measure] for _, entry in kept]
            axes.errorbar(
                x,
                y,
                yerr=_reaches([entry for _, entry in kept], measure),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=0,
                elinewidth=1,
                capsize=2,
                label=result["settings"]["suite"],
            )
            promises |= set(x)
        ticks = sorted(promises)
        axes.plot(ticks, ticks, color="#BBBBBB", linewidth=0.8)
        axes.set_xticks(ticks)
        axes.set_xlabel(f"{'catch' if kind == 'gated' else 'max_deviation'}, promised")
        axes.set_ylabel("kept")
        tidy(axes)
    _legend(panels)
    return figure


def _reaches(entries: Sequence[Mapping[str, Any]], measure: str) -> list[list[float]]:
    """Return the distances from a value to both ends of its interval; 0 if there is none."""
    values = [(entry[measure], entry[f"{measure}_95"] or [entry[measure]] * 2) for entry in entries]
    return [
        [max(value - low, 0.0) for value, (low, _) in values],
        [max(high - value, 0.0) for value, (_, high) in values],
    ]


def _promising(result: Result, kind: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in result["summary"].items():
        found = _PROMISE.fullmatch(name)
        if found is not None and kind in (None, found[1]):
            yield name, entry


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each name, the same in all panels."""
    return dict(zip(dict.fromkeys(names), cycle(zip(COLOURS, MARKERS, strict=False)), strict=False))


def _legend(panels: Sequence[Axes]) -> None:
    """Draw the legend in the panel with the most entries."""
    max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[1])).legend(fontsize=7, frameon=False)


def _panels(count: int, *, share_y: bool = True) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(1 + 3.6 * count, 3.8), layout="constrained", facecolor="white")
    panels: Sequence[Axes] = figure.subplots(1, count, squeeze=False, sharey=share_y)[0]
    return figure, panels
