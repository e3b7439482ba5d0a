"""Figures of runs: each takes the results as they were written, and one category of their prompts.

The first six colours are those of Okabe and Ito, which colour-blind readers can tell apart, and no figure needs colour
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

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#5B5B5B", "#8C6D31")
_MARKERS = "osD^vP<>X*"
_BOUNDS = {
    "clairvoyant": ("clairvoyant bound,\nexact output", "--"),
    "physical_floor": ("physical floor,\nexact output", ":"),
}
_INK = "#222222"


@dataclass(frozen=True, slots=True)
class Style:
    """How one strategy looks everywhere."""

    colour: str
    marker: str


def styles_of(results: Sequence[Result]) -> dict[str, Style]:
    """By strategy, in order of appearance."""
    names = dict.fromkeys(name for result in results for name in entries(result, "all"))
    looks = zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)
    return {name: Style(*look) for name, look in zip(names, looks, strict=False)}


def entries(result: Result, category: str) -> dict[str, dict[str, Any]]:
    """The summary by strategy; empty where the run has no prompt of the category."""
    found: dict[str, dict[str, Any]] = result["summary"]["categories"].get(category, {})
    return found


def label_of(result: Result) -> str:
    """A run in a few words: what sets it apart from others."""
    return f"{result['settings']['profile']['description']}, {_conditions(result)}"


def speed_over_rtt(results: Sequence[Result], category: str) -> Figure:
    """Decode speed as a multiple of cloud streaming against the round trip, with intervals, and bounds as lines.

    The scale is logarithmic, so that twice as fast and half as fast are as far from 1. Runs at other temperatures, and
    cold ones, have panels of their own.
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
        axes.set_title(conditions, fontsize=9, loc="left", color=_INK)
    figure.suptitle(f"Speed over cloud streaming: {category}", color=_INK)
    return figure


def first_token(results: Sequence[Result], category: str) -> Figure:
    """Time to the first token, shown and final."""
    return _bars(
        results,
        category,
        title="Time to first token",
        unit="median time to first token [ms]",
        values=lambda entry: {"shown": entry["ttft_ms"], "final": entry["ttft_committed_ms"]},
    )


def gaps(results: Sequence[Result], category: str) -> Figure:
    """Percentiles of the time between one final token and the next."""
    return _bars(
        results,
        category,
        title="Gaps between final tokens",
        unit="gap [ms]",
        values=lambda entry: entry["gap_ms"],
    )


def round_trips(results: Sequence[Result], category: str) -> Figure:
    """Requests that the device waited for, and hidden ones."""
    return _bars(
        results,
        category,
        title="Round trips",
        unit="round trips per 100 tokens",
        values=lambda entry: {
            "waited for": entry["round_trips_per_100_tokens"],
            "hidden": entry["hidden_round_trips_per_100_tokens"],
        },
    )


def link_bytes(results: Sequence[Result], category: str) -> Figure:
    """Bytes on the link, headers included."""
    return _bars(
        results,
        category,
        title="Bytes on the link",
        unit="bytes per token, headers included",
        values=lambda entry: {"up": entry["link_bytes_up_per_token"], "down": entry["link_bytes_down_per_token"]},
    )


def cloud_seconds(results: Sequence[Result], category: str) -> Figure:
    """The cloud's compute, prefill left out."""
    return _bars(
        results,
        category,
        title="Cloud compute",
        unit="cloud seconds per 1000 tokens",
        values=lambda entry: {"cloud": entry["cloud_ms_per_token"]},  # ms per token are seconds per thousand
    )


def energy(results: Sequence[Result], category: str) -> Figure:
    """Energy by the declared model."""
    return _bars(
        results,
        category,
        title="Energy, by a declared model",
        unit="joules per token",
        values=lambda entry: {"energy": entry["joules_per_token"]},
    )


FIGURES: Mapping[str, Callable[[Sequence[Result], str], Figure]] = {
    "speed": speed_over_rtt,
    "first-token": first_token,
    "gaps": gaps,
    "round-trips": round_trips,
    "bytes": link_bytes,
    "cloud-seconds": cloud_seconds,
    "energy": energy,
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


def _bars(
    results: Sequence[Result],
    category: str,
    *,
    title: str,
    unit: str,
    values: Callable[[dict[str, Any]], dict[str, float | None]],
) -> Figure:
    """A panel for each run, a group of bars for each strategy; what was not measured has none."""
    shown = [result for result in _by_rtt(results) if entries(result, category)]
    figure = Figure(figsize=(8, 1.2 + 2.4 * max(1, len(shown))), layout="constrained", facecolor="white")
    panels = figure.subplots(max(1, len(shown)), 1, squeeze=False)[:, 0]
    for axes, result in zip(panels, shown, strict=False):
        mine = {name: values(entry) for name, entry in entries(result, category).items()}
        parts = list(next(iter(mine.values())))
        width = 0.8 / len(parts)
        for index, part in enumerate(parts):
            heights = [found[part] for found in mine.values()]
            places = [place + (index - (len(parts) - 1) / 2) * width for place in range(len(mine))]
            known = [(place, height) for place, height in zip(places, heights, strict=True) if height is not None]
            if known:
                axes.bar(*zip(*known, strict=True), width=width * 0.95, label=part, color=_COLOURS[index])
        axes.set_xticks(range(len(mine)), list(mine), rotation=20, ha="right")
        axes.set_ylabel(unit)
        axes.set_title(label_of(result), fontsize=9, loc="left", color=_INK)
        _tidy(axes)
        if len(parts) > 1 and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"{title}: {category}", color=_INK)
    return figure


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
            axes.plot(*zip(*bounds, strict=True), dashes, color=_INK, label=label, marker="_", markersize=14)
    axes.axhline(1.0, color="#999999", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.set_xlabel("round trip of the link [ms]")
    axes.set_ylabel("decode speed over cloud streaming")
    _tidy(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
