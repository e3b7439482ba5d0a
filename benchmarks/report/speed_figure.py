"""The one figure of it all: speed over cloud streaming against the round trip, measured and in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measured.summary import BASELINE
from benchmarks.report.figures import COLOURS, INK, MARKERS, Result, entries, tidy

BOUND = "bound"
_BESIDE_MS = 5.0  # from one strategy's point to the next, which would else cover it

Row = Mapping[str, Any]


def speed_figure(rows: Sequence[Row], results: Sequence[Result], temperature: float = 0.0) -> Figure:
    """A panel for each kind of prompt: lines from virtual time, points with intervals from warm runs over plain links.

    `rows` are those of `python -m benchmarks virtual`, `results` of `python -m benchmarks run`. Published strategies
    have one line and one kind of point a family, each with its best span length.
    """
    mine = [row for row in rows if row["temperature"] == temperature]
    measured = [result for result in results if _comparable(result["settings"], temperature)]
    categories = list(dict.fromkeys(row["category"] for row in mine))
    families = list(dict.fromkeys(key for row in mine for key in row["strategies"] if key != BASELINE))
    looks = {family: (COLOURS[index], MARKERS[index]) for index, family in enumerate(families)}
    figure = Figure(figsize=(1 + 4 * max(1, len(categories)), 4), layout="constrained", facecolor="white")
    panels = figure.subplots(1, max(1, len(categories)), squeeze=False, sharey=True)[0]
    for axes, category in zip(panels, categories, strict=False):
        _draw_lines(axes, [row for row in mine if row["category"] == category], looks)
        _draw_points(axes, measured, category, looks)
        _frame(axes, category)
    panels[0].set_ylabel("decode speed over cloud streaming")
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(
        f"Lines: virtual time, points: measured (95% over prompts); temperature {temperature:g}", fontsize=9, color=INK
    )
    return figure


def _comparable(settings: Mapping[str, Any], temperature: float) -> bool:
    """A warm run over a link that is nothing but a round trip."""
    plain = {"delay_ms", "jitter_ms"}
    ways = (settings["profile"].get("up", {}), settings["profile"].get("down", {}))
    return settings["temperature"] == temperature and not settings["cold"] and all(way.keys() <= plain for way in ways)


def _draw_lines(axes: Axes, rows: Sequence[Row], looks: Mapping[str, tuple[str, str]]) -> None:
    ordered = sorted(rows, key=lambda row: float(row["rtt_ms"]))
    x = [row["rtt_ms"] for row in ordered]
    for family, (colour, marker) in looks.items():
        y = [row["strategies"][family]["over_cloud"] for row in ordered]
        axes.plot(x, y, color=colour, linewidth=2.0 if family == "exact" else 1.2)
        axes.plot([], [], color=colour, marker=marker, label=family)  # for the legend: line and point in one
    axes.plot(x, [row[BOUND]["over_cloud"] for row in ordered], "--", color=INK, label="clairvoyant bound\nof a chain")


def _draw_points(axes: Axes, results: Sequence[Result], category: str, looks: Mapping[str, tuple[str, str]]) -> None:
    for result in results:
        for name, entry in entries(result, category).items():
            family = name.rpartition("-")[0] or name
            if family not in looks or entry["over_cloud"] is None:
                continue
            value = entry["over_cloud"]
            low, high = entry["over_cloud_95"] or (value, value)
            colour, marker = looks[family]
            beside = (list(looks).index(family) - (len(looks) - 1) / 2) * _BESIDE_MS
            axes.errorbar(
                [result["settings"]["rtt_ms"] + beside],
                [value],
                yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                color=colour,
                marker=marker,
                capsize=3,
                linewidth=1.0,
            )


def _frame(axes: Axes, category: str) -> None:
    axes.axhline(1.0, color="#999999", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.set_xlabel("round trip of the link [ms]")
    axes.set_title(category, fontsize=10, color=INK)
    tidy(axes)
