"""Figures of runs; each takes the results as they were written, and one category of their prompts.

The first six colours are those of Okabe and Ito, which colour-blind readers can distinguish. No figure needs colour
alone: lines differ in marker, bars in position.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Result = Mapping[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#5B5B5B", "#8C6D31")
MARKERS = "osD^vP<>X*"
_BOUNDS = {
    "clairvoyant": ("clairvoyant bound,\nexact output", "--"),
    "physical_floor": ("physical floor,\nexact output", ":"),
}
INK = "#222222"


@dataclass(frozen=True, slots=True)
class Style:
    """The look of one strategy in all figures."""

    colour: str
    marker: str


def styles_of(results: Sequence[Result]) -> dict[str, Style]:
    """Return the styles by strategy, in order of appearance."""
    names = dict.fromkeys(name for result in results for name in entries(result, "all"))
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    return {name: Style(*look) for name, look in zip(names, looks, strict=False)}


def entries(result: Result, category: str) -> dict[str, dict[str, Any]]:
    """Return the summary by strategy; empty if the run has no prompt of the category."""
    found: dict[str, dict[str, Any]] = result["summary"]["categories"].get(category, {})
    return found


def label_of(result: Result) -> str:
    """Return a short description of a run that sets it apart from others."""
    return f"{result['settings']['profile']['description']}, {_conditions(result)}"


def speed_over_rtt(results: Sequence[Result], category: str) -> Figure:
    """Return a figure of decode speed over cloud streaming against the round trip, with intervals and bounds.

    The scale is logarithmic, so that twice as fast and half as fast are as far from 1. Runs at other temperatures, and
    cold ones, have their own panels.
    """
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: float(result["settings"]["rtt_ms"])):
        groups.setdefault(_conditions(result), []).append(result)
    figure = Figure(figsize=(8, 0.8 + 4 * len(groups)), layout="constrained", facecolor="white")
    styles = styles_of(results)
    for axes, (conditions, group) in zip(
        figure.subplots(len(groups), 1, squeeze=False)[:, 0], groups.items(), strict=True
    ):
        _draw_speeds(axes, group, category, styles)
        axes.set_title(conditions, fontsize=9, loc="left", color=INK)
    figure.suptitle(f"Speed over cloud streaming: {category}", color=INK)
    return figure


@dataclass(frozen=True, slots=True)
class Bars:
    """A panel for each run, a group of bars for each strategy; an unmeasured value has no bar."""

    title: str
    unit: str
    values: Callable[[dict[str, Any]], dict[str, float | None]]  # from a strategy's summary, by label of the bar

    def __call__(self, results: Sequence[Result], category: str) -> Figure:
        shown = [result for result in _by_rtt(results) if entries(result, category)]
        figure = Figure(figsize=(8, 1.2 + 2.4 * max(1, len(shown))), layout="constrained", facecolor="white")
        panels = figure.subplots(max(1, len(shown)), 1, squeeze=False)[:, 0]
        for axes, result in zip(panels, shown, strict=False):
            self._draw(axes, {name: self.values(entry) for name, entry in entries(result, category).items()})
            axes.set_title(label_of(result), fontsize=9, loc="left", color=INK)
        figure.suptitle(f"{self.title}: {category}", color=INK)
        return figure

    def _draw(self, axes: Axes, shown: Mapping[str, Mapping[str, float | None]]) -> None:
        parts = list(next(iter(shown.values())))
        width = 0.8 / len(parts)
        for index, part in enumerate(parts):
            heights = [found[part] for found in shown.values()]
            places = [place + (index - (len(parts) - 1) / 2) * width for place in range(len(shown))]
            known = [(place, height) for place, height in zip(places, heights, strict=True) if height is not None]
            if known:
                x, y = zip(*known, strict=True)
                axes.bar(x, y, width=width * 0.95, label=part, color=COLOURS[index])
        axes.set_xticks(range(len(shown)), list(shown), rotation=20, ha="right")
        axes.set_ylabel(self.unit)
        tidy(axes)
        if len(parts) > 1 and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)


def _fields(**names: str) -> Callable[[dict[str, Any]], dict[str, float | None]]:
    """Return bars by fields of a strategy's summary."""
    return lambda entry: {shown.replace("_", " "): entry[name] for shown, name in names.items()}


FIGURES: Mapping[str, Callable[[Sequence[Result], str], Figure]] = {
    "speed": speed_over_rtt,
    "first-token": Bars(
        "Time to first token",
        "median time to first token [ms]",
        _fields(shown="ttft_ms", final="ttft_committed_ms"),
    ),
    "gaps": Bars("Gaps between final tokens", "gap [ms]", lambda entry: dict(entry["gap_ms"])),
    "round-trips": Bars(
        "Round trips",
        "round trips per 100 tokens",
        _fields(waited_for="round_trips_per_100_tokens", hidden="hidden_round_trips_per_100_tokens"),
    ),
    "bytes": Bars(
        "Bytes on the link",
        "bytes per token, headers included",
        _fields(up="link_bytes_up_per_token", down="link_bytes_down_per_token"),
    ),
    "cloud-seconds": Bars(
        "Cloud compute, prefill left out",
        "cloud seconds per 1000 tokens",
        _fields(cloud="cloud_ms_per_token"),  # ms per token are seconds per thousand
    ),
    "energy": Bars("Energy, by a declared model", "joules per token", _fields(energy="joules_per_token")),
}


def _conditions(result: Result) -> str:
    settings = result["settings"]
    return f"temperature {settings['temperature']:g}, {'cold' if settings['cold'] else 'warm'} start"


def _bound(result: Result, category: str, name: str) -> float | None:
    bounds = result["summary"].get("bounds", {}).get("categories", {}).get(category)
    value: float | None = bounds[name]["over_cloud"] if bounds else None
    return value


def _by_rtt(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda result: float(result["settings"]["rtt_ms"]))


def _draw_speeds(axes: Axes, results: Sequence[Result], category: str, styles: Mapping[str, Style]) -> None:
    for name, style in styles.items():
        points = [
            (result["settings"]["rtt_ms"], entry["over_cloud"], entry["over_cloud_95"] or [entry["over_cloud"]] * 2)
            for result in results
            if (entry := entries(result, category).get(name)) and entry["over_cloud"] is not None
        ]
        if not points:
            continue
        x, y, intervals = zip(*points, strict=True)
        low = [max(0.0, value - span[0]) for value, span in zip(y, intervals, strict=True)]
        high = [max(0.0, span[1] - value) for value, span in zip(y, intervals, strict=True)]
        axes.errorbar(
            x, y, yerr=[low, high], label=name, color=style.colour, marker=style.marker, capsize=3, linewidth=1.5
        )
    for name, (label, dashes) in _BOUNDS.items():
        bounds = [
            (result["settings"]["rtt_ms"], bound)
            for result in results
            if (bound := _bound(result, category, name)) is not None
        ]
        if bounds:
            axes.plot(*zip(*bounds, strict=True), dashes, color=INK, label=label, marker="_", markersize=14)
    axes.axhline(1.0, color="#999999", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.set_xlabel("round trip of the link [ms]")
    axes.set_ylabel("decode speed over cloud streaming")
    tidy(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def tidy(axes: Axes) -> None:
    """Give axes the look of all our figures."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
